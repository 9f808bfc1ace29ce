/* SPDX-License-Identifier: Apache-2.0 */
/* Processes kept ready to become ranks: where they are, whose devices they take, and what is not waited for when they are there. */
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define S(x) FP8CTL__V1__JOB_STATE__##x
#define TOLD(x) FP8CTL__V1__CONTROLLER_MESSAGE__BODY_##x
#define STATUS(x) FP8CTL__V1__STANDBY_STATUS__STATE__##x

#define TWO ", \"recovery\": {\"standby\": 2}"

/* The newest plan for this session. */
static const Fp8ctl__V1__StandbyPlan *planned(const struct world *w, uint64_t session) {
        for (size_t i = w->n_sent; i-- > 0;)
                if (w->sent[i].session == session && w->sent[i].m->body_case == TOLD(STANDBY_PLAN))
                        return w->sent[i].m->standby_plan;
        return NULL;
}

static void say(struct world *w, uint64_t session, const Fp8ctl__V1__Standby *s, Fp8ctl__V1__StandbyStatus__State state) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__StandbyStatus x = FP8CTL__V1__STANDBY_STATUS__INIT;

        x.job_id = w->ranks[0].job;
        x.number = s->number;
        x.device = s->device;
        x.warm = s->warm;
        x.state = state;
        x.dp = 2;
        x.cause = (char *)"was killed";
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_STANDBY_STATUS;
        m.standby_status = &x;
        controller_worker_message(w->c, session, &m);
        world_pump(w);
}

static uint32_t state_of(struct world *w, uint64_t id) {
        Fp8ctl__V1__Job *j = world_job(w, id);
        uint32_t state = j ? j->state : 0;

        if (j)
                fp8ctl__v1__job__free_unpacked(j, NULL);
        return state;
}

/* Four ranks on a and b; c is spare. Its two devices have warm ones, a and b the loaded program. */
static uint64_t with_spare(struct world *w, const char *more) {
        uint64_t id = world_start_job(w, more);

        world_attach(w, 3, "c");
        world_pump(w);
        return id;
}

TEST(warm_ones_on_the_spare_node_and_loaded_ones_where_it_runs) {
        struct world w;

        with_spare(&w, TWO);
        for (uint64_t session = 1; session <= 3; session++) {
                const Fp8ctl__V1__StandbyPlan *p = planned(&w, session);

                CU_ASSERT_PTR_NOT_NULL_FATAL(p);
                CU_ASSERT_EQUAL(p->n_standbys, 2);
                for (size_t i = 0; i < p->n_standbys; i++)
                        CU_ASSERT_EQUAL(p->standbys[i]->warm, session == 3);
        }
        CU_ASSERT_NOT_EQUAL(planned(&w, 3)->standbys[0]->device, planned(&w, 3)->standbys[1]->device);
        world_stop(&w);
}

TEST(none_where_none_are_asked_for) {
        struct world w;

        with_spare(&w, "");
        CU_ASSERT_EQUAL(world_told(&w, 0, TOLD(STANDBY_PLAN), 0, 0), 0);
        world_stop(&w);
}

TEST(a_node_that_hung_up_is_not_waited_for) {
        struct world w;
        uint64_t id = with_spare(&w, TWO);
        size_t since = w.n_sent;

        controller_worker_closed(w.c, 2);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(START_RANKS), 0, 0), 0); /* a stream alone may break */
        world_hangs_up(&w, 0, 2);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(START_RANKS), 3, 0), 1); /* no time has passed */
        CU_ASSERT_EQUAL(state_of(&w, id), S(RUNNING));
        /* Its devices are not free before it says so, and what still lives there is killed. */
        since = w.n_sent;
        world_submit(&w, "other", 1, 2, "", false, &world_admin);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(START_RANKS), 0, 0), 0);
        world_stop(&w);
}

TEST(a_connection_that_ended_while_the_worker_is_there_is_its_to_explain) {
        struct world w;
        size_t since;

        with_spare(&w, TWO);
        since = w.n_sent;
        world_hangs_up(&w, 0, 2);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(START_RANKS), 0, 0), 0);
        world_stop(&w);
}

