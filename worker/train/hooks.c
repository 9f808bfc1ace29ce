// SPDX-License-Identifier: Apache-2.0
/* What a job file's `test` section asks for. The controller refuses such jobs unless it was started for tests. */
#include <math.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "worker/train/trainer_private.h"

void hook_kill(struct trainer *t, const char *point) {
        const struct job_spec *s = t->spec;

        if (!t->config.test_hooks_armed || s->test.kill_step < 0 || !s->test.kill_point)
                return;
        if (s->test.kill_rank == t->layout.rank && (uint64_t)s->test.kill_step == t->progress.step + 1 && strcmp(s->test.kill_point, point) == 0)
                raise(SIGKILL);
}

/* By batch, not by step number: a batch that overflows does so again when it is met again, and not when it is passed over. */
int hook_overflow(struct trainer *t, struct error *e) {
        const struct job_spec *s = t->spec;
        uint64_t batch = t->progress.data_step + 1;
        const dev_real infinity = (dev_real)INFINITY;
        int64_t steps = s->test.overflow_steps > 0 ? s->test.overflow_steps : 1;

        if (s->test.overflow_step < 0 || !s->test.overflow_tensor || s->test.overflow_rank != t->layout.rank)
                return 0;
        if (batch < (uint64_t)s->test.overflow_step || batch >= (uint64_t)(s->test.overflow_step + steps))
                return 0;
        for (int i = 0; i < t->table.n; i++)
                if (strcmp(t->table.tensors[i].name, s->test.overflow_tensor) == 0)
                        TRY_DEV(e, t->model.ops->copy_in(t->model.grads + t->table.tensors[i].offset, &infinity, sizeof(infinity), t->model.stream));
        return 0;
}

void hook_slow(struct trainer *t) {
        struct timespec ts = { .tv_sec = t->spec->test.slow_ms / 1000, .tv_nsec = t->spec->test.slow_ms % 1000 * 1000000 };

        if (t->spec->test.slow_ms > 0 && (t->spec->test.slow_rank < 0 || t->spec->test.slow_rank == t->layout.rank))
                nanosleep(&ts, NULL);
}

/* The top bit of the mantissa of a value in the middle, in the working copy that this rank computes with. */
int hook_flip(struct trainer *t, struct error *e) {
        size_t at = act_bytes(&t->model, t->table.elements / 2);
        uint8_t byte;

        if (!t->config.test_hooks_armed || t->flipped || t->spec->test.flip_step < 0 || (uint64_t)t->spec->test.flip_step != t->progress.step + 1 || t->spec->test.flip_rank != t->layout.rank)
                return 0;
        TRY_DEV(e, t->model.ops->copy_out(&byte, (char *)t->model.params + at, 1, t->model.stream));
        TRY_DEV(e, t->model.ops->stream_sync(t->model.stream));
        t->flipped = true;
        byte ^= 0x40;
        TRY_DEV(e, t->model.ops->copy_in((char *)t->model.params + at, &byte, 1, t->model.stream));
        TRY_DEV(e, t->model.ops->stream_sync(t->model.stream));
        return 0;
}
