/* SPDX-License-Identifier: Apache-2.0 */
/* Who holds the others up, out of the flight recorders of all ranks: tp 2, pp 2, dp 2, rank = (pp * 2 + dp) * 2 + tp. */
#include <stdlib.h>
#include <string.h>

#include "daemon/core/stall.h"
#include "proto/flight.h"
#include "tests/test.h"

enum { RANKS = 8 };

static const struct stall_shape shape = { 2, 2, 2 };

struct bench {
        Fp8ctl__V1__RankDiagnosis d[RANKS], *ranks[RANKS];
        Fp8ctl__V1__RecordedCall call[RANKS], *calls[RANKS];
        uint64_t met[RANKS][N_FLIGHT_GROUPS];
        Fp8ctl__V1__Diagnosis got;
};

/* All have left collective 10 of each group 0.1 s ago and compute; the timeout is 2 s. */
static void begin(struct bench *b) {
        memset(b, 0, sizeof(*b));
        for (int i = 0; i < RANKS; i++) {
                Fp8ctl__V1__RankDiagnosis *d = &b->d[i];
                Fp8ctl__V1__RecordedCall *c = &b->call[i];

                fp8ctl__v1__rank_diagnosis__init(d);
                fp8ctl__v1__recorded_call__init(c);
                for (int g = 0; g < N_FLIGHT_GROUPS; g++)
                        b->met[i][g] = 10;
                c->op = (char *)"all_reduce";
                c->group = FLIGHT_WORLD;
                c->number = 10;
                c->to = c->from = -1;
                c->entered_ms = 110;
                c->left_ms = 100;
                b->calls[i] = c;
                d->rank = (uint32_t)i;
                d->node = (char *)(i < 4 ? "a" : "b");
                d->state = (char *)"sleeps";
                d->phase = (char *)"forward";
                d->phase_ms = 100;
                d->epoch = 3;
                d->timeout_ms = 2000;
                d->met = b->met[i];
                d->n_met = N_FLIGHT_GROUPS;
                d->calls = &b->calls[i];
                d->n_calls = 1;
                b->ranks[i] = d;
        }
        fp8ctl__v1__diagnosis__init(&b->got);
}

static void enters(struct bench *b, int r, uint32_t group, uint64_t number, double ms) {
        b->call[r].group = group;
        b->call[r].number = number;
        b->call[r].entered_ms = ms;
        b->call[r].left_ms = -1;
        b->met[r][group] = number;
}

static void still(struct bench *b, int r, double ms) {
        b->call[r].left_ms = ms;
        b->call[r].entered_ms = ms + 1;
        b->d[r].phase_ms = ms;
}

static void receives(struct bench *b, int r, int from, double ms) {
        enters(b, r, FLIGHT_PP, 0, ms);
        b->met[r][FLIGHT_PP] = 10;
        b->call[r].op = (char *)"recv";
        b->call[r].from = from;
}

static void expect(struct bench *b, int culprit, bool stuck, const char *says, int line) {
        int r = stall_diagnose(&shape, b->ranks, &b->got);
        bool as_expected = r == 0 && b->got.culprit == culprit && b->got.stuck == stuck && strstr(b->got.verdict, says);

        if (!as_expected)
                printf("\n    line %d: found rank %d%s, '%s', expected rank %d%s and '%s'\n", line, b->got.culprit, b->got.stuck ? ", stuck" : "", b->got.verdict, culprit, stuck ? ", stuck" : "", says);
        CU_ASSERT(as_expected);
        stall_done(&b->got);
}
#define EXPECT(b, culprit, stuck, says) expect(b, culprit, stuck, says, __LINE__)

TEST(a_calm_job) {
        struct bench b;

        begin(&b);
        EXPECT(&b, -1, false, "nobody waits for anybody");
        begin(&b);
        for (int i = 0; i < 7; i++)
                enters(&b, i, FLIGHT_WORLD, 11, 30);
        EXPECT(&b, -1, false, "nobody waits for long: the longest for 30 ms, in all_reduce of world");
}

