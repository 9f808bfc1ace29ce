/* SPDX-License-Identifier: Apache-2.0 */
/* What the controller makes of what nodes are made of: fingerprints, what changed on a node and which one is odd, devices' memory, what outlives a restart, and nonsense. */
#include "tests/test.h"
#include "tests/unit/core_world.h"

enum { FACTS = 6 };

/* kernel, gpu.driver, a serial number; NULL: left out. In no order. */
static void say(struct world *w, uint64_t session, const char *kernel, const char *driver, const char *serial) {
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;
        Fp8ctl__V1__NodeFact list[FACTS], *ptrs[FACTS];
        const struct {
                const char *key, *value;
        } facts[] = { { "kernel", kernel }, { "gpu0.serial", serial }, { "gpu.driver", driver } };

        for (size_t i = 0; i < 3; i++) {
                if (!facts[i].value)
                        continue;
                ptrs[r.n_facts] = &list[r.n_facts];
                fp8ctl__v1__node_fact__init(&list[r.n_facts]);
                list[r.n_facts].key = (char *)facts[i].key;
                list[r.n_facts].own = i == 1;
                list[r.n_facts++].value = (char *)facts[i].value;
        }
        r.facts = ptrs;
        world_health(w, session, &r);
}

static void fingerprint(struct world *w, const char *name, char ret[64]) {
        Fp8ctl__V1__Node *n = world_node(w, name);

        CU_ASSERT_FATAL(n != NULL);
        snprintf(ret, 64, "%s", n->fingerprint);
        fp8ctl__v1__node__free_unpacked(n, NULL);
}

static bool event_says(struct world *w, const char *kind, const char *text) {
        char buf[600];
        bool ok = strcmp(text, "") == 0 ? world_event(w, kind, buf, sizeof(buf))[0] == 0 : strstr(world_event(w, kind, buf, sizeof(buf)), text) != NULL;

        if (!ok)
                printf("\n    %s: found '%s', expected '%s'\n", kind, buf, text);
        return ok;
}

static void four_nodes(struct world *w) {
        world_start(w, false);
        for (uint64_t s = 1; s <= 4; s++)
                world_attach(w, s, (char[2]){ (char)('a' + s - 1), 0 });
}

TEST(nodes_made_alike_have_one_fingerprint) {
        struct world w;
        char a[64], b[64];
        Fp8ctl__V1__Node *n;

        four_nodes(&w);
        fingerprint(&w, "a", a);
        CU_ASSERT_STRING_EQUAL(a, "");
        say(&w, 1, "6.1", "535", "s1");
        say(&w, 2, "6.1", "535", "s2");
        fingerprint(&w, "a", a);
        fingerprint(&w, "b", b);
        CU_ASSERT_EQUAL(strlen(a), 32);
        CU_ASSERT_STRING_EQUAL(a, b); /* serial numbers are nodes' own */
        say(&w, 2, "6.1", "550", "s2");
        fingerprint(&w, "b", b);
        CU_ASSERT_STRING_NOT_EQUAL(a, b);
        n = world_node(&w, "a");
        CU_ASSERT_EQUAL_FATAL(n->n_facts, 3);
        CU_ASSERT_STRING_EQUAL(n->facts[0]->key, "gpu.driver");
        CU_ASSERT_STRING_EQUAL(n->facts[1]->key, "gpu0.serial");
        CU_ASSERT_TRUE(n->facts[1]->own);
        fp8ctl__v1__node__free_unpacked(n, NULL);
        world_stop(&w);
}

static void expect_rails(struct world *w, const char *first, const char *second, int line) {
        Fp8ctl__V1__Node *n = world_node(w, "a");

        CU_ASSERT_FATAL(n != NULL && n->n_devices == 2);
        if (strcmp(n->devices[0]->rail, first) != 0 || strcmp(n->devices[1]->rail, second) != 0)
                printf("\n    line %d: found '%s', '%s'\n", line, n->devices[0]->rail, n->devices[1]->rail);
        CU_ASSERT_STRING_EQUAL(n->devices[0]->rail, first);
        CU_ASSERT_STRING_EQUAL(n->devices[1]->rail, second);
        fp8ctl__v1__node__free_unpacked(n, NULL);
}
#define EXPECT_RAILS(w, first, second) expect_rails(w, first, second, __LINE__)

