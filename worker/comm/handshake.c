/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How two ranks know that they mean the same epoch of the same job, and that each holds its key:
 *
 *     connector -> acceptor   hello C {who, to whom, which epoch, nonce}
 *     acceptor -> connector   hello A {the same from its side, nonce}, HMAC(key, "accept" C A)
 *     connector -> acceptor   HMAC(key, "connect" C A)
 *
 * Both macs cover both nonces, so neither can be replayed, and the labels differ, so neither can be reflected.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <string.h>

#include "base/wire.h"
#include "worker/comm/comm_private.h"

#define HANDSHAKE_VERSION 1
static const char handshake_magic[8] = "FP8MESH";

void handshake_pack(const struct handshake_hello *h, uint8_t buf[HANDSHAKE_HELLO]) {
        uint8_t *p = buf;

        memcpy(p, handshake_magic, 8);
        p = wire_put(p + 8, HANDSHAKE_VERSION, 4);
        p = wire_put(p, h->from, 4);
        p = wire_put(p, h->to, 4);
        p = wire_put(p, h->n_ranks, 4);
        p = wire_put(p, h->job, 8);
        p = wire_put(p, h->epoch, 8);
        p = wire_put(p, h->from_incarnation, 8);
        p = wire_put(p, h->to_incarnation, 8);
        memcpy(p, h->nonce, 32);
}

int handshake_unpack(const uint8_t buf[HANDSHAKE_HELLO], struct handshake_hello *ret, struct error *e) {
        const uint8_t *p = buf + 8;
        struct handshake_hello h;

        if (memcmp(buf, handshake_magic, 8) != 0)
                return error_set(e, -EPROTO, "handshake: not a rank of a job");
        h.version = (uint32_t)wire_get(&p, 4);
        if (h.version != HANDSHAKE_VERSION)
                return error_set(e, -EPROTO, "handshake: found version %u, expected %d", h.version, HANDSHAKE_VERSION);
        h.from = (uint32_t)wire_get(&p, 4);
        h.to = (uint32_t)wire_get(&p, 4);
        h.n_ranks = (uint32_t)wire_get(&p, 4);
        h.job = wire_get(&p, 8);
        h.epoch = wire_get(&p, 8);
        h.from_incarnation = wire_get(&p, 8);
        h.to_incarnation = wire_get(&p, 8);
        memcpy(h.nonce, p, 32);
        *ret = h;
        return 0;
}

static int differs(const char *what, uint64_t found, uint64_t expected, struct error *e) {
        return error_set(e, -EPROTO, "handshake: found %s %llu, expected %llu", what, (unsigned long long)found, (unsigned long long)expected);
}

int handshake_check(const struct handshake_hello *h, const struct comm_mesh_config *c, uint32_t from, struct error *e) {
        if (h->job != c->job)
                return differs("job", h->job, c->job, e);
        if (h->epoch != c->epoch)
                return differs("epoch", h->epoch, c->epoch, e);
        if (h->n_ranks != (uint32_t)c->n_ranks)
                return differs("number of ranks", h->n_ranks, (uint64_t)c->n_ranks, e);
        if (h->from != from)
                return differs("rank", h->from, from, e);
        if (h->to != (uint32_t)c->rank)
                return differs("peer rank", h->to, (uint64_t)c->rank, e);
        if (h->from_incarnation != c->peers[from].incarnation)
                return differs("incarnation", h->from_incarnation, c->peers[from].incarnation, e);
        if (h->to_incarnation != c->peers[c->rank].incarnation)
                return differs("peer incarnation", h->to_incarnation, c->peers[c->rank].incarnation, e);
        return 0;
}

int handshake_nonce(uint8_t nonce[32], struct error *e) {
        if (RAND_bytes(nonce, 32) != 1)
                return error_set(e, -EIO, "handshake: no random bytes from OpenSSL");
        return 0;
}

int handshake_mac(const uint8_t key[32], const char *label, const uint8_t a[HANDSHAKE_HELLO], const uint8_t b[HANDSHAKE_HELLO], uint8_t ret[HANDSHAKE_MAC],
                  struct error *e) {
        uint8_t text[32 + 2 * HANDSHAKE_HELLO] = { 0 };
        unsigned len = 0;

        memcpy(text, label, strnlen(label, 31)); /* a fixed 32 bytes, zero-padded: no label is a prefix of another */
        memcpy(text + 32, a, HANDSHAKE_HELLO);
        memcpy(text + 32 + HANDSHAKE_HELLO, b, HANDSHAKE_HELLO);
        if (!HMAC(EVP_sha256(), key, 32, text, sizeof(text), ret, &len) || len != HANDSHAKE_MAC)
                return error_set(e, -EIO, "handshake: OpenSSL made no HMAC");
        return 0;
}

bool handshake_mac_equal(const uint8_t a[HANDSHAKE_MAC], const uint8_t b[HANDSHAKE_MAC]) {
        return CRYPTO_memcmp(a, b, HANDSHAKE_MAC) == 0;
}
