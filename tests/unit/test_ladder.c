/* SPDX-License-Identifier: Apache-2.0 */
/* What is done about a failure: the table, its rungs as they are taken, and its page. */
#include "base/cleanup.h"
#include "base/file.h"
#include "daemon/core/ladder.h"
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define S(x) FP8CTL__V1__JOB_STATE__##x
#define TOLD(x) FP8CTL__V1__CONTROLLER_MESSAGE__BODY_##x

static const Fp8ctl__V1__StartRanks *last_start(const struct world *w, uint64_t *ret_session) {
        for (size_t i = w->n_sent; i-- > 0;)
                if (w->sent[i].m->body_case == TOLD(START_RANKS)) {
                        *ret_session = w->sent[i].session;
                        return w->sent[i].m->start_ranks;
                }
        return NULL;
}

/* One dies, and where it is started. */
static uint32_t dies(struct world *w, uint32_t rank, const char *cause, uint64_t *ret_session) {
        const Fp8ctl__V1__StartRanks *s;

        world_exited(w, rank, cause);
        s = last_start(w, ret_session);
        CU_ASSERT_EQUAL_FATAL(s->n_ranks, 1);
        CU_ASSERT_EQUAL(s->ranks[0]->rank, rank);
        return s->ranks[0]->device;
}

/* Tensor groups stay on one node, and these have no third device. */
TEST(in_place_once_and_again_when_there_is_nothing_else) {
        struct world w;
        uint64_t session, id = world_start_job(&w, "");
        Fp8ctl__V1__Job *j;

        CU_ASSERT_EQUAL(dies(&w, 1, "killed by SIGSEGV", &session), 1);
        CU_ASSERT_EQUAL(session, 1);
        world_pump(&w);
        CU_ASSERT_EQUAL(dies(&w, 1, "killed by SIGBUS", &session), 1); /* the group's other rank lives there */
        CU_ASSERT_EQUAL(session, 1);
        world_pump(&w);
        j = world_job(&w, id);
        CU_ASSERT_EQUAL(j->state, S(RUNNING));
        fp8ctl__v1__job__free_unpacked(j, NULL);
        world_stop(&w);
}

static void attach_three(struct world *w) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__WorkerHello h = FP8CTL__V1__WORKER_HELLO__INIT;
        Fp8ctl__V1__Node n = FP8CTL__V1__NODE__INIT;
        Fp8ctl__V1__NodeDevice d[3], *ds[3];

        for (uint32_t i = 0; i < 3; i++) {
                fp8ctl__v1__node_device__init(&d[i]);
                d[i].index = i;
                d[i].kind = (char *)"cpu";
                ds[i] = &d[i];
        }
        n.name = (char *)"a";
        n.devices = ds;
        n.n_devices = 3;
        h.protocol_min = h.protocol_max = 1;
        h.node = &n;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HELLO;
        m.hello = &h;
        controller_worker_opened(w->c, 1, &world_admin);
        controller_worker_message(w->c, 1, &m);
}

TEST(elsewhere_when_its_device_took_two_processes) {
        struct world w;
        uint64_t session;

        world_start(&w, false);
        attach_three(&w);
        world_submit(&w, "one", 1, 1, ", \"recovery\": {\"same_cause_limit\": 9}", false, &world_admin);
        world_pump(&w);
        CU_ASSERT_EQUAL(dies(&w, 1, "killed by SIGSEGV", &session), 1);
        world_pump(&w);
        CU_ASSERT_EQUAL(dies(&w, 1, "killed by SIGSEGV", &session), 2);
        world_pump(&w);
        CU_ASSERT_EQUAL(dies(&w, 1, "killed by SIGSEGV", &session), 2); /* the first one there */
        world_pump(&w);
        world_progress(&w, 1);
        CU_ASSERT_EQUAL(dies(&w, 1, "killed by SIGSEGV", &session), 2); /* a step gained: the count is anew */
        world_stop(&w);
}

TEST(a_device_that_is_kept_for_one_is_not_anothers) {
        struct world w;
        const Fp8ctl__V1__StartRanks *s;
        uint64_t session;

        world_start(&w, false);
        attach_three(&w);
        world_submit(&w, "one", 1, 1, ", \"recovery\": {\"in_place\": 0, \"same_cause_limit\": 9}", false, &world_admin);
        world_pump(&w);
        CU_ASSERT_EQUAL(dies(&w, 1, "killed by SIGSEGV", &session), 2);
        world_pump(&w);
        CU_ASSERT_EQUAL(dies(&w, 1, "killed by SIGSEGV", &session), 1); /* 0 is the other's */
        controller_worker_closed(w.c, 1);
        for (uint32_t r = 0; r < WORLD_RANKS; r++)
                w.ranks[r] = (struct world_rank){ 0 };
        attach_three(&w); /* without a rank: rank 0 stays on its device, though nothing lives there, and rank 1 does not get it */
        s = last_start(&w, &session);
        CU_ASSERT_EQUAL_FATAL(s->n_ranks, 2);
        CU_ASSERT_NOT_EQUAL(s->ranks[0]->device, s->ranks[1]->device);
        world_stop(&w);
}

TEST(a_cause_that_comes_after_the_recovery_is_told) {
        struct world w;
        struct world_rank old, now;
        char buf[300];

        world_start_job(&w, "");
        old = w.ranks[2];
        world_dying(&w, 2);
        world_pump(&w);
        world_progress(&w, 5);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "recovered", buf, sizeof(buf)), "died"));
        CU_ASSERT_STRING_EQUAL(world_event(&w, "rank_exited", buf, sizeof(buf)), "");
        now = w.ranks[2];
        w.ranks[2] = old;
        world_exited(&w, 2, "exit 3: boom");
        w.ranks[2] = now;
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "rank_exited", buf, sizeof(buf)), "rank 2 (incarnation 3) on b exit 3: boom"));
        world_stop(&w);
}

TEST(the_documentation_is_the_table) {
        static const char begin[] = "<!-- ladder: begin -->\n", end[] = "<!-- ladder: end -->";
        const char *root = getenv("SOURCE_ROOT");
        _cleanup_free_ char *path = file_path("%s/docs/recovery.md", root ? root : "."), *file = NULL, *text = NULL;
        size_t file_len = 0, len = 0;
        char *from, *to;
        struct error e;
        FILE *f;

        ASSERT_OK(file_read(path, 1 << 20, &file, &file_len, &e), e);
        f = open_memstream(&text, &len);
        ladder_print_markdown(f);
        fclose(f);
        from = strstr(file, begin);
        to = from ? strstr(from, end) : NULL;
        CU_ASSERT_PTR_NOT_NULL_FATAL(to);
        *to = '\0';
        if (strcmp(from + strlen(begin), text) != 0)
                printf("    docs/recovery.md, the ladder should be:\n%s", text);
        CU_ASSERT_STRING_EQUAL(from + strlen(begin), text);
}

TEST_MAIN("ladder")
