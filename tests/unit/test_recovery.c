/* SPDX-License-Identifier: Apache-2.0 */
/* When recovery gives up, and what it loads when a source cannot be loaded. */
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define S(x) FP8CTL__V1__JOB_STATE__##x
#define LOAD(x) FP8CTL__V1__LOAD_SOURCE__KIND__##x
#define FAULT(x) FP8CTL__V1__RANK_FAULT__KIND__##x

static void expect(struct world *w, uint64_t id, int state, uint32_t restarts, const char *reason, int line) {
        Fp8ctl__V1__Job *j = world_job(w, id);
        bool as_expected = j && (int)j->state == state && j->restarts == restarts && strstr(j->reason, reason);

        if (!as_expected)
                printf("\n    line %d: found state %d, %u restarts, '%s', expected %d, %u and '%s'\n", line, j ? (int)j->state : -1, j ? j->restarts : 0, j ? j->reason : "", state, restarts, reason);
        CU_ASSERT(as_expected);
        if (j)
                fp8ctl__v1__job__free_unpacked(j, NULL);
}
#define EXPECT(w, id, state, restarts, reason) expect(w, id, state, restarts, reason, __LINE__)

static void dies(struct world *w, uint32_t r, const char *cause) {
        world_exited(w, r, cause);
        world_pump(w);
}

static void save(struct world *w, uint64_t step) {
        for (uint32_t r = 0; r < 4; r++)
                world_prepared(w, r, step, 1);
        world_pump(w);
}

/* The newest ReleaseJob leaves copies on disks alone. */
static bool released_keeps(const struct world *w) {
        bool keep = false;

        for (size_t i = 0; i < w->n_sent; i++)
                if (w->sent[i].m->body_case == FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB)
                        keep = w->sent[i].m->release_job->keep_local;
        return keep;
}

TEST(copies_of_jobs_that_are_over_or_unknown_are_released) {
        struct world w;
        uint64_t id = world_start_job(&w, ""), jobs[] = { 99, 0 };
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__LocalCopies x = FP8CTL__V1__LOCAL_COPIES__INIT;
        size_t since = w.n_sent;

        jobs[1] = id;
        x.jobs = jobs;
        x.n_jobs = 2;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_LOCAL_COPIES;
        m.local_copies = &x;
        controller_worker_message(w.c, 1, &m);
        CU_ASSERT_EQUAL(world_told(&w, since, FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB, 1, 0), 1); /* 99; this one runs */
        CU_ASSERT_FALSE(released_keeps(&w));
        world_stop(&w);
}

static uint64_t dropped(struct world *w) {
        Fp8ctl__V1__StatusRequest q = FP8CTL__V1__STATUS_REQUEST__INIT;
        Fp8ctl__V1__StatusReply *r;
        uint64_t n;

        controller_request(w->c, 9, REQ_STATUS, &q.base, &world_admin);
        r = fp8ctl__v1__status_reply__unpack(NULL, w->reply_len, w->reply);
        CU_ASSERT_PTR_NOT_NULL(r);
        n = r ? r->dropped_messages : 0;
        if (r)
                fp8ctl__v1__status_reply__free_unpacked(r, NULL);
        return n;
}

/* All that was said up to a death, once more when the job runs on: of its survivors, who are who they were, and of the process that is gone. */
TEST(messages_of_an_old_epoch_change_nothing) {
        struct world w;
        uint64_t id = world_start_job(&w, ""), ops, before;
        size_t said, since;

        save(&w, 10);
        world_hangs_up(&w, 0, 1);
        dies(&w, 1, "killed by SIGKILL");
        said = w.n_said;
        CU_ASSERT(said >= 14); /* ready and running of four ranks, prepared of four, a fault, an exit */
        EXPECT(&w, id, S(RUNNING), 1, "");
        since = w.n_sent;
        ops = w.ops;
        before = dropped(&w);
        world_say_again(&w, said / 2);
        world_say_again(&w, said);
        CU_ASSERT_EQUAL(w.ops, ops);
        for (size_t i = since; i < w.n_sent; i++) /* whoever speaks for a rank and is not it is killed, and nobody else is told anything */
                CU_ASSERT_EQUAL(w.sent[i].m->body_case, FP8CTL__V1__CONTROLLER_MESSAGE__BODY_KILL_RANKS);
        CU_ASSERT(dropped(&w) >= before + 10);
        world_pass(&w, 5000);
        EXPECT(&w, id, S(RUNNING), 1, "");
        world_stop(&w);
}

