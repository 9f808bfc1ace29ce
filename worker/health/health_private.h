/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files of the engine share. */
#include "worker/health/check.h"
#include "worker/health/kernel_log.h"

enum {
        HEALTH_STATES_MAX = 256,   /* checks times subjects; as many as the controller keeps */
        HEALTH_FINDINGS_MAX = 64,  /* of one report */
        HEALTH_CHECKS_MAX = 32,
};

/* What a check said last of a subject, and what counts of it. */
struct health_state {
        const struct check *check;
        struct said said;
        uint64_t since_ms, told_ns;
        int graver; /* so often in a row it said something graver than what counts */
};

/* A lane: a thread and its checks. */
struct lane {
        struct health *health;
        enum health_lane which;
        pthread_t thread;
        bool started;
        uint64_t due[HEALTH_CHECKS_MAX];
        void *state[HEALTH_CHECKS_MAX];
        struct health_state *states; /* HEALTH_STATES_MAX, of this lane's checks */
        size_t n_states;
        struct said *said;           /* CHECK_SAID_MAX */
        pthread_mutex_t lock;        /* of what follows */
        pthread_cond_t wake;
        bool stop;
        uint32_t poked;              /* checks that are due now, a bit each */
        uint64_t busy_since;         /* 0: it waits */
        const char *busy;            /* the check that runs */
};

/* What goes from a lane to the loop. */
struct update {
        struct health *health;
        struct health_state *states;
        size_t n;
        size_t n_gone; /* the last of them: subjects that are not said any more */
        uint32_t xid;  /* 0: none */
        char pci[24];
        struct facts *facts; /* NULL: none */
        enum fact_group group;
};

struct finding {
        struct kernel_finding what;
        uint64_t sequence, ms;
        uint32_t count;
};

struct health {
        struct health_config config;
        struct health_world world;
        struct loop_source *watch;
        struct verbs_watch *verbs; /* NULL: no device, or built without */
        struct lane lanes[N_HEALTH_LANES];
        struct health_state states[HEALTH_STATES_MAX]; /* of all lanes, as the controller is told */
        size_t n_states;
        bool welcomed, user_lines;
        int log_fd, guard_fd;
        struct loop_source *log_source, *guard_source;
        char log_line[2048];
        size_t log_len;
        bool log_skip;              /* the rest of a line that was too long */
        struct finding findings[HEALTH_FINDINGS_MAX];
        size_t n_findings;
        uint64_t window_ns, in_window;
        struct facts *facts[N_FACT_GROUPS]; /* NULL: not told yet */
};

/* lane.c */
int lane_start(struct health *h, enum health_lane which);
bool lane_stop(struct lane *l, uint64_t deadline_ns); /* false: it hangs */
bool thread_ended(pthread_t thread, uint64_t deadline_ns); /* it is joined then */
void lane_poke(struct lane *l, size_t check);         /* it is due now; from any thread */
/* One check is run, and what counts of it is merged; for tests too. Returns how many states changed, which are moved to `changed` (HEALTH_STATES_MAX). */
size_t lane_run(struct lane *l, size_t check, struct health_state *changed, size_t *ret_gone);

/* sources.c: what tells by itself */
void sources_start(struct health *h);
void sources_stop(struct health *h);

/* verbs.c: fn is called in a thread of its own when a port or a device may have changed. NULL: it cannot be. */
struct verbs_watch;
struct verbs_watch *verbs_start(void (*fn)(void *arg), void *arg);
bool verbs_stop(struct verbs_watch *v, uint64_t deadline_ns); /* false: it hangs. NULL is allowed */

/* health.c */
void health_look_at_ports(void *health); /* now; from any thread */
void health_found(struct health *h, const struct kernel_finding *f, uint64_t sequence, uint64_t ms);
void health_flush(struct health *h);
bool health_is_alert(const struct health_state *s); /* what it says of a network: it takes two of them */
void health_take(void *update); /* in the loop's thread */
