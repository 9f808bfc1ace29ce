/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "worker/ckpt/checkpoint.h"
#include "worker/rank/save.h"

struct save {
        const struct identity *id;
        const struct job_spec *spec;
        struct control *control;
        struct snapshot *snapshot;
        struct checkpoint_write *write; /* under way or finished, not yet joined */
        int n_ranks;
        /* of the write under way */
        uint64_t step, epoch;
        uint32_t attempt;
        size_t bytes;
        char *folder, *state;
};

int save_new(const struct identity *id, const struct job_spec *spec, struct control *c, struct snapshot *s, struct save **ret, struct error *e) {
        struct save *v = calloc(1, sizeof(*v));
        int r;

        if (!v)
                return error_errno(e, ENOMEM, "save");
        v->id = id;
        v->spec = spec;
        v->control = c;
        v->snapshot = s;
        v->n_ranks = spec->parallel.tp * spec->parallel.pp * spec->parallel.dp;
        if (spec->checkpoint.every_steps > 0 || spec->checkpoint.at_end) { /* room for the copy, touched while the job starts and not within the first save's step */
                r = checkpoint_write_prepare(snapshot_bytes(s), &v->write, e);
                if (r < 0) {
                        free(v);
                        return r;
                }
        }
        *ret = v;
        return 0;
}

void save_wait(struct save *s) {
        checkpoint_write_wait(s->write); /* kept: the next one uses its memory */
        free(STEAL_PTR(s->folder));
        free(STEAL_PTR(s->state));
}

struct save *save_free(struct save *s) {
        if (!s)
                return NULL;
        save_wait(s);
        checkpoint_write_free(s->write);
        free(s);
        return NULL;
}

static void prepared(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt, const char *folder, Fp8ctl__V1__ShardInfo *shard, const char *state,
                     const char *error) {
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        Fp8ctl__V1__CheckpointPrepared p = FP8CTL__V1__CHECKPOINT_PREPARED__INIT;

        p.job_id = s->id->job;
        p.epoch = epoch;
        p.rank = s->id->rank;
        p.incarnation = s->id->incarnation;
        p.step = step;
        p.attempt = attempt;
        p.directory = (char *)(folder ? folder : "");
        if (shard) {
                p.shards = &shard;
                p.n_shards = 1;
        }
        p.state_json = (char *)(state ? state : "");
        p.error = (char *)(error ? error : "");
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_CHECKPOINT_PREPARED;
        m.checkpoint_prepared = &p;
        control_send(s->control, &m);
}

/* In the writer's thread; the fields of the write under way do not change before it is joined. */
static void on_written(void *arg, int rc, const char *text, struct digest d, const char *file) {
        struct save *s = arg;
        Fp8ctl__V1__ShardInfo shard = FP8CTL__V1__SHARD_INFO__INIT;
        char hex[DIGEST_HEX_SIZE];

        if (rc < 0 || !file) {
                log_error("checkpoint of step %" PRIu64 ": %s", s->step, text ? text : strerror(-rc));
                prepared(s, s->step, s->epoch, s->attempt, s->folder, NULL, NULL, text && *text ? text : strerror(-rc));
                return;
        }
        digest_hex(d, hex);
        shard.file = (char *)file;
        shard.bytes = s->bytes;
        shard.digest = hex;
        shard.rank = s->id->rank;
        prepared(s, s->step, s->epoch, s->attempt, s->folder, &shard, s->state, NULL);
        if (s->id->epoch == 1 && s->spec->test.kill_step >= 0 && (uint64_t)s->spec->test.kill_step == s->step && s->spec->test.kill_rank == (int64_t)s->id->rank &&
            s->spec->test.kill_point && strcmp(s->spec->test.kill_point, "prepared") == 0)
                raise(SIGKILL);
}

/* From rank 0 only: the trainer's small state with what a reader of the manifest wants to know besides. */
static char *manifest_state(const struct save *s, const char *state) {
        json_error_t je;
        json_t *root = json_loads(state, 0, &je), *model;
        char *text = NULL, *config = NULL;

        if (!root)
                return NULL;
        json_object_set_new(root, "recipe", json_string(job_recipe_name(s->spec->precision.recipe)));
        json_object_set_new(root, "layout", json_string(snapshot_layout(s->snapshot)));
        json_object_set_new(root, "data_path", json_string(s->spec->data.path));
        if (model_config_to_json(&s->spec->model, &config, NULL) == 0) {
                model = json_loads(config, 0, &je);
                if (model)
                        json_object_set_new(root, "model", model);
                free(config);
        }
        text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
        json_decref(root);
        return text;
}

void save_refuse(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt, const char *why) {
        prepared(s, step, epoch, attempt, NULL, NULL, NULL, why);
}

void save_start(struct save *s, uint64_t step, uint64_t epoch, uint32_t attempt) {
        const void *image = NULL;
        const char *state = NULL;
        struct error e = { 0 };
        char name[128];

        save_wait(s);
        if (snapshot_newest(s->snapshot, &image, &s->bytes, &state) != step) {
                save_refuse(s, step, epoch, attempt, "no snapshot of that step is held");
                return;
        }
        checkpoint_step_name(step, epoch, attempt, name, sizeof(name));
        s->step = step;
        s->epoch = epoch;
        s->attempt = attempt;
        s->folder = file_path("%s/%s", s->spec->checkpoint.dir, name);
        s->state = s->id->rank == 0 ? manifest_state(s, state) : strdup("");
        if (!s->folder || !s->state) {
                save_refuse(s, step, epoch, attempt, "no memory");
                return;
        }
        if (checkpoint_write_start(s->folder, (int)s->id->rank, s->n_ranks, image, s->bytes, on_written, s, &s->write, &e) < 0) {
                log_error("checkpoint of step %" PRIu64 ": %s", step, e.text);
                save_refuse(s, step, epoch, attempt, e.text);
        }
}