TEST(ports_that_are_well_and_nearest_are_a_devices_rail) {
        struct world w;
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;
        Fp8ctl__V1__NodeNic nics[4], *list[4];
        uint32_t ports[] = { 1, 0, 70000, 2 }, links[] = { 18, 17, 16 }, domain[] = { 1, 1, 1 };
        static const char *const names[] = { "mlx5_1", "mlx5_0", "bad name", "mlx5_2" };
        static const char *const paths[] = { "pci0000:20/0000:20:01.0/0000:21:00.0", "pci0000:10/0000:10:01.0/0000:11:00.0", "pci0000:10/0000:10:01.0/0000:12:00.0", "/etc/passwd" };
        Fp8ctl__V1__Node *n;

        world_start(&w, false);
        for (size_t i = 0; i < 4; i++) {
                list[i] = &nics[i];
                fp8ctl__v1__node_nic__init(&nics[i]);
                nics[i].name = (char *)names[i];
                nics[i].path = (char *)paths[i];
                nics[i].ports = ports;
                nics[i].n_ports = 4;
        }
        w.paths[0] = "pci0000:10/0000:10:02.0/0000:15:00.0";
        w.paths[1] = "pci0000:20/0000:20:02.0/0000:25:00.0";
        w.nics = list;
        w.n_nics = 4;
        world_attach(&w, 1, "a");
        EXPECT_RAILS(&w, "", ""); /* nobody has said that a port is well */
        n = world_node(&w, "a");
        CU_ASSERT_EQUAL_FATAL(n->n_nics, 3); /* in PCI order; nonsense is left out */
        CU_ASSERT_STRING_EQUAL(n->nics[0]->path, "");
        CU_ASSERT_STRING_EQUAL(n->nics[1]->name, "mlx5_0");
        CU_ASSERT_STRING_EQUAL(n->nics[2]->name, "mlx5_1");
        CU_ASSERT(n->nics[2]->rail == 2 && n->nics[2]->n_ports == 2 && n->nics[2]->n_used_ports == 0);
        CU_ASSERT_STRING_EQUAL(n->devices[1]->path, w.paths[1]);
        fp8ctl__v1__node__free_unpacked(n, NULL);
        world_say_check(&w, 1, "ib-port", "mlx5_0/1", "ok", true);
        EXPECT_RAILS(&w, "=mlx5_0:1", "=mlx5_0:1");
        world_say_check(&w, 1, "ib-port", "mlx5_1/1", "ok", true);
        world_say_check(&w, 1, "ib-port", "mlx5_1/2", "absent", true);
        EXPECT_RAILS(&w, "=mlx5_0:1", "=mlx5_1:1");
        world_say_check(&w, 1, "ib-port", "mlx5_1/2", "ok", true);
        EXPECT_RAILS(&w, "=mlx5_0:1", "=mlx5_1:1,mlx5_1:2");
        world_say_check(&w, 1, "ib-port", "mlx5_0/1", "warn", true); /* down */
        EXPECT_RAILS(&w, "=mlx5_1:1,mlx5_1:2", "=mlx5_1:1,mlx5_1:2");
        world_say_check(&w, 1, "ib-counters", "mlx5_1/2", "evict", true);
        EXPECT_RAILS(&w, "=mlx5_1:1", "=mlx5_1:1");
        world_say_check(&w, 1, "ib-port", "mlx5_0/1", "ok", true);
        EXPECT_RAILS(&w, "=mlx5_0:1", "=mlx5_1:1");
        r.device_nvlinks = links;
        r.device_nvlink_domain = domain;
        r.n_device_nvlinks = 3;
        r.n_device_nvlink_domain = 2;
        world_health(&w, 1, &r);
        n = world_node(&w, "a");
        CU_ASSERT(n->devices[1]->nvlinks == 17 && n->devices[1]->nvlink_domain == 1);
        fp8ctl__v1__node__free_unpacked(n, NULL);
        world_stop(&w);
}

/* The rails of the plan that was sent last, "one two ...". */
static void sent_rails(const struct world *w, char *buf, size_t size) {
        size_t len = 0;

        buf[0] = 0;
        for (size_t i = w->n_sent; i-- > 0 && len == 0;)
                for (size_t r = 0; w->sent[i].m->rank_plan && r < w->sent[i].m->rank_plan->n_peers; r++)
                        len += (size_t)snprintf(buf + len, size - len, "%s%s", r ? " " : "", w->sent[i].m->rank_plan->peers[r]->rail);
}

