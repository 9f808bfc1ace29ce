// SPDX-License-Identifier: Apache-2.0
#include "worker/train/loss_scaler.h"

static const struct {
        double init, growth, cap;
        uint64_t interval;
} kinds[] = {
        [LOSS_SCALE_OFF] = { 1, 1, 1, 0 },
        [LOSS_SCALE_DYNAMIC] = { 65536, 2, 0, 2000 },
        [LOSS_SCALE_GENTLE] = { 128, 1.01, 512, 100 },
};

void loss_scaler_init(struct loss_scaler *l, enum job_loss_scale kind, double init) {
        *l = (struct loss_scaler){ .kind = kind, .scale = kind != LOSS_SCALE_OFF && init > 0 ? init : kinds[kind].init };
}

void loss_scaler_update(struct loss_scaler *l, bool overflow) {
        double cap = kinds[l->kind].cap;

        if (l->kind == LOSS_SCALE_OFF)
                return;
        if (overflow) {
                l->scale = l->scale / 2 < 1 ? 1 : l->scale / 2;
                l->clean = 0;
                return;
        }
        if (++l->clean < kinds[l->kind].interval)
                return;
        l->clean = 0;
        l->scale *= kinds[l->kind].growth;
        if (cap > 0 && l->scale > cap)
                l->scale = cap;
}
