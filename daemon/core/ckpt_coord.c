/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints in two phases: every rank prepares its shard, the file helper writes manifest.json, and the commit itself is a compare-and-swap in the store under
 * the job's epoch.  What was prepared under a fenced epoch is dropped, whatever stage it reached.  Folders that are not (or no longer) committed are
 * kept in the job's record as `removing` until they are gone, so that a controller's crash leaves no litter.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/core/ckpt_private.h"

/* Thresholds. */
#define PREPARE_TIMEOUT_MS 300000u /* from the first rank's word to the last one's */
#define WRITE_TIMEOUT_MIN_MS 5000u  /* for the manifest, or checkpoint.stall_timeout_ms if that is longer */
#define TWICE "another save of this step is committed already"
#define SAVES_MAX 16u              /* of one job that wait for words; the oldest makes room */
#define WRITING_MAX 64u            /* of one job whose manifest waits for the file helper; one more is given up */
#define TOMBSTONES_MAX 16u          /* failed saves remembered, the newest */
#define SHARDS_PER_RANK_MAX 16u
#define STATE_MAX 65536u            /* of state_json, with its end */

static const char *const state_names[] = { "preparing", "writing", "committed", "dropped" };
static const char *const event_names[] = { "all_prepared", "written", "failed", "timeout", "fenced", "superseded" };
static const struct table_row rows[] = {
        { SAVE_PREPARING, SAVE_E_ALL_PREPARED, SAVE_WRITING, NULL },
        { SAVE_PREPARING, SAVE_E_FAILED, SAVE_DROPPED, NULL },
        { SAVE_PREPARING, SAVE_E_TIMEOUT, SAVE_DROPPED, NULL },
        { SAVE_PREPARING, SAVE_E_FENCED, SAVE_DROPPED, NULL },
        { SAVE_PREPARING, SAVE_E_SUPERSEDED, SAVE_DROPPED, NULL },
        { SAVE_WRITING, SAVE_E_WRITTEN, SAVE_COMMITTED, NULL },
        { SAVE_WRITING, SAVE_E_FAILED, SAVE_DROPPED, NULL },
        { SAVE_WRITING, SAVE_E_TIMEOUT, SAVE_DROPPED, NULL },
        { SAVE_WRITING, SAVE_E_FENCED, SAVE_DROPPED, NULL },
        { SAVE_WRITING, SAVE_E_SUPERSEDED, SAVE_DROPPED, NULL },
};
const struct table save_table = { "checkpoint", state_names, ARRAY_SIZE(state_names), event_names, N_SAVE_EVENTS, rows, ARRAY_SIZE(rows) };

static int step_to(struct controller *c, struct save *s, enum save_event ev) {
        struct error e = { 0 };
        int r = table_step(&save_table, &s->state, (int)ev, s, NULL, &e);

        if (r < 0)
                core_log(c, 3, "job %" PRIu64 ": %s", s->job->id, e.text);
        return r;
}

/* ------------------------------------------------------------------ the list of saves */
struct save *save_free(struct save *s) {
        if (!s)
                return NULL;
        for (size_t i = 0; i < s->n_shards; i++) {
                free(s->shards[i].file);
                free(s->shards[i].digest);
        }
        free(s->shards);
        free(s->prepared);
        free(s->state_json);
        free(s);
        return NULL;
}

static void unlink_save(struct save *s) {
        struct save **p = &s->job->saves;

        while (*p && *p != s)
                p = &(*p)->next;
        if (*p)
                *p = s->next;
        save_free(s);
}

struct save *save_find(struct job *j, uint64_t epoch, uint64_t step, uint32_t attempt) {
        for (struct save *s = j->saves; s; s = s->next)
                if (s->epoch == epoch && s->step == step && s->attempt == attempt)
                        return s;
        return NULL;
}

bool save_in_flight(const struct job *j, uint64_t step) {
        for (const struct save *s = j->saves; s; s = s->next)
                if (s->step == step && s->epoch == j->epoch && (s->state == SAVE_PREPARING || s->state == SAVE_WRITING))
                        return true;
        return false;
}