TEST(a_plan_gives_each_rank_its_rail_and_its_process_keeps_it) {
        struct world w;
        Fp8ctl__V1__NodeNic nics[2] = { FP8CTL__V1__NODE_NIC__INIT, FP8CTL__V1__NODE_NIC__INIT }, *list[] = { &nics[0], &nics[1] };
        Fp8ctl__V1__SubmitReply *told;
        Fp8ctl__V1__Job *j;
        uint32_t port = 1;
        uint64_t id;
        char buf[400];

        world_start(&w, false);
        nics[0].name = (char *)"mlx5_0";
        nics[0].path = (char *)"pci0000:10/0000:10:01.0/0000:11:00.0";
        nics[1].name = (char *)"mlx5_1";
        nics[1].path = (char *)"pci0000:20/0000:20:01.0/0000:21:00.0";
        nics[0].ports = nics[1].ports = &port;
        nics[0].n_ports = nics[1].n_ports = 1;
        w.paths[0] = "pci0000:10/0000:10:02.0/0000:15:00.0";
        w.paths[1] = "pci0000:20/0000:20:02.0/0000:25:00.0";
        w.nics = list;
        w.n_nics = 2;
        for (uint64_t s = 1; s <= 2; s++) {
                world_attach(&w, s, s == 1 ? "a" : "b");
                world_say_check(&w, s, "ib-port", "mlx5_0/1", "ok", true);
                world_say_check(&w, s, "ib-port", "mlx5_1/1", "ok", true);
        }
        world_submit(&w, "", 2, 1, "", true, &world_admin);
        told = fp8ctl__v1__submit_reply__unpack(NULL, w.reply_len, w.reply);
        CU_ASSERT_FATAL(told != NULL && told->plan && told->plan->n_ranks == 4);
        CU_ASSERT_STRING_EQUAL(told->plan->ranks[1]->rail, "=mlx5_1:1");
        CU_ASSERT(told->plan->ring_hops == 2 && told->plan->ring_crossings == 0 && told->plan->split_groups == 0);
        fp8ctl__v1__submit_reply__free_unpacked(told, NULL);
        world_submit(&w, "", 2, 1, "", false, &world_admin);
        id = world_submitted(&w);
        world_pump(&w);
        sent_rails(&w, buf, sizeof(buf));
        CU_ASSERT_STRING_EQUAL(buf, "=mlx5_0:1 =mlx5_1:1 =mlx5_0:1 =mlx5_1:1");
        world_say_check(&w, 1, "ib-port", "mlx5_1/1", "warn", true); /* ridden out: its process has it for good */
        j = world_job(&w, id);
        CU_ASSERT_FATAL(j != NULL && j->plan && j->plan->n_ranks == 4);
        CU_ASSERT_STRING_EQUAL(j->plan->ranks[1]->rail, "=mlx5_1:1");
        CU_ASSERT_EQUAL(j->plan->ring_crossings, 1);
        CU_ASSERT_EQUAL(j->state, FP8CTL__V1__JOB_STATE__RUNNING);
        fp8ctl__v1__job__free_unpacked(j, NULL);
        world_exited(&w, 1, "killed by signal 9"); /* a new process gets what is well now, the others keep theirs */
        world_pump(&w);
        sent_rails(&w, buf, sizeof(buf));
        CU_ASSERT_STRING_EQUAL(buf, "=mlx5_0:1 =mlx5_0:1 =mlx5_0:1 =mlx5_1:1");
        world_stop(&w);
}

TEST(what_changes_on_a_node_is_told_also_over_a_reboot_and_a_controllers_restart) {
        struct world w;
        char before[64], after[64];

        four_nodes(&w);
        say(&w, 1, "6.1", "535", "s1");
        say(&w, 1, "6.1", "535", "s1");
        CU_ASSERT(event_says(&w, "node_changed", ""));
        say(&w, 1, "6.2", "535", "s9"); /* a swapped part too */
        CU_ASSERT(event_says(&w, "node_changed", "a: gpu0.serial was 's1', is 's9'; kernel was '6.1', is '6.2'"));
        fingerprint(&w, "a", before);
        world_restart(&w);
        fingerprint(&w, "a", after);
        CU_ASSERT_STRING_EQUAL(before, after);
        world_attach(&w, 5, "a");
        say(&w, 5, "6.2", NULL, "s9");
        CU_ASSERT(event_says(&w, "node_changed", "gpu.driver was '535', is 'none'"));
        world_stop(&w);
}

TEST(the_one_that_differs_from_most_is_named) {
        struct world w;

        four_nodes(&w);
        say(&w, 1, "6.1", "535", "s1");
        say(&w, 2, "6.1", "550", "s2");
        CU_ASSERT(event_says(&w, "node_differs", "")); /* of two nobody knows */
        say(&w, 3, "6.1", "535", "s3");
        CU_ASSERT(event_says(&w, "node_differs", ""));
        say(&w, 4, "6.2", NULL, "s4");
        CU_ASSERT(event_says(&w, "node_differs", "")); /* two of four are no majority */
        say(&w, 2, "6.1", "535", "s2");
        CU_ASSERT(event_says(&w, "node_differs", ""));
        say(&w, 4, "6.3", NULL, "s4");
        CU_ASSERT(event_says(&w, "node_differs", "d is made otherwise than 3 of 4 nodes of its kind: gpu.driver 'none' (there '535'); kernel '6.3' (there '6.1')"));
        world_stop(&w);
}

