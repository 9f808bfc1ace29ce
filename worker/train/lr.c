// SPDX-License-Identifier: Apache-2.0
#include "worker/train/lr.h"

#include <math.h>

static double clamp01(double x) {
        return x < 0 ? 0 : x > 1 ? 1 : x;
}

double lr_at(const struct job_spec *s, uint64_t n) {
        double lr = s->optimizer.lr, low = s->optimizer.min_lr, at = (double)n + 1;
        double warm = (double)s->optimizer.warmup_steps, steps = (double)s->train.steps, decay;

        if (at <= warm)
                return lr * at / warm;
        switch (s->optimizer.schedule) {
        case SCHEDULE_COSINE:
                decay = clamp01((at - warm) / (steps > warm ? steps - warm : 1));
                return low + 0.5 * (lr - low) * (1 + cos(M_PI * decay));
        case SCHEDULE_WSD:
                decay = (double)s->optimizer.decay_steps;
                return lr - (lr - low) * clamp01((at - (steps - decay)) / (decay > 0 ? decay : 1)) * (decay > 0);
        default:
                return lr;
        }
}