/* A save of this step that ranks write because they were asked to, or whose manifest is being written. */
bool save_in_hand(const struct job *j, uint64_t step) {
        for (const struct save *s = j->saves; s; s = s->next)
                if (s->step == step && s->epoch == j->epoch && (s->state == SAVE_WRITING || (s->state == SAVE_PREPARING && s->attempt == j->final_attempt)))
                        return true;
        return false;
}

/* The newest try for this step was given up. */
bool save_failed(const struct job *j, uint64_t step, const char **ret_why) {
        for (const struct save *s = j->saves; s; s = s->next)
                if (s->step == step && s->epoch == j->epoch) {
                        if (s->state == SAVE_DROPPED && ret_why)
                                *ret_why = s->why;
                        return s->state == SAVE_DROPPED;
                }
        return false;
}

static void save_prune_tombstones(struct job *j) {
        struct save *oldest = NULL;
        unsigned n = 0;

        for (struct save *s = j->saves; s; s = s->next)
                if (s->state == SAVE_DROPPED && !s->file_id) {
                        n++;
                        oldest = s;
                }
        if (n >= TOMBSTONES_MAX)
                unlink_save(oldest);
}

static struct save *save_new(struct controller *c, struct job *j, uint64_t epoch, uint64_t step, uint32_t attempt, int world) {
        struct save *s = calloc(1, sizeof(*s));

        if (!s)
                return NULL;
        s->prepared = calloc((size_t)world, sizeof(*s->prepared));
        if (!s->prepared)
                return save_free(s);
        s->job = j;
        s->epoch = epoch;
        s->step = step;
        s->attempt = attempt;
        s->world = world;
        s->began = core_now(c);
        s->deadline = s->began + PREPARE_TIMEOUT_MS * NSEC_PER_MSEC;
        s->next = j->saves;
        j->saves = s;
        return s;
}

static void tell(struct controller *c, struct job *j, const Fp8ctl__V1__ControllerMessage *m) {
        for (size_t i = 0; i < c->n_nodes; i++)
                if (job_on_node(j, c->nodes[i]))
                        node_send(c, c->nodes[i], m);
}

/* node NULL: all nodes of the job. */
static void answer(struct controller *c, struct node *n, struct job *j, const Fp8ctl__V1__ControllerMessage *m) {
        if (n)
                node_send(c, n, m);
        else
                tell(c, j, m);
}

static void answer_dropped(struct controller *c, struct node *n, const struct save *s, const char *why) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__CheckpointDropped d = FP8CTL__V1__CHECKPOINT_DROPPED__INIT;

        d.job_id = s->job->id;
        d.epoch = s->epoch;
        d.step = s->step;
        d.attempt = s->attempt;
        d.reason = (char *)why;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_DROPPED;
        m.checkpoint_dropped = &d;
        answer(c, n, s->job, &m);
}

static void answer_committed(struct controller *c, struct node *n, struct job *j, const struct checkpoint *k) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__CheckpointCommitted d = FP8CTL__V1__CHECKPOINT_COMMITTED__INIT;

        d.job_id = j->id;
        d.epoch = k->epoch;
        d.step = k->step;
        d.attempt = k->attempt;
        d.path = k->path;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_COMMITTED;
        m.checkpoint_committed = &d;
        answer(c, n, j, &m);
}

/* ------------------------------------------------------------------ drop */
static void drop(struct controller *c, struct save *s, enum save_event ev, const char *why) {
        struct job *j = s->job;
        char path[4200];
        struct checkpoint *k;
        bool writing = s->state == SAVE_WRITING;

        if (step_to(c, s, ev) < 0)
                return;
        core_text(s->why, sizeof(s->why), why);
        answer_dropped(c, NULL, s, s->why);
        event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = ev == SAVE_E_FENCED || ev == SAVE_E_SUPERSEDED ? "info" : "warning" }, "checkpoint_dropped",
                  "save of step %" PRIu64 " (attempt %u) dropped: %.300s", s->step, s->attempt, why);
        checkpoint_folder(j, s->step, s->epoch, s->attempt, path, sizeof(path));
        k = checkpoint_at(j, path);
        if (!k)
                k = checkpoint_add(j, s, path);
        /* While the manifest is being written its folder is not taken from under the helper: save_file_done does it. */
        if (k) {
                k->removing = true;
                if (!writing)
                        checkpoint_remove(c, j, k);
        }
        request_save_over(c, j, s->attempt, why);
        /* One that failed stays as a tombstone, so that the other ranks' late words do not begin it again. */
        if (!writing && ev == SAVE_E_FENCED)
                unlink_save(s);
}

