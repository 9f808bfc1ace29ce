/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Loss scaling (docs/numerics.md): powers of two in `dynamic` (Micikevicius et al. 2018), small moves in `gentle`.
 *   dynamic: init 65536, x0.5 on overflow, x2 after 2000 clean steps, floor 1, no cap
 *   gentle:  init 128, /2 on overflow, floor 1, x1.01 every 100 clean steps, cap 512
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/job_spec.h"

struct loss_scaler {
        enum job_loss_scale kind;
        double scale;
        uint64_t clean; /* steps since the last change */
};

void loss_scaler_init(struct loss_scaler *l, enum job_loss_scale kind, double init /* 0: the kind's own */);
/* After a step: did its gradients overflow? */
void loss_scaler_update(struct loss_scaler *l, bool overflow);