TEST(the_same_cause_without_a_step_gained_stops_the_job) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        EXPECT(&w, id, S(RUNNING), 0, "");
        dies(&w, 1, "exit 3: no such file");
        dies(&w, 2, "exit 3: no such file");
        EXPECT(&w, id, S(RUNNING), 2, "");
        dies(&w, 1, "exit 3: no such file");
        EXPECT(&w, id, S(FAILED), 2, "3 times the same cause without a step gained: exit 3: no such file");
        world_stop(&w);
}

TEST(a_step_gained_or_another_cause_begins_the_count_anew) {
        struct world w;
        uint64_t id = world_start_job(&w, ", \"recovery\": {\"same_cause_limit\": 2}");

        for (uint64_t step = 1; step <= 5; step++) {
                dies(&w, 1, "exit 3: boom");
                world_progress(&w, step);
        }
        EXPECT(&w, id, S(RUNNING), 5, "");
        dies(&w, 1, "exit 4: bang");
        dies(&w, 1, "exit 5: bang");
        EXPECT(&w, id, S(RUNNING), 7, "");
        dies(&w, 1, "exit 5: bang");
        EXPECT(&w, id, S(FAILED), 7, "2 times the same cause");
        world_stop(&w);
}

/* Workers tell at once of the first step beyond it: until they have, the incident is not over. */
TEST(a_plan_says_which_steps_are_done_again) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        CU_ASSERT_EQUAL(w.best_step, 0);
        w.replicas = UINT64_C(1) << 4;
        world_progress(&w, 7);
        dies(&w, 1, "killed by SIGKILL");
        CU_ASSERT_EQUAL(w.load_step, 4);
        CU_ASSERT_EQUAL(w.best_step, 7);
        dies(&w, 2, "killed by SIGKILL"); /* before any step was new */
        CU_ASSERT_EQUAL(w.best_step, 7);
        EXPECT(&w, id, S(RUNNING), 2, "");
        world_stop(&w);
}

/* A death that was only seen has no cause yet; it is judged when the rank was reaped. */
TEST(a_cause_that_is_told_later_counts) {
        struct world w;
        uint64_t id = world_start_job(&w, ", \"recovery\": {\"same_cause_limit\": 2}");

        dies(&w, 1, "exit 3: boom");
        for (int i = 0; i < 2; i++) {
                struct world_rank old = w.ranks[1], new;

                world_dying(&w, 1);
                EXPECT(&w, id, S(RECOVERING), (uint32_t)(2 + i), "");
                world_pump(&w);
                new = w.ranks[1];
                w.ranks[1] = old;
                world_exited(&w, 1, "killed by SIGSEGV"); /* another cause than the first, then the same again */
                w.ranks[1] = new;
                world_pump(&w);
                if (i == 0)
                        EXPECT(&w, id, S(RUNNING), 2, "");
        }
        EXPECT(&w, id, S(FAILED), 3, "2 times the same cause without a step gained: was killed by SIGSEGV");
        world_stop(&w);
}

TEST(max_restarts_is_a_limit_over_the_whole_job) {
        struct world w;
        uint64_t id = world_start_job(&w, ", \"recovery\": {\"max_restarts\": 2}");

        for (uint64_t step = 1; step <= 2; step++) {
                world_progress(&w, step);
                dies(&w, (uint32_t)step, "exit 3: boom");
        }
        world_progress(&w, 3);
        EXPECT(&w, id, S(RUNNING), 2, "");
        dies(&w, 0, "killed by SIGKILL");
        EXPECT(&w, id, S(FAILED), 2, "recovery.max_restarts (2) used up; rank 0");
        world_stop(&w);
}

/* The plan is lost with the controller: the ranks are found parked, a new epoch begins, and the job's budget is not touched. */
TEST(a_controller_that_dies_does_not_use_up_max_restarts) {
        struct world w;
        uint64_t id;

        world_start(&w, false);
        w.lose_plans = true;
        id = world_run_job(&w, ", \"recovery\": {\"max_restarts\": 0}");
        EXPECT(&w, id, S(STARTING), 0, "");
        world_restart(&w);
        w.lose_plans = false;
        world_return(&w);
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 0, "");
        dies(&w, 0, "killed by SIGKILL");
        EXPECT(&w, id, S(FAILED), 0, "recovery.max_restarts (0) used up");
        world_stop(&w);
}