/* A rank that wrote on after its save was given up left a shard behind: once all have spoken, the folder is cleared again. */
static void late_word(struct controller *c, struct save *s, uint32_t rank) {
        struct file_work w = { .kind = FILE_REMOVE_UNFINISHED, .uid = s->job->uid, .gid = s->job->gid };
        char path[4200];

        if (s->prepared[rank])
                return;
        s->prepared[rank] = true;
        if (++s->n_prepared < s->world || s->file_id)
                return;
        checkpoint_folder(s->job, s->step, s->epoch, s->attempt, path, sizeof(path));
        w.id = c->next_file++;
        w.path = path;
        c->io.file_work(c->io.arg, &w);
}

void save_fence(struct controller *c, struct job *j, const char *why) {
        struct save *next;

        for (struct save *s = PLANTED(TWO_COMMITTERS) ? NULL : j->saves; s; s = next) {
                next = s->next;
                if (s->state == SAVE_PREPARING || s->state == SAVE_WRITING)
                        drop(c, s, SAVE_E_FENCED, why);
                else if (s->state == SAVE_DROPPED && !s->file_id)
                        unlink_save(s);
        }
}

/*
 * Ranks write and speak in order: when all of them have spoken of a later save, a word that an older one waits for was lost with a controller or a worker that died, and
 * will not come.
 */
static void drop_superseded(struct controller *c, struct job *j, const struct save *later) {
        struct save *next;
        char why[100];

        snprintf(why, sizeof(why), "every rank has saved step %" PRIu64 " since", later->step);
        for (struct save *s = j->saves; s; s = next) {
                next = s->next;
                if (s->state == SAVE_PREPARING && s->epoch == later->epoch && (s->step < later->step || (s->step == later->step && s->attempt < later->attempt)))
                        drop(c, s, SAVE_E_SUPERSEDED, why);
        }
}

/* Room for one more: the oldest that waits for words goes. */
static void make_room(struct controller *c, struct job *j) {
        struct save *oldest = NULL;
        unsigned n = 0;

        save_prune_tombstones(j);
        for (struct save *s = j->saves; s; s = s->next)
                if (s->state == SAVE_PREPARING) {
                        n++;
                        if (!oldest || s->step < oldest->step)
                                oldest = s;
                }
        if (n >= SAVES_MAX)
                drop(c, oldest, SAVE_E_SUPERSEDED, "too many saves wait for ranks that did not speak of them");
}

static unsigned manifests_waiting(const struct job *j) {
        unsigned n = 0;

        for (const struct save *s = j->saves; s; s = s->next)
                n += s->state == SAVE_WRITING || s->file_id;
        return n;
}

/* The first word of a save. NULL: it was answered. A save that cannot be is dropped in the open, so that every rank hears it and its folder is cleared. */
static struct save *begin(struct controller *c, struct job *j, const struct rank *r, const Fp8ctl__V1__CheckpointPrepared *m) {
        const struct checkpoint *k = checkpoint_of(j, m);
        struct save *s;

        if (k) {
                answer_committed(c, r->node, j, k);
                return NULL;
        }
        make_room(c, j);
        s = save_new(c, j, m->epoch, m->step, m->attempt, j->world);
        if (!s) {
                core_drop(c, DROP_EPOCH, "no memory for a checkpoint");
                return NULL;
        }
        if (checkpoint_has(j, m->step)) {
                request_committed(c, j, m->step, m->attempt);
                drop(c, s, SAVE_E_SUPERSEDED, TWICE);
        } else if (manifests_waiting(j) >= WRITING_MAX) {
                drop(c, s, SAVE_E_FAILED, "too many saves wait for their manifest to be written");
        } else {
                return s;
        }
        late_word(c, s, m->rank);
        job_check_done(c, j);
        return NULL;
}

