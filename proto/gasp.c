/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/gasp.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#include "driver/fp8guard_uapi.h"

static void take(const char *field, size_t size, char *ret) {
        size_t n = strnlen(field, size - 1);

        for (size_t i = 0; i < n; i++)
                ret[i] = (unsigned char)field[i] < 0x20 || (unsigned char)field[i] >= 0x7f ? '?' : field[i];
        ret[n] = '\0';
}

int gasp_read(const void *data, size_t len, struct gasp *ret, struct error *e) {
        struct fp8guard_gasp_datagram d;
        struct gasp g;

        _Static_assert(sizeof(g.node) == sizeof(d.node) && sizeof(g.boot_id) == sizeof(d.boot_id) && sizeof(g.reason) == sizeof(d.reason), "the same texts");
        if (len != sizeof(d))
                return error_set(e, -EBADMSG, "found %zu bytes, expected %zu", len, sizeof(d));
        memcpy(&d, data, sizeof(d));
        if (memcmp(d.magic, FP8GUARD_GASP_MAGIC, sizeof(d.magic)) != 0)
                return error_set(e, -EBADMSG, "expected " FP8GUARD_GASP_MAGIC " at its beginning");
        if (!d.node[0] || memchr(d.node, 0, sizeof(d.node)) == NULL || memchr(d.boot_id, 0, sizeof(d.boot_id)) == NULL)
                return error_set(e, -EBADMSG, "expected a node's name and the number of its boot");
        take(d.node, sizeof(d.node), g.node);
        take(d.boot_id, sizeof(d.boot_id), g.boot_id);
        take(d.reason, sizeof(d.reason), g.reason);
        *ret = g;
        return 0;
}

bool gasp_signed(const void *data, size_t len, const uint8_t key[GASP_KEY]) {
        const struct fp8guard_gasp_datagram *d = data;
        uint8_t mac[EVP_MAX_MD_SIZE];
        unsigned n = 0;

        return len == sizeof(*d) && HMAC(EVP_sha256(), key, GASP_KEY, data, offsetof(struct fp8guard_gasp_datagram, mac), mac, &n) && n == sizeof(d->mac) && CRYPTO_memcmp(mac, d->mac, n) == 0;
}