/* The order to start a rank is lost with the controller, again and again: nothing is wrong with the job. */
TEST(orders_to_start_that_are_lost_with_the_controller_are_no_failure_of_the_job) {
        struct world w;
        uint64_t id = world_start_job(&w, ", \"recovery\": {\"same_cause_limit\": 2}");

        world_progress(&w, 3);
        world_exited(&w, 1, "killed by SIGKILL");
        for (int i = 0; i < 4; i++) {
                world_restart(&w);
                world_return(&w);
                EXPECT(&w, id, S(RECOVERING), 1, "");
        }
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 1, "");
        world_stop(&w);
}

/* It does not park, and what becomes of it says nothing about why: that the others waited for it is the cause. */
TEST(a_stuck_rank_is_killed_at_once_and_that_it_was_stuck_is_the_cause) {
        struct world w;
        uint64_t id = world_start_job(&w, ", \"recovery\": {\"same_cause_limit\": 2}");

        for (uint32_t round = 1; round <= 2; round++) {
                size_t since = w.n_sent;

                world_waits_in_vain(&w, 0, 2);
                world_waits_in_vain(&w, 1, 2);
                world_waits_in_vain(&w, 3, 2);
                world_pump(&w); /* workers tell where their ranks are, which names nobody here */
                CU_ASSERT(world_told(&w, since, FP8CTL__V1__CONTROLLER_MESSAGE__BODY_KILL_RANKS, 2, 0) >= 1);
                if (round == 1)
                        EXPECT(&w, id, S(RUNNING), 1, "");
        }
        EXPECT(&w, id, S(FAILED), 1, "2 times the same cause without a step gained: is stuck");
        world_stop(&w);
}

/* Who said that it waited names another, who waits himself: the recorders tell for whom. Nobody else need say a word. */
TEST(checksums_that_differ_roll_back_to_what_agreed) {
        struct world w;
        uint64_t id = world_start_job(&w, "");
        char text[1200];

        world_progress(&w, 7);
        w.replicas = 1u << 5 | 1u << 6 | 1u << 7;
        w.clean_step = 6;
        world_fault(&w, 2, FAULT(CHECKSUM), 7, "checksums of parameters differ between replicas in step 8");
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 1, "");
        CU_ASSERT_EQUAL(w.load_step, 6);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "checksums_differ", text, sizeof(text)), "suspects: rank 0 on"));
        world_stop(&w);
}

TEST(flight_recorders_name_the_stuck_rank) {
        struct world w;
        uint64_t id = world_start_job(&w, "");
        char text[1200];

        w.stuck_rank = 2;
        w.stuck_ms = 40000;
        world_waits_in_vain(&w, 0, 1);
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 1, "");
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "diagnosis", text, sizeof(text)), "rank 2 on"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "has not moved for 40.0 s"));
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "rank_lost", text, sizeof(text)), "rank 2 (incarnation"));
        world_stop(&w);
}

TEST(a_slow_rank_is_not_killed) {
        struct world w;
        uint64_t id = world_start_job(&w, "");
        size_t since = w.n_sent;
        char text[1200];

        w.stuck_rank = 2;
        w.stuck_ms = 300;
        world_waits_in_vain(&w, 0, 2);
        world_waits_in_vain(&w, 1, 2);
        world_waits_in_vain(&w, 3, 2);
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 1, ""); /* all begin anew, none is killed */
        CU_ASSERT_EQUAL(world_told(&w, since, FP8CTL__V1__CONTROLLER_MESSAGE__BODY_KILL_RANKS, 0, 0), 0);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "diagnosis", text, sizeof(text)), "is slow, not stuck"));
        world_stop(&w);
}