/* ------------------------------------------------------------------ prepare */
static bool plain_name(const char *s, size_t max) {
        size_t n = s ? strlen(s) : 0;

        return n > 0 && n < max && !strchr(s, '/') && strcmp(s, ".") != 0 && strcmp(s, "..") != 0;
}

/* rank NULL: each says whose it is. */
static int keep_shards(struct save *s, Fp8ctl__V1__ShardInfo *const *shards, size_t n, const uint32_t *rank, struct error *e) {
        struct save_shard *list;

        if (rank && n > SHARDS_PER_RANK_MAX)
                return error_set(e, -E2BIG, "reported %zu shards, expected at most %u", n, SHARDS_PER_RANK_MAX);
        list = realloc(s->shards, (s->n_shards + n + 1) * sizeof(*list));
        if (!list)
                return error_set(e, -ENOMEM, "cannot be noted: no memory");
        s->shards = list;
        for (size_t i = 0; i < n; i++) {
                const Fp8ctl__V1__ShardInfo *x = shards[i];

                if (!x || !plain_name(x->file, 128) || !x->digest || strlen(x->digest) > 64)
                        return error_set(e, -EBADMSG, "reported shard %zu without a plain file name and a digest of at most 64 characters", i);
                list[s->n_shards] = (struct save_shard){ .file = core_strdup(x->file, 128), .digest = core_strdup(x->digest, 65), .bytes = x->bytes, .rank = rank ? *rank : x->rank };
                s->bytes += x->bytes;
                s->n_shards++;
                if (!list[s->n_shards - 1].file || !list[s->n_shards - 1].digest)
                        return error_set(e, -ENOMEM, "cannot be noted: no memory");
        }
        return 0;
}

/* A manifest without the state could not be resumed from: better no commit than that one. */
static int keep_state(struct save *s, const char *text, struct error *e) {
        size_t len = text ? strlen(text) : 0;
        json_error_t why;
        json_t *state;

        if (len == 0 || s->state_json)
                return 0;
        if (len >= STATE_MAX)
                return error_set(e, -E2BIG, "reported a state of %zu bytes, expected less than %u", len, STATE_MAX);
        state = json_loads(text, JSON_REJECT_DUPLICATES, &why);
        if (!json_is_object(state)) {
                error_set(e, -EBADMSG, "reported a state that is no JSON object%s%.100s", state ? "" : ": ", state ? "" : why.text);
                json_decref(state);
                return e->code;
        }
        json_decref(state);
        s->state_json = strdup(text);
        return s->state_json ? 0 : error_set(e, -ENOMEM, "cannot be noted: no memory");
}

static int by_rank(const void *a, const void *b) {
        const struct save_shard *x = a, *y = b;

        return x->rank < y->rank ? -1 : x->rank > y->rank ? 1 : strcmp(x->file, y->file);
}

static char *manifest_text(const struct save *s) {
        const struct job *j = s->job;
        json_t *root = json_object(), *shards = json_array(), *state = NULL;
        char layout[64], *text;

        snprintf(layout, sizeof(layout), "tp%d.pp%d.dp%d", j->spec->parallel.tp, j->spec->parallel.pp, s->world / (j->spec->parallel.tp * j->spec->parallel.pp));
        json_object_set_new(root, "format", json_string("fp8ctl-checkpoint"));
        json_object_set_new(root, "version", json_integer(1));
        json_object_set_new(root, "job", json_integer((json_int_t)j->id));
        json_object_set_new(root, "step", json_integer((json_int_t)s->step));
        json_object_set_new(root, "epoch", json_integer((json_int_t)s->epoch));
        json_object_set_new(root, "attempt", json_integer(s->attempt));
        json_object_set_new(root, "layout", json_string(layout));
        for (size_t i = 0; i < s->n_shards; i++)
                json_array_append_new(shards, json_pack("{s:s, s:I, s:s, s:I}", "file", s->shards[i].file ? s->shards[i].file : "", "bytes", (json_int_t)s->shards[i].bytes, "digest",
                                                        s->shards[i].digest ? s->shards[i].digest : "", "rank", (json_int_t)s->shards[i].rank));
        json_object_set_new(root, "shards", shards);
        if (s->state_json && s->state_json[0])
                state = json_loads(s->state_json, JSON_REJECT_DUPLICATES, NULL);
        json_object_set_new(root, "state", state ? state : json_object());
        text = json_dumps(root, JSON_INDENT(1));
        json_decref(root);
        return text;
}