TEST(a_job_that_wants_nodes_made_alike_waits_for_them) {
        struct world w;
        uint64_t id;
        Fp8ctl__V1__Job *j;

        world_start(&w, false);
        world_attach(&w, 1, "a");
        world_attach(&w, 2, "b");
        say(&w, 1, "6.1", NULL, NULL);
        say(&w, 2, "6.2", NULL, NULL);
        world_submit(&w, "", 2, 1, ", \"parallel.equal_nodes\": true", false, &world_admin);
        CU_ASSERT_EQUAL_FATAL(w.status, 0);
        id = world_submitted(&w);
        world_pump(&w);
        j = world_job(&w, id);
        CU_ASSERT_EQUAL(j->state, FP8CTL__V1__JOB_STATE__PENDING);
        CU_ASSERT_PTR_NOT_NULL(strstr(j->reason, "made alike"));
        fp8ctl__v1__job__free_unpacked(j, NULL);
        say(&w, 2, "6.1", NULL, NULL);
        j = world_job(&w, id);
        CU_ASSERT_EQUAL(j->state, FP8CTL__V1__JOB_STATE__RUNNING);
        fp8ctl__v1__job__free_unpacked(j, NULL);
        world_stop(&w);
}

static void expect_memory(struct world *w, const char *name, uint64_t first, uint64_t second) {
        Fp8ctl__V1__Node *n = world_node(w, name);

        CU_ASSERT_EQUAL(n->devices[0]->memory_bytes, first);
        CU_ASSERT_EQUAL(n->devices[1]->memory_bytes, second);
        fp8ctl__v1__node__free_unpacked(n, NULL);
}

TEST(memory_of_gpus_is_what_their_library_says_and_a_processors_the_hosts) {
        struct world w;
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;
        uint64_t bytes[] = { UINT64_C(80) << 30, 0, 5 };
        Fp8ctl__V1__Node *n;
        uint64_t host[2];

        world_start(&w, false);
        world_attach(&w, 1, "a");
        w.device_kind = "cuda";
        world_attach(&w, 2, "b");
        n = world_node(&w, "a");
        host[0] = n->devices[0]->memory_bytes;
        host[1] = n->devices[1]->memory_bytes;
        fp8ctl__v1__node__free_unpacked(n, NULL);
        r.device_memory_bytes = bytes;
        r.n_device_memory_bytes = 3;
        world_health(&w, 1, &r);
        world_health(&w, 2, &r);
        expect_memory(&w, "a", host[0], host[1]);
        expect_memory(&w, "b", bytes[0], host[1]); /* 0: it does not know */
        world_restart(&w);
        expect_memory(&w, "b", bytes[0], host[1]);
        world_stop(&w);
}

TEST(nothing_that_a_worker_says_of_itself_can_harm) {
        struct world w;
        Fp8ctl__V1__HealthReport r = FP8CTL__V1__HEALTH_REPORT__INIT;
        static Fp8ctl__V1__NodeFact list[2000], *ptrs[2000];
        char key[300], before[64], after[64];
        Fp8ctl__V1__Node *n;

        four_nodes(&w);
        say(&w, 1, "6.1", "535", "s1");
        fingerprint(&w, "a", before);
        memset(key, 'k', sizeof(key) - 1);
        key[sizeof(key) - 1] = 0;
        for (size_t i = 0; i < 2000; i++) {
                fp8ctl__v1__node_fact__init(&list[i]);
                list[i].key = i == 0 ? (char *)"" : i == 1 ? (char *)"twice" : i == 2 ? (char *)"twice" : key;
                list[i].value = i == 1 ? (char *)"x\x1b[31m\n" : key;
                ptrs[i] = &list[i];
        }
        r.facts = ptrs;
        r.n_facts = 2000;
        world_health(&w, 1, &r);
        fingerprint(&w, "a", after);
        CU_ASSERT_STRING_EQUAL(before, after); /* too many: none is taken */
        r.n_facts = 1000;
        world_health(&w, 1, &r);
        n = world_node(&w, "a");
        CU_ASSERT_EQUAL_FATAL(n->n_facts, 2);
        CU_ASSERT_EQUAL(strlen(n->facts[0]->key), 63);
        CU_ASSERT_STRING_EQUAL(n->facts[1]->key, "twice");
        fp8ctl__v1__node__free_unpacked(n, NULL);
        world_stop(&w);
}

TEST_MAIN("node_facts")