TEST(a_client_asks_where_all_ranks_are) {
        struct world w;
        uint64_t id = world_start_job(&w, "");
        Fp8ctl__V1__DiagnoseJobRequest q = FP8CTL__V1__DIAGNOSE_JOB_REQUEST__INIT;
        Fp8ctl__V1__Diagnosis *d;

        q.id = id;
        w.stuck_rank = 3;
        w.stuck_ms = 1000;
        controller_request(w.c, 9, REQ_DIAGNOSE_JOB, &q.base, &world_ben);
        CU_ASSERT_EQUAL(w.status, 7); /* somebody else's job */
        controller_request(w.c, 9, REQ_DIAGNOSE_JOB, &q.base, &world_admin);
        world_pump(&w);
        d = w.status == 0 ? fp8ctl__v1__diagnosis__unpack(NULL, w.reply_len, w.reply) : NULL;
        CU_ASSERT_PTR_NOT_NULL_FATAL(d);
        CU_ASSERT_EQUAL(d->culprit, 3);
        CU_ASSERT_EQUAL(d->n_ranks, 4);
        CU_ASSERT_EQUAL(d->n_open, 1);
        fp8ctl__v1__diagnosis__free_unpacked(d, NULL);
        /* A worker that says nothing is not waited for for ever. */
        controller_request(w.c, 9, REQ_DIAGNOSE_JOB, &q.base, &world_admin);
        w.pumped = w.n_sent;
        w.now += UINT64_C(7000000000);
        controller_tick(w.c);
        d = w.status == 0 ? fp8ctl__v1__diagnosis__unpack(NULL, w.reply_len, w.reply) : NULL;
        CU_ASSERT_PTR_NOT_NULL_FATAL(d);
        CU_ASSERT_STRING_EQUAL(d->ranks[0]->state, "unknown");
        fp8ctl__v1__diagnosis__free_unpacked(d, NULL);
        world_stop(&w);
}

TEST(an_overflow_without_end_fails_the_job_and_names_it) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        world_progress(&w, 7);
        world_fault(&w, 2, FAULT(OVERFLOW_STOP), 7, "32 steps skipped in a row: layers.3.mlp.up");
        world_pump(&w);
        EXPECT(&w, id, S(FAILED), 0, "rank 2 (incarnation 3) on b: 32 steps skipped in a row: layers.3.mlp.up");
        CU_ASSERT_EQUAL(world_told(&w, 0, FP8CTL__V1__CONTROLLER_MESSAGE__BODY_RELEASE_JOB, 0, 0), 2);
        world_stop(&w);
}

/* Every node lost its memory, by a boot or because the job was taken off them; their disks are there. */
TEST(copies_on_disks_are_loaded_where_memory_is_gone) {
        struct world w;
        uint64_t id;
        char text[1200];

        world_start(&w, false);
        w.local_every = 3;
        id = world_run_job(&w, "");
        CU_ASSERT_EQUAL(world_told(&w, 0, FP8CTL__V1__CONTROLLER_MESSAGE__BODY_INVENTORY_REQUEST, 0, 0), 0); /* there can be none yet */
        save(&w, 3);
        world_progress(&w, 8);
        w.disks = 1 << 2 | 1 << 6;
        dies(&w, 1, "killed by SIGKILL");
        CU_ASSERT(w.load_kind == LOAD(REPLICA) && w.load_step == 6);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "plan", text, sizeof(text)), "from copies on the nodes' disks"));
        w.replicas = 1 << 7;
        dies(&w, 2, "killed by SIGSEGV");
        CU_ASSERT(w.load_kind == LOAD(REPLICA) && w.load_step == 7); /* memory is newer */
        w.replicas = 1 << 6;
        dies(&w, 2, "killed by SIGABRT");
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "plan", text, sizeof(text)), "in replica memory"));
        w.replicas = 1 << 7; /* said by a worker that has not freed it yet: it will */
        controller_worker_closed(w.c, 2);
        world_pass(&w, 12000);
        EXPECT(&w, id, S(PENDING), 4, "needs 4 devices");
        CU_ASSERT(released_keeps(&w));
        world_attach(&w, 2, "b");
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 4, "");
        CU_ASSERT(w.load_kind == LOAD(REPLICA) && w.load_step == 6);
        w.replicas = 0;
        w.bad_replicas = 1 << 6;
        dies(&w, 1, "killed by SIGTERM");
        CU_ASSERT(w.load_kind == LOAD(CHECKPOINT) && w.load_step == 3); /* and not the older copy of step 2 */
        w.disks = 1 << 9;
        w.replicas = w.bad_replicas = 0;
        save(&w, 10);
        world_progress(&w, 11);
        dies(&w, 1, "killed by SIGBUS");
        CU_ASSERT(w.load_kind == LOAD(CHECKPOINT) && w.load_step == 10); /* the commit is newer */
        world_stop(&w);
}

TEST(a_roll_back_loads_the_commit_and_not_replica_memory) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        save(&w, 3);
        world_progress(&w, 7);
        w.replicas = 1 << 6 | 1 << 7;
        world_fault(&w, 2, FAULT(OVERFLOW_ROLLBACK), 7, "8 steps skipped in a row");
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 1, "");
        CU_ASSERT_EQUAL(w.load_kind, LOAD(CHECKPOINT));
        CU_ASSERT_EQUAL(w.load_step, 3);
        dies(&w, 1, "killed by SIGKILL"); /* and what the roll-back undid is not loaded afterwards */
        CU_ASSERT_EQUAL(w.load_kind, LOAD(CHECKPOINT));
        world_stop(&w);
}