static uint64_t write_timeout_ms(const struct job *j) {
        int64_t ms = j->spec->checkpoint.stall_timeout_ms;

        return ms > (int64_t)WRITE_TIMEOUT_MIN_MS ? (uint64_t)ms : WRITE_TIMEOUT_MIN_MS;
}

static void write_manifest(struct controller *c, struct save *s) {
        struct job *j = s->job;
        struct file_work w = { .kind = FILE_WRITE_MANIFEST, .uid = j->uid, .gid = j->gid };
        char path[4200], *text;
        struct checkpoint *k;

        qsort(s->shards, s->n_shards, sizeof(*s->shards), by_rank);
        text = manifest_text(s);
        if (!text) {
                drop(c, s, SAVE_E_FAILED, "no memory for the manifest");
                return;
        }
        step_to(c, s, SAVE_E_ALL_PREPARED);
        s->deadline = core_now(c) + write_timeout_ms(j) * NSEC_PER_MSEC;
        checkpoint_folder(j, s->step, s->epoch, s->attempt, path, sizeof(path));
        /* Noted as to be removed until it is committed: should we die now, the next life clears it. */
        k = checkpoint_at(j, path);
        if (!k)
                k = checkpoint_add(j, s, path);
        w.id = s->file_id = c->next_file++;
        if (k) {
                k->removing = true;
                k->file_id = w.id; /* in hand: not for resume_removals until the manifest is written */
        }
        j->dirty = true;
        w.path = path;
        w.text = text;
        c->io.file_work(c->io.arg, &w);
        free(text);
}

static int keep_word(struct save *s, const Fp8ctl__V1__CheckpointPrepared *m, const char *path, struct error *e) {
        char said[150];
        int r;

        if (!m->directory || strcmp(m->directory, path) != 0) {
                core_text(said, sizeof(said), m->directory);
                return error_set(e, -EINVAL, "reported folder '%s', expected '%.150s'", said, path);
        }
        r = keep_state(s, m->state_json, e);
        return r < 0 ? r : keep_shards(s, m->shards, m->n_shards, &m->rank, e);
}

void save_prepared(struct controller *c, struct job *j, struct rank *r, const Fp8ctl__V1__CheckpointPrepared *m) {
        struct error e = { 0 };
        char path[4200];
        struct save *s;

        if (j->rec == REC_FENCE || m->step == 0 || m->step > (uint64_t)j->spec->train.steps || m->attempt == 0 || !j->spec->checkpoint.dir) {
                core_drop(c, DROP_MALFORMED, "checkpoint");
                return;
        }
        s = save_find(j, m->epoch, m->step, m->attempt);
        if (!s && !(s = begin(c, j, r, m)))
                return;
        if (s->state == SAVE_DROPPED) {
                answer_dropped(c, r->node, s, s->why);
                late_word(c, s, m->rank);
                return;
        }
        if (s->state != SAVE_PREPARING || s->prepared[m->rank])
                return; /* told twice */
        if (m->error && m->error[0]) {
                char why[TEXT_MAX_LEN], said[250];

                core_text(said, sizeof(said), m->error);
                snprintf(why, sizeof(why), "rank %u on %.100s could not write: %s", m->rank, r->node->name, said);
                drop(c, s, SAVE_E_FAILED, why);
                job_check_done(c, j);
                return;
        }
        checkpoint_folder(j, m->step, m->epoch, m->attempt, path, sizeof(path));
        if (keep_word(s, m, path, &e) < 0) {
                char why[TEXT_MAX_LEN];

                snprintf(why, sizeof(why), "rank %u on %.100s %.240s", m->rank, r->node->name, e.text);
                drop(c, s, SAVE_E_FAILED, why);
                job_check_done(c, j);
                return;
        }
        s->prepared[m->rank] = true;
        if (++s->n_prepared == s->world - PLANTED(PARTIAL_PREPARE)) {
                drop_superseded(c, j, s);
                write_manifest(c, s);
        }
}

