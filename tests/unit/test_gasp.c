/* SPDX-License-Identifier: Apache-2.0 */
/* A kernel's last gasp: what is read of a datagram, whose it is, the way that the worker finds for it, and that the controller believes only what it should. */
#include <arpa/inet.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "driver/fp8guard_uapi.h"
#include "proto/gasp.h"
#include "tests/test.h"
#include "tests/unit/core_world.h"
#include "worker/agent/gasp.h"

#define TOLD(x) FP8CTL__V1__CONTROLLER_MESSAGE__BODY_##x
#define BOOT "6c9baa41-377f-4d38-825f-706c560288a8"

static struct fp8guard_gasp_datagram datagram(const char *node, const char *boot, const char *reason, const uint8_t key[GASP_KEY]) {
        struct fp8guard_gasp_datagram d = { .realtime_ns = 1 };
        unsigned n = 0;

        memcpy(d.magic, FP8GUARD_GASP_MAGIC, sizeof(d.magic));
        snprintf(d.node, sizeof(d.node), "%s", node);
        snprintf(d.boot_id, sizeof(d.boot_id), "%s", boot);
        snprintf(d.reason, sizeof(d.reason), "%s", reason);
        CU_ASSERT_PTR_NOT_NULL(HMAC(EVP_sha256(), key, GASP_KEY, (const unsigned char *)&d, offsetof(struct fp8guard_gasp_datagram, mac), d.mac, &n));
        CU_ASSERT_EQUAL(n, sizeof(d.mac));
        return d;
}

TEST(a_datagram_is_read_and_its_signature_covers_all_of_it) {
        static const uint8_t key[GASP_KEY] = { 1, 2, 3 }, other[GASP_KEY] = { 1, 2, 4 };
        struct fp8guard_gasp_datagram d = datagram("node-7", BOOT, "Fatal\nexception", key);
        struct error e = { 0 };
        struct gasp g;

        ASSERT_OK(gasp_read(&d, sizeof(d), &g, &e), e);
        CU_ASSERT_STRING_EQUAL(g.node, "node-7");
        CU_ASSERT_STRING_EQUAL(g.boot_id, BOOT);
        CU_ASSERT_STRING_EQUAL(g.reason, "Fatal?exception");
        CU_ASSERT_TRUE(gasp_signed(&d, sizeof(d), key));
        CU_ASSERT_FALSE(gasp_signed(&d, sizeof(d), other));
        CU_ASSERT_FALSE(gasp_signed(&d, sizeof(d) - 1, key));
        for (size_t i = 0; i < sizeof(d); i++) {
                ((uint8_t *)&d)[i] ^= 1;
                CU_ASSERT_FALSE(gasp_signed(&d, sizeof(d), key));
                ((uint8_t *)&d)[i] ^= 1;
        }
        CU_ASSERT_TRUE(gasp_signed(&d, sizeof(d), key));
}

TEST(what_is_no_datagram) {
        static const uint8_t key[GASP_KEY] = { 0 };
        struct fp8guard_gasp_datagram good = datagram("n", BOOT, "", key), d;
        struct gasp g = { .node = "untouched" };
        struct error e = { 0 };

        for (size_t n = 0; n < sizeof(good); n++)
                CU_ASSERT_EQUAL(gasp_read(&good, n, &g, &e), -EBADMSG);
        d = good;
        d.magic[7] = '2';
        CU_ASSERT_EQUAL(gasp_read(&d, sizeof(d), &g, &e), -EBADMSG);
        d = good;
        d.node[0] = 0;
        CU_ASSERT_EQUAL(gasp_read(&d, sizeof(d), &g, &e), -EBADMSG);
        d = good;
        memset(d.node, 'n', sizeof(d.node));
        CU_ASSERT_EQUAL(gasp_read(&d, sizeof(d), &g, &e), -EBADMSG);
        d = good;
        memset(d.boot_id, 'b', sizeof(d.boot_id));
        CU_ASSERT_EQUAL(gasp_read(&d, sizeof(d), &g, &e), -EBADMSG);
        CU_ASSERT_STRING_EQUAL(g.node, "untouched");
        d = good;
        memset(d.reason, 'r', sizeof(d.reason)); /* cut */
        CU_ASSERT_EQUAL(gasp_read(&d, sizeof(d), &g, &e), 0);
        CU_ASSERT_EQUAL(strlen(g.reason), sizeof(g.reason) - 1);
}

/* ------------------------------------------------------------------ the way there */
static uint32_t ip(const char *text) {
        struct in_addr a = { 0 };

        CU_ASSERT_EQUAL(inet_pton(AF_INET, text, &a), 1);
        return a.s_addr;
}

TEST(the_route_with_the_longest_prefix_and_the_lowest_metric) {
        static const char table[] = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
                                    "eth0\t00000000\t0202000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
                                    "eth9\t00000000\t0902000A\t0003\t0\t0\t50\t00000000\t0\t0\t0\n"
                                    "eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
                                    "eth2\t0000010A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
                                    "eth3\t0000020A\t00000000\t0000\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
                                    "a line of another form\n"
                                    "eth1\t0003000A\t0102000A\t0003\t0\t0\t0\t00FFFFFF";
        char device[16] = "untouched";
        uint32_t hop = 0;

        CU_ASSERT_EQUAL(gasp_route(table, ip("10.0.2.2"), device, &hop), 0);
        CU_ASSERT_STRING_EQUAL(device, "eth0");
        CU_ASSERT_EQUAL(hop, ip("10.0.2.2"));
        CU_ASSERT_EQUAL(gasp_route(table, ip("10.0.3.77"), device, &hop), 0);
        CU_ASSERT_STRING_EQUAL(device, "eth1");
        CU_ASSERT_EQUAL(hop, ip("10.0.2.1"));
        CU_ASSERT_EQUAL(gasp_route(table, ip("10.1.0.1"), device, &hop), 0); /* its own is one that rejects */
        CU_ASSERT_STRING_EQUAL(device, "eth9");
        CU_ASSERT_EQUAL(hop, ip("10.0.2.9"));
        CU_ASSERT_EQUAL(gasp_route(table, ip("10.2.0.1"), device, &hop), 0); /* ... or is down */
        CU_ASSERT_STRING_EQUAL(device, "eth9");
        hop = 0;
        CU_ASSERT_EQUAL(gasp_route("Iface\n", ip("10.1.0.1"), device, &hop), -ENETUNREACH);
        CU_ASSERT_EQUAL(gasp_route("", ip("10.1.0.1"), device, &hop), -ENETUNREACH);
        CU_ASSERT_EQUAL(hop, 0);
}