TEST(without_free_devices_the_lease_is_waited_for) {
        struct world w;
        uint64_t id = world_start_job(&w, TWO);
        size_t since = w.n_sent;

        world_hangs_up(&w, 0, 2);
        controller_worker_closed(w.c, 2);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(START_RANKS), 0, 0), 0);
        CU_ASSERT_NOT_EQUAL(state_of(&w, id), S(PENDING));
        world_stop(&w);
}

TEST(a_job_that_waits_gets_their_devices_once_they_are_gone) {
        struct world w;
        Fp8ctl__V1__Standby was[2];
        size_t since;

        with_spare(&w, TWO);
        was[0] = *planned(&w, 3)->standbys[0];
        was[1] = *planned(&w, 3)->standbys[1];
        say(&w, 3, &was[0], STATUS(READY));
        since = w.n_sent;
        world_submit(&w, "other", 1, 2, "", false, &world_admin);
        world_pump(&w);
        CU_ASSERT_EQUAL(planned(&w, 3)->n_standbys, 0);
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(START_RANKS), 0, 0), 0); /* their memory is not free yet */
        say(&w, 3, &was[0], STATUS(GONE));
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(START_RANKS), 0, 0), 0);
        say(&w, 3, &was[1], STATUS(GONE));
        CU_ASSERT_EQUAL(world_told(&w, since, TOLD(START_RANKS), 3, 0), 1);
        world_stop(&w);
}

TEST(a_dead_one_is_replaced_but_not_at_once_and_later_each_time) {
        struct world w;
        char buf[300];

        with_spare(&w, TWO);
        for (uint64_t wait = 1000; wait <= 4000; wait *= 2) {
                Fp8ctl__V1__Standby was = *planned(&w, 3)->standbys[1];
                size_t since = w.n_sent;

                say(&w, 3, &was, STATUS(GONE));
                CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "standby_lost", buf, sizeof(buf)), "was killed"));
                world_pass(&w, wait - 200);
                CU_ASSERT_EQUAL(world_told(&w, since, TOLD(STANDBY_PLAN), 3, 0), 0);
                world_pass(&w, 400);
                CU_ASSERT_EQUAL(world_told(&w, since, TOLD(STANDBY_PLAN), 3, 0), 1);
                CU_ASSERT_EQUAL(planned(&w, 3)->n_standbys, 2);
                CU_ASSERT_TRUE(planned(&w, 3)->standbys[1]->number > was.number);
        }
        world_stop(&w);
}

TEST(they_end_with_their_job) {
        struct world w;
        Fp8ctl__V1__CancelJobRequest q = FP8CTL__V1__CANCEL_JOB_REQUEST__INIT;

        q.id = with_spare(&w, TWO);
        q.now = true;
        controller_request(w.c, 9, REQ_CANCEL_JOB, &q.base, &world_admin);
        world_pump(&w);
        for (uint64_t session = 1; session <= 3; session++)
                CU_ASSERT_EQUAL(planned(&w, session)->n_standbys, 0);
        world_stop(&w);
}

TEST(a_new_controller_ends_those_of_which_it_knows_no_job) {
        struct world w;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__WorkerHello h = FP8CTL__V1__WORKER_HELLO__INIT;
        Fp8ctl__V1__Node n = FP8CTL__V1__NODE__INIT;
        Fp8ctl__V1__NodeDevice d = FP8CTL__V1__NODE_DEVICE__INIT, *ds[] = { &d };
        Fp8ctl__V1__StandbyStatus x = FP8CTL__V1__STANDBY_STATUS__INIT, *list[] = { &x };

        world_start(&w, false);
        d.kind = (char *)"cpu";
        n.name = (char *)"c";
        n.devices = ds;
        n.n_devices = 1;
        x.job_id = 77;
        x.number = 5;
        x.warm = true;
        h.protocol_min = h.protocol_max = 1;
        h.node = &n;
        h.standbys = list;
        h.n_standbys = 1;
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_HELLO;
        m.hello = &h;
        controller_worker_opened(w.c, 1, &world_admin);
        controller_worker_message(w.c, 1, &m);
        CU_ASSERT_PTR_NOT_NULL_FATAL(planned(&w, 1));
        CU_ASSERT_EQUAL(planned(&w, 1)->job_id, 77);
        CU_ASSERT_EQUAL(planned(&w, 1)->n_standbys, 0);
        world_stop(&w);
}

TEST_MAIN("standby")