/* ------------------------------------------------------------------ from replica memory */
int save_memory_begin(struct controller *c, struct job *j, uint64_t step, uint32_t attempt, uint32_t shard_count) {
        char path[4200];
        struct checkpoint *k;
        struct save *s;

        make_room(c, j);
        s = save_new(c, j, j->epoch, step, attempt, (int)shard_count);
        if (!s)
                return -ENOMEM;
        /* Nodes write from now on: should we die, the next life clears it. */
        checkpoint_folder(j, step, j->epoch, attempt, path, sizeof(path));
        k = checkpoint_add(j, s, path);
        if (k) {
                k->removing = true;
                k->file_id = c->next_file++; /* in hand */
        }
        return 0;
}

int save_memory_shards(struct controller *c, struct job *j, uint64_t step, uint32_t attempt, const Fp8ctl__V1__MemorySaved *m, struct error *e) {
        struct save *s = save_find(j, j->epoch, step, attempt);
        int r;

        (void)c;
        if (!s || s->state != SAVE_PREPARING)
                return error_set(e, -ESTALE, "was told that the save was given up: %.200s", s ? s->why : "it is not known");
        r = keep_state(s, m->state_json, e);
        return r < 0 ? r : keep_shards(s, m->shards, m->n_shards, NULL, e);
}

void save_memory_write(struct controller *c, struct job *j, uint64_t step, uint32_t attempt) {
        struct save *s = save_find(j, j->epoch, step, attempt);

        if (s && s->state == SAVE_PREPARING)
                write_manifest(c, s);
}

void save_memory_drop(struct controller *c, struct job *j, uint64_t step, uint32_t attempt, const char *why) {
        struct save *s = save_find(j, j->epoch, step, attempt);

        if (s && (s->state == SAVE_PREPARING || s->state == SAVE_WRITING))
                drop(c, s, SAVE_E_FAILED, why);
}

/* ------------------------------------------------------------------ commit */
/* Other tries to save a step that has its commit now: the words that they wait for may have been lost, and nobody needs them. */
static void drop_twins(struct controller *c, struct job *j, const struct save *committed) {
        struct save *next;

        for (struct save *s = j->saves; s; s = next) {
                next = s->next;
                if (s == committed || s->state != SAVE_PREPARING || s->epoch != committed->epoch || s->step != committed->step)
                        continue;
                request_committed(c, j, s->step, s->attempt);
                drop(c, s, SAVE_E_SUPERSEDED, TWICE);
        }
}

static void commit(struct controller *c, struct save *s) {
        struct job *j = s->job;
        char path[4200];
        struct checkpoint *k;

        checkpoint_folder(j, s->step, s->epoch, s->attempt, path, sizeof(path));
        k = checkpoint_at(j, path);
        if (!k) {
                drop(c, s, SAVE_E_FAILED, "no memory for the commit");
                return;
        }
        if (checkpoint_has(j, s->step)) { /* both manifests were being written at once: a step has one commit */
                request_committed(c, j, s->step, s->attempt);
                drop(c, s, SAVE_E_SUPERSEDED, TWICE);
                return;
        }
        step_to(c, s, SAVE_E_WRITTEN);
        k->removing = false;
        k->bytes = s->bytes;
        k->committed_ms = c->io.wall_ms(c->io.arg);
        if (!PLANTED(TWO_COMMITTERS))
                record_expect_epoch(c, j);
        record_put_commit(c, j, k);
        checkpoint_replaced(c, j, k);
        j->dirty = true;
        answer_committed(c, NULL, j, k);
        event_add(c, &(struct event_of){ .job = j, .rank = -1, .ms = (double)(core_now(c) - s->began) / 1e6 }, "checkpoint_committed", "step %" PRIu64 " saved in %s, %" PRIu64 " bytes", s->step,
                  path, s->bytes);
        request_committed(c, j, s->step, s->attempt);
        drop_twins(c, j, s);
        checkpoint_clear_unheard(c, j, checkpoint_before(j, s->step), s->step);
        if (j->cleared_epoch < s->epoch) { /* all ranks are in this one: those of earlier ones write no more */
                j->cleared_epoch = s->epoch;
                checkpoint_clear_stale(c, j, s->epoch);
        }
        checkpoint_retain(c, j);
}

