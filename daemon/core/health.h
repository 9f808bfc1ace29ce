/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What is known and decided of a node's health.  Its worker says what its checks find (HealthReport); here it is decided what that means for ranks, and remembered.
 *
 *   health.c         what was said, kept; for how long a node is held; for clients and the store
 *   health_decide.c  from findings and checks to actions: repetition, two alerts for networks, the breaker
 *   xid.c            the table of Xids
 *   node_test.c      `fp8ctl node test`, and tests before a node takes ranks
 */
#include "daemon/core/core.h"
#include "daemon/core/xid.h"
#include "proto/health.h"

enum {
        HEALTH_CHECKS_MAX = 256,  /* of a node: checks times subjects */
        HEALTH_FINDINGS_MAX = 64, /* the newest */
        HEALTH_TESTS_MAX = 8,
        HEALTH_TEST_PARTS_MAX = 256,
        HEALTH_REPAIRS_MAX = 8,
        HEALTH_NAME_LEN = 64,
        HEALTH_TEXT_LEN = 256,
};

struct node_check {
        char check[HEALTH_NAME_LEN], subject[HEALTH_NAME_LEN], evidence[HEALTH_TEXT_LEN];
        enum health_verdict verdict;
        uint64_t since_ms;
        int32_t device;
        bool network;
        bool answered; /* an administrator opened the node although it says so: it counts again when it says something else */
};

struct finding {
        char check[HEALTH_NAME_LEN], subject[HEALTH_NAME_LEN], text[HEALTH_TEXT_LEN];
        uint32_t code, pid, count;
        int32_t device;
        uint64_t ms;
        enum health_verdict verdict;
        enum health_action action;
        bool network;
};

/* It gets no ranks until ... */
enum health_hold { HOLD_NONE, HOLD_CHECKS /* its checks are well, and have been for a while */, HOLD_BOOT /* it was rebooted, or as the next */, HOLD_ADMIN /* an administrator says so */, N_HEALTH_HOLDS };

struct node_test {
        uint64_t ms;
        Fp8ctl__V1__NodeTest *result;
};

struct node_health {
        struct node_check *checks;
        size_t n_checks;
        struct finding *findings; /* the oldest first */
        size_t n_findings;
        enum health_hold hold;
        enum health_verdict verdict; /* DRAIN or EVICT while held */
        char reason[HEALTH_TEXT_LEN];
        enum node_duty duty_before;
        uint64_t taken_ms;        /* wall clock, as all here: kept from ranks since */
        uint64_t well_since_ms;   /* held, and the checks are well since; 0: not */
        uint64_t released_ms;
        uint32_t releases;        /* so often within an hour of each other */
        uint64_t alert_ms;        /* newest network alert */
        char alert[HEALTH_TEXT_LEN];
        enum health_verdict waits; /* the breaker keeps it from being done; OK: nothing waits */
        enum health_hold waits_hold;
        int32_t waits_device;      /* of one device: WARN */
        char waits_why[HEALTH_TEXT_LEN];
        bool waits_said;
        uint64_t repairs[HEALTH_REPAIRS_MAX]; /* the oldest first */
        size_t n_repairs;
        char rma[HEALTH_TEXT_LEN];
        char boot_id[64];
        uint64_t seen_sequence;   /* of the kernel's log of that boot */
        bool untested;
        uint64_t test_relay, test_deadline; /* the one asked for before it takes ranks; mono ns */
        Fp8ctl__V1__NodeTest *tests[HEALTH_TESTS_MAX]; /* the oldest first */
        size_t n_tests;
};

struct node_health *health_get(struct node *n); /* NULL: no memory */
/* The worst of all, as clients see it. */
const char *health_name(const struct node *n, const char **ret_reason);

/* health_decide.c */
void health_found(struct controller *c, struct node *n, struct finding *f);   /* decides, acts, and writes the action into it */
void health_review(struct controller *c, struct node *n, const char *boot_id); /* after checks have changed */
/* Keeps it from ranks, unless the breaker does not let it. */
void health_take(struct controller *c, struct node *n, enum health_verdict v, enum health_hold hold, const char *why);
void health_release(struct controller *c, struct node *n, const char *why);
void health_list_rma(struct controller *c, struct node *n, const char *why);
void health_retry(struct controller *c, struct node *n); /* what the breaker kept waiting */

/* health_record.c: for clients and the store. The strings stay the node's. */
struct health_message {
        Fp8ctl__V1__NodeCheck *checks, **check_ptrs;
        Fp8ctl__V1__NodeFinding *findings, **finding_ptrs;
        Fp8ctl__V1__DeviceHold *holds, **hold_ptrs;
        Fp8ctl__V1__HealthRecord record;
};
int health_fill(const struct node *n, Fp8ctl__V1__Node *m, bool all, struct health_message *h); /* -ENOMEM; free it in any case */
int health_fill_record(const struct node *n, Fp8ctl__V1__NodeRecord *m, struct health_message *h);
void health_message_free(struct health_message *h);
int health_load(struct node *n, const Fp8ctl__V1__NodeRecord *m);

/* node_test.c */
void node_test_begin(struct controller *c, struct node *n); /* before it takes ranks */
bool node_tested(const struct node_health *h);               /* itself, ever */
void node_test_pairs(struct controller *c, struct node *n, const Fp8ctl__V1__NodeTest *m); /* what was measured with other nodes: kept, and acted on if it is that grave */