TEST(replicas_that_cannot_be_loaded_give_way_to_older_ones_and_to_the_commit) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        save(&w, 3);
        world_progress(&w, 7);
        w.replicas = 1 << 6 | 1 << 7;
        w.bad_replicas = 1 << 7;
        dies(&w, 1, "killed by SIGKILL");
        CU_ASSERT_EQUAL(w.load_kind, LOAD(REPLICA));
        CU_ASSERT_EQUAL(w.load_step, 6);
        EXPECT(&w, id, S(RUNNING), 2, "");
        w.bad_replicas = 1 << 6 | 1 << 7;
        dies(&w, 1, "killed by SIGSEGV");
        CU_ASSERT_EQUAL(w.load_kind, LOAD(CHECKPOINT)); /* and not step 7 again */
        CU_ASSERT_EQUAL(w.load_step, 3);
        EXPECT(&w, id, S(RUNNING), 4, "");
        w.bad_replicas = 0;
        world_progress(&w, 8);
        w.replicas = 1 << 7 | 1 << 8; /* a step was gained: what is in replica memory now is new */
        dies(&w, 1, "killed by SIGABRT");
        CU_ASSERT_EQUAL(w.load_kind, LOAD(REPLICA));
        CU_ASSERT_EQUAL(w.load_step, 8);
        world_stop(&w);
}

TEST(checkpoints_that_cannot_be_loaded_are_tried_one_after_the_other) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        for (uint64_t step = 1; step <= 3; step++)
                save(&w, step);
        world_progress(&w, 3);
        w.bad_checkpoints = 1 << 3 | 1 << 2;
        dies(&w, 1, "killed by SIGKILL");
        CU_ASSERT_EQUAL(w.load_kind, LOAD(CHECKPOINT));
        CU_ASSERT_EQUAL(w.load_step, 1);
        EXPECT(&w, id, S(RUNNING), 3, "");
        world_stop(&w);
}

/* The checkpoints' file system is away: the job is not begun anew, and what it saved is not removed. */
TEST(a_job_none_of_whose_checkpoints_can_be_loaded_fails_and_keeps_them) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        for (uint64_t step = 1; step <= 3; step++)
                save(&w, step);
        world_progress(&w, 3);
        w.bad_checkpoints = 1 << 3 | 1 << 2 | 1 << 1;
        dies(&w, 1, "killed by SIGKILL");
        EXPECT(&w, id, S(FAILED), 3, "no other checkpoint of the job is left to load");
        CU_ASSERT_EQUAL(world_count(&w, "commit/"), 3);
        world_stop(&w);
}

/* The only commit was bad, replica memory helped out, and is lost with its node: the job waits, and tries the commit again before it would begin anew. */
TEST(a_job_that_saved_is_never_begun_anew) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        save(&w, 3);
        world_progress(&w, 3);
        w.bad_checkpoints = 1 << 3;
        w.replicas = 1 << 2;
        dies(&w, 1, "killed by SIGKILL");
        CU_ASSERT_EQUAL(w.load_kind, LOAD(REPLICA));
        CU_ASSERT_EQUAL(w.load_step, 2);
        controller_worker_closed(w.c, 2);
        world_pass(&w, 12000);
        EXPECT(&w, id, S(PENDING), 3, "needs 4 devices");
        w.replicas = w.bad_checkpoints = 0;
        world_attach(&w, 2, "b");
        world_pump(&w);
        EXPECT(&w, id, S(RUNNING), 3, "");
        CU_ASSERT_EQUAL(w.load_kind, LOAD(CHECKPOINT));
        CU_ASSERT_EQUAL(w.load_step, 3);
        world_stop(&w);
}

TEST(a_checkpoint_it_was_submitted_with_that_cannot_be_loaded_fails_the_job) {
        struct world w;
        uint64_t id;

        world_start(&w, false);
        w.from_checkpoint = "/elsewhere/step_00000009.e1.1";
        w.bad_checkpoints = 1; /* its step is not known before it is loaded */
        id = world_run_job(&w, "");
        EXPECT(&w, id, S(FAILED), 0, "/elsewhere/step_00000009.e1.1");
        CU_ASSERT_EQUAL(w.plans, 2); /* one to each node, of one round */
        world_stop(&w);
}

TEST_MAIN("recovery")