bool save_file_done(struct controller *c, uint64_t id, int rc, const char *text) {
        for (size_t i = 0; i < c->n_jobs; i++) {
                struct job *j = c->jobs[i];

                for (struct save *s = j->saves; s; s = s->next) {
                        struct checkpoint *k;
                        char why[TEXT_MAX_LEN], said[250];

                        if (s->file_id != id)
                                continue;
                        k = checkpoint_in_hand(j, id);
                        if (k)
                                k->file_id = 0;
                        core_text(said, sizeof(said), text);
                        snprintf(why, sizeof(why), "manifest.json: %s", said);
                        if (s->state == SAVE_WRITING && rc == 0 && (s->epoch == j->epoch || PLANTED(TWO_COMMITTERS)) && job_placed(j) && !job_ended(j))
                                commit(c, s);
                        else if (s->state == SAVE_WRITING)
                                drop(c, s, rc == 0 ? SAVE_E_FENCED : SAVE_E_FAILED, rc == 0 ? "its epoch is over" : why);
                        s->file_id = 0;
                        if (s->state != SAVE_DROPPED || s->epoch != j->epoch || !job_placed(j))
                                unlink_save(s); /* one that failed stays as a tombstone */
                        checkpoint_resume_removals(c, j);
                        job_check_done(c, j);
                        rescue_look(c, j);
                        return true;
                }
                if (checkpoint_removal_done(c, j, id, rc, text))
                        return true;
        }
        return false;
}

uint32_t save_request(struct controller *c, struct job *j, uint64_t step) {
        Fp8ctl__V1__ControllerMessage m = FP8CTL__V1__CONTROLLER_MESSAGE__INIT;
        Fp8ctl__V1__SaveNow d = FP8CTL__V1__SAVE_NOW__INIT;

        d.job_id = j->id;
        d.epoch = j->epoch;
        d.attempt = j->next_attempt++;
        d.step = step;
        j->dirty = true;
        m.body_case = FP8CTL__V1__CONTROLLER_MESSAGE__BODY_SAVE_NOW;
        m.save_now = &d;
        tell(c, j, &m);
        return d.attempt;
}

static void late(struct controller *c, struct save *s) {
        struct job *j = s->job;
        char why[TEXT_MAX_LEN];

        if (s->state == SAVE_PREPARING) {
                snprintf(why, sizeof(why), "%d of %d ranks prepared within %u s", s->n_prepared, s->world, PREPARE_TIMEOUT_MS / 1000);
        } else {
                snprintf(why, sizeof(why), "its manifest was not written within %.1f s: the storage has stalled", (double)write_timeout_ms(j) / 1e3);
                event_add(c, &(struct event_of){ .job = j, .rank = -1, .severity = "error" }, "storage_stalled", "save of step %" PRIu64 ": %s in %.250s; training goes on", s->step, why,
                          j->spec->checkpoint.dir);
        }
        drop(c, s, SAVE_E_TIMEOUT, why);
        job_check_done(c, j);
        rescue_look(c, j);
}

/* A manifest that is being written holds its save up no longer than this; whatever becomes of it later, its folder is cleared then. */
void save_tick(struct controller *c, struct job *j, uint64_t now) {
        for (struct save *s = j->saves; s; s = s->next)
                if ((s->state == SAVE_PREPARING || s->state == SAVE_WRITING) && now >= s->deadline) {
                        late(c, s);
                        return; /* the list may have changed; the alarm comes again */
                }
}

uint64_t save_next_deadline(const struct job *j) {
        uint64_t best = 0;

        for (const struct save *s = j->saves; s; s = s->next)
                if ((s->state == SAVE_PREPARING || s->state == SAVE_WRITING) && (!best || s->deadline < best))
                        best = s->deadline;
        return best;
}