TEST(the_one_that_has_not_entered) {
        struct bench b;

        for (int who = 0; who < RANKS; who++) {
                char says[64];

                begin(&b);
                for (int i = 0; i < RANKS; i++)
                        if (i != who)
                                enters(&b, i, FLIGHT_WORLD, 11, 2000);
                still(&b, who, 2100);
                snprintf(says, sizeof(says), "rank %d on %s has not moved for 2.1 s", who, who < 4 ? "a" : "b");
                EXPECT(&b, who, true, says);
        }
}

/* The waits of one rank are another's, in groups of all kinds: only where the chains end somebody is to blame. */
TEST(chains_through_groups_end_at_the_right_rank) {
        struct bench b;

        begin(&b);
        still(&b, 2, 2500);                     /* tp peer of 3 */
        enters(&b, 3, FLIGHT_TP, 11, 2400);
        receives(&b, 6, 2, 2300);               /* the stage after them */
        receives(&b, 7, 3, 2300);
        enters(&b, 0, FLIGHT_DP, 11, 2200);     /* waits for 2 */
        enters(&b, 1, FLIGHT_DP, 11, 2200);     /* waits for 3, who waits for 2 */
        enters(&b, 4, FLIGHT_DP, 11, 2100);     /* waits for 6, who waits for 2 */
        enters(&b, 5, FLIGHT_WORLD, 11, 2000);  /* waits for all */
        EXPECT(&b, 2, true, "rank 2 on a has not moved for 2.5 s (sleeps, phase forward); it has not entered all_reduce 11 of tp, in which 1 rank waits, the first for 2.4 s; 7 ranks wait for it");
}

TEST(a_slow_one_is_told_from_a_stuck_one) {
        struct bench b;

        begin(&b);
        for (int i = 0; i < 7; i++)
                enters(&b, i, FLIGHT_WORLD, 11, 9000); /* far longer than the timeout, but rank 7 moves */
        still(&b, 7, 700);
        EXPECT(&b, 7, false, "rank 7 on b is slow, not stuck: it moved 0.7 s ago");
        begin(&b);
        for (int i = 0; i < 7; i++)
                enters(&b, i, FLIGHT_WORLD, 11, 9000);
        still(&b, 7, 9100);
        b.call[7].left_ms = 200; /* its phase is old, yet it has just left a collective of its own group */
        EXPECT(&b, 7, false, "slow, not stuck");
}

TEST(a_stopped_or_dead_process_is_named_inside_a_collective_too) {
        struct bench b;

        begin(&b);
        for (int i = 0; i < RANKS; i++)
                enters(&b, i, FLIGHT_WORLD, 11, 2000);
        EXPECT(&b, -1, false, "8 ranks are inside all_reduce 11 of world for 2.0 s and no member is missing");
        b.d[5].state = (char *)"stopped";
        EXPECT(&b, 5, true, "rank 5 on b is stopped (by a signal, in phase forward); it is inside all_reduce of world");
        b.d[1].state = (char *)"dead";
        b.d[1].note = (char *)"killed by SIGSEGV";
        EXPECT(&b, 1, true, "rank 1 on a is dead: killed by SIGSEGV");
}

TEST(others_of_another_epoch_and_nodes_that_are_silent) {
        struct bench b;

        begin(&b);
        for (int i = 0; i < 7; i++)
                enters(&b, i, FLIGHT_WORLD, 1, 2000);
        b.d[7].epoch = 2; /* has not come into this epoch: its numbers count nothing */
        still(&b, 7, 2500);
        EXPECT(&b, 7, true, "rank 7 on b has not moved for 2.5 s");
        b.d[7].state = (char *)"unknown";
        b.d[7].n_met = b.d[7].n_calls = 0;
        EXPECT(&b, 7, false, "rank 7 on b is on a node that does not answer");
}

TEST_MAIN("stall")