TEST(the_neighbour_of_that_device_once_it_is_resolved) {
        static const char table[] = "IP address       HW type     Flags       HW address            Mask     Device\n"
                                    "10.0.2.2         0x1         0x0         00:00:00:00:00:00     *        eth0\n"
                                    "10.0.2.2         0x1         0x2         52:55:0a:00:02:09     *        eth1\n"
                                    "a line of another form\n"
                                    "10.0.2.3         0x1         0x6         52:55:0A:00:02:03     *        eth0\n";
        static const uint8_t expected[6] = { 0x52, 0x55, 0x0a, 0, 2, 3 };
        uint8_t mac[6] = { 0 };

        CU_ASSERT_EQUAL(gasp_neighbour(table, ip("10.0.2.2"), "eth0", mac), -ENOENT);
        CU_ASSERT_EQUAL(gasp_neighbour(table, ip("10.0.2.4"), "eth0", mac), -ENOENT);
        CU_ASSERT_EQUAL(gasp_neighbour("", ip("10.0.2.4"), "eth0", mac), -ENOENT);
        CU_ASSERT_EQUAL(mac[0], 0);
        CU_ASSERT_EQUAL(gasp_neighbour(table, ip("10.0.2.3"), "eth0", mac), 0);
        CU_ASSERT_EQUAL(memcmp(mac, expected, sizeof(mac)), 0);
}

/* ------------------------------------------------------------------ the controller */
static const Fp8ctl__V1__Welcome *welcome(const struct world *w, uint64_t session) {
        for (size_t i = w->n_sent; i-- > 0;)
                if (w->sent[i].session == session && w->sent[i].m->body_case == TOLD(WELCOME))
                        return w->sent[i].m->welcome;
        return NULL;
}

static void begin(struct world *w, bool listens) {
        const struct controller_config config = { .lease_ttl_ms = 10000, .heartbeat_ms = 1000, .restart_budget_ms = 3000, .gasps = listens, .version = "test" };

        world_start_with(w, &config);
        w->boot_id = BOOT;
        world_attach(w, 1, "a");
        world_attach(w, 2, "b");
}

static void expect_state(struct world *w, const char *name, const char *state, int line) {
        Fp8ctl__V1__Node *n = world_node(w, name);
        bool ok = n && strcmp(n->state, state) == 0;

        if (!ok)
                printf("\n    line %d: %s: found %s, expected %s\n", line, name, n ? n->state : "nothing", state);
        CU_ASSERT(ok);
        if (n)
                fp8ctl__v1__node__free_unpacked(n, NULL);
}
#define EXPECT(name, state) expect_state(&w, name, state, __LINE__)

static void gasp(struct world *w, const char *node, const char *boot, const uint8_t *key) {
        struct fp8guard_gasp_datagram d = datagram(node, boot, "Fatal exception", key);

        controller_gasp(w->c, &d, sizeof(d));
}

TEST(a_true_one_makes_the_node_lost_at_once_and_no_other_does) {
        static const uint8_t wrong[GASP_KEY] = { 9 };
        uint8_t key[GASP_KEY];
        char text[400];
        struct world w;

        begin(&w, true);
        CU_ASSERT_EQUAL_FATAL(welcome(&w, 1)->panic_key.len, GASP_KEY);
        memcpy(key, welcome(&w, 1)->panic_key.data, GASP_KEY);
        gasp(&w, "a", BOOT, wrong);
        gasp(&w, "a", "another boot", key);
        gasp(&w, "nobody", BOOT, key);
        controller_gasp(w.c, "", 0);
        controller_gasp(w.c, "FP8GASP1", 8);
        EXPECT("a", "ready");
        EXPECT("b", "ready");
        gasp(&w, "a", BOOT, key);
        EXPECT("a", "lost");
        EXPECT("b", "ready");
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "node_lost", text, sizeof(text)), "its kernel died: Fatal exception"));
        CU_ASSERT_EQUAL(w.closed, 1);
        gasp(&w, "a", BOOT, key); /* its copies */
        EXPECT("a", "lost");
        w.boot_id = "the next boot";
        world_attach(&w, 3, "a");
        gasp(&w, "a", BOOT, key); /* sent again by somebody */
        EXPECT("a", "ready");
        world_stop(&w);
}

TEST(a_controller_that_does_not_listen_gives_no_keys_and_believes_nothing) {
        static const uint8_t zero[GASP_KEY];
        struct world w;

        begin(&w, false);
        CU_ASSERT_EQUAL(welcome(&w, 1)->panic_key.len, 0);
        gasp(&w, "a", BOOT, zero);
        EXPECT("a", "ready");
        world_stop(&w);
}

TEST_MAIN("gasp")
