/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A controller core and the world around it, for unit tests: what it persists, sends, replies and asks to be written is kept, and world_pump() plays workers on which everything
 * goes well.  A test speaks for a rank itself where it wants something to go wrong.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/core/controller.h"
#include "proto/flight.h"

enum { WORLD_RANKS = 8 };

struct world_sent {
        uint64_t session;
        Fp8ctl__V1__ControllerMessage *m;
};

struct world_said {
        uint64_t session;
        uint8_t *data;
        size_t len;
};

struct world_kept {
        char *key;
        uint8_t *value;
        size_t len;
};

struct world_file {
        uint64_t id;
        int kind;
        char path[200];
};

/* A rank as its worker knows it. */
struct world_rank {
        uint64_t job, session, incarnation, epoch, step;
        Fp8ctl__V1__RankPhase phase;
};

struct world {
        struct controller *c;
        uint64_t now, wall_ms, replies, closed, ops;
        int status;
        char error[1200];
        uint8_t *reply;
        size_t reply_len;
        uint64_t last_relay, lease_numbers[5]; /* the last welcome's, by session */
        struct world_sent *sent;
        size_t n_sent, pumped;
        struct world_said *said; /* what ranks and workers said, for world_say_again() */
        size_t n_said;
        struct world_kept *store;
        size_t n_store;
        struct world_file *files;
        size_t n_files, files_done;
        struct world_rank ranks[WORLD_RANKS]; /* of the job that was started last */
        Fp8ctl__V1__LoadSource__Kind load_kind; /* of the newest plan */
        uint64_t load_step, best_step, plans;
        double busy_ms[WORLD_RANKS][N_FLIGHT_PHASES]; /* what each rank took for itself so far */
        uint64_t clean_step;                    /* of world_fault, CHECKSUM */
        int stuck_rank; /* with stuck_ms: all others have waited for it, in a collective of the whole job, for so long */
        uint32_t stuck_ms;
        bool lose_plans;                        /* on their way */
        uint64_t bad_checkpoints, bad_replicas; /* bit s: rank 0 cannot load step s */
        uint64_t replicas;                      /* bit s: every rank has step s of epoch 1 in replica memory */
        uint64_t disks;                         /* ... on its node's disk */
        uint64_t held;                          /* bit s: each node has step s of epoch 1 of the other nodes' ranks */
        bool saves_memory, lose_memory;         /* workers can save replica memory; are asked in vain */
        bool rollout_hook;                      /* workers have a program that changes their node */
        const char *save_error;                 /* what they say instead */
        uint32_t leaving_ms;                    /* of the grace of those that say hello; 0: they do not leave */
        int local_every;                        /* of world_submit */
        const char *from_checkpoint;            /* of world_submit */
        const char *device_kind;                /* of world_attach; NULL: cpu */
        uint64_t check_since_ms;                /* of world_say_check; 0: 1 */
        const char *paths[2];                   /* of world_attach: where the devices hang; NULL: unknown */
        Fp8ctl__V1__NodeNic **nics;
        size_t n_nics;
        const char *boot_id;                    /* likewise */
        struct controller_config config;
};

extern const struct caller world_admin, world_ben;

struct controller *world_start(struct world *w, bool hooks);
struct controller *world_start_with(struct world *w, const struct controller_config *config);
/* The controller dies and a new one starts from what was stored; nobody is attached. */
struct controller *world_restart(struct world *w);
void world_stop(struct world *w);
const struct world_kept *world_stored(const struct world *w, const char *key);
size_t world_count(const struct world *w, const char *prefix); /* of stored keys */

void world_attach(struct world *w, uint64_t session, const char *name); /* two devices */
/* After world_restart: a and b come back with their ranks as they are, under sessions 3 and 4. */
void world_return(struct world *w);
/* tp 2; spec: further keys, beginning with a comma. */
void world_submit(struct world *w, const char *id, int dp, int dir, const char *more, bool dry_run, const struct caller *who);
uint64_t world_submitted(const struct world *w);
/* Workers do at once what they are told, and files are written; returns when nothing is left to do. */
void world_pump(struct world *w);
void world_pump_files(struct world *w, int rc);
/* A job of 4 ranks on nodes a and b (sessions 1, 2), until all of them run. */
uint64_t world_run_job(struct world *w, const char *more);
uint64_t world_start_job(struct world *w, const char *more); /* world_start without hooks, then that */
void world_pass(struct world *w, uint64_t ms); /* time passes, in ticks of 100 ms, and workers keep up */
void world_lose_b(struct world *w); /* node b (session 2) is gone with all its ranks, and its lease is over */

/* What rank r of the newest job says. */
void world_prepared(struct world *w, uint32_t r, uint64_t step, uint32_t attempt);
void world_prepared_state(struct world *w, uint32_t r, uint64_t step, const char *state_json); /* attempt 1 */
void world_prepared_error(struct world *w, uint32_t r, uint64_t step, uint32_t attempt, const char *error);
void world_fault(struct world *w, uint32_t r, Fp8ctl__V1__RankFault__Kind kind, uint64_t step, const char *text);
void world_waits_in_vain(struct world *w, uint32_t r, int32_t peer);
void world_hangs_up(struct world *w, uint32_t r, int32_t peer); /* rank r sees the peer's connection end */
void world_exited(struct world *w, uint32_t r, const char *cause);
void world_dying(struct world *w, uint32_t r); /* seen to die, not reaped yet */
void world_done(struct world *w, uint32_t r, uint64_t step, bool stopped);
void world_leaving(struct world *w, uint64_t session);
void world_progress(struct world *w, uint64_t step); /* heartbeats of all */
void world_say_again(struct world *w, size_t n); /* the first n messages of ranks, once more, in their order */

/* Messages of this kind about this step (0: any) sent to this session (0: any) since `since`. */
size_t world_told(const struct world *w, size_t since, Fp8ctl__V1__ControllerMessage__BodyCase kind, uint64_t session, uint64_t step);
/* What a worker says of its node's health, and what clients see of the node (NULL: not known; free with fp8ctl__v1__node__free_unpacked). */
void world_health(struct world *w, uint64_t session, Fp8ctl__V1__HealthReport *r);
/* One check of the node at that session. */
void world_say_check(struct world *w, uint64_t session, const char *name, const char *subject, const char *verdict, bool network);
Fp8ctl__V1__Node *world_node(struct world *w, const char *name);
Fp8ctl__V1__Job *world_job(struct world *w, uint64_t id); /* NULL: not known; free with fp8ctl__v1__job__free_unpacked */
/* The newest event of this kind: its text, or "". */
const char *world_event(struct world *w, const char *kind, char *buf, size_t size);
