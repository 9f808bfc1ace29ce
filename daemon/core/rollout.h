/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Canary rollouts: a new version, driver or setting goes to a share of the nodes first, and no further when those that have it fail more often than the others.
 *
 *   rollout.c          the two tables, the walk of a node, stages, the comparison
 *   rollout_request.c  what clients ask for, and what they see
 *   rollout_record.c   what the store keeps
 *   rate_test.c        the comparison's arithmetic
 *
 * One rollout is live (running or stopped) at a time: struct controller's `rollout`; a node that belongs to it points to its entry.  Times are of the wall clock, because they outlive the controller.
 */
#include "daemon/core/core.h"

enum {
        ROLLOUT_STAGES_MAX = 16,
        ROLLOUT_NAME_LEN = 64,
        ROLLOUT_FACT_LEN = 64,
        ROLLOUT_VALUE_LEN = 128,
        ROLLOUT_TEXT_LEN = 400,
        ROLLOUTS_KEPT = 16, /* the newest */
};

enum rollout_state { ROLLOUT_RUNNING, ROLLOUT_STOPPED, ROLLOUT_DONE, ROLLOUT_ABORTED, N_ROLLOUT_STATES };
enum rollout_event { ROLLOUT_E_STAGE, ROLLOUT_E_STOP, ROLLOUT_E_RESUME, ROLLOUT_E_FINISH, ROLLOUT_E_ABORT, N_ROLLOUT_EVENTS };

/* In this order: those before CHANGING are not changed, those from SOAKING to DONE are. */
enum rollout_node_state { RN_PENDING, RN_DRAINING, RN_CHANGING, RN_TESTING, RN_SOAKING, RN_DONE, RN_FAILED, N_RN_STATES };
enum rollout_node_event { RN_E_BEGIN, RN_E_DRAINED, RN_E_BACK, RN_E_CHANGED, RN_E_PASSED, RN_E_SOAKED, RN_E_FAILED, RN_E_AGAIN, N_RN_EVENTS };

extern const struct table rollout_table, rollout_node_table;

/* What is compared: node time and failures of those that are changed, and of those that are not. */
enum rollout_side { SIDE_CHANGED, SIDE_OTHER, SIDE_NONE /* it is being changed, or failed: neither */ };

struct rollout_node {
        struct node *node;
        enum rollout_node_state state;
        char reason[ROLLOUT_TEXT_LEN];
        uint64_t since_ms;        /* in this state */
        uint32_t failures[2];     /* by side */
        uint64_t watched_ms[2];   /* by side, before since_ms */
        uint64_t failed_ms;       /* the newest failure */
        bool again;               /* failed, and the rollout was resumed since: it begins again as soon as it is well, and is not counted */
        uint64_t asked;           /* the session on which it was asked to change or to test itself; 0: not in this life */
        uint64_t relay;           /* number of that test */
};

struct rollout {
        uint64_t id;
        char name[ROLLOUT_NAME_LEN], fact[ROLLOUT_FACT_LEN], value[ROLLOUT_VALUE_LEN], user[NAME_MAX_LEN];
        enum rollout_state state;
        char reason[ROLLOUT_TEXT_LEN], waits[ROLLOUT_TEXT_LEN];
        uint32_t stages[ROLLOUT_STAGES_MAX];
        size_t n_stages, stage;
        uint64_t soak_ms, change_ms, started_ms, ended_ms, counted_ms /* failures and time from then on */;
        double alpha;
        uint32_t max_failed, max_unavailable;
        struct rollout_node *nodes; /* by name */
        size_t n_nodes;
        bool known;               /* its own record was read, not only those of nodes */
        bool compare;             /* a changed node has failed since it was last looked at */
        uint64_t wake;            /* mono ns: it is to be looked at then; 0: not by time alone */
};

struct rollout_sums {
        uint64_t begun, away, changed, failed, forgiven; /* nodes: not pending; draining, changing or testing; soaking or done; failed; of those: to begin again */
        uint32_t failures[2];
        uint64_t watched_ms[2];
        double p;
};

/* rollout.c */
struct rollout_sums rollout_sums(const struct controller *c, const struct rollout *r);
size_t rollout_target(const struct rollout *r); /* so many nodes may have begun in its stage */
void rollout_begin(struct controller *c, struct rollout *r); /* it has nodes; c takes it */
void rollout_stop(struct controller *c, struct rollout *r, const char *why);
void rollout_resume(struct controller *c, struct rollout *r, const char *why);
void rollout_abort(struct controller *c, struct rollout *r, const char *why);
struct rollout *rollout_free(struct rollout *r);
const char *rollout_state_name(int s);
const char *rollout_node_state_name(int s);
bool rollout_live(const struct rollout *r);
int rollout_add(struct controller *c, struct rollout *r); /* by id; -ENOMEM */

/* rollout_request.c */
void rollout_fill(const struct controller *c, const struct rollout *r, Fp8ctl__V1__Rollout *m); /* without nodes; the strings stay the rollout's */
void rollout_node_fill(const struct rollout_node *e, Fp8ctl__V1__RolloutNode *m);

/* rollout_record.c */
void rollout_put(struct controller *c, const struct rollout *r);
void rollout_put_node(struct controller *c, const struct rollout *r, const struct rollout_node *e);
void rollout_delete(struct controller *c, const struct rollout *r);
