/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Flight recorders of all ranks side by side: who is inside which collective, who has not entered it, and therefore who holds the others up (pure).
 */
#include "proto/fp8ctl.pb-c.h"

struct stall_shape {
        int tp, pp, dp;
};

/*
 * ret: epoch, culprit, verdict, stuck and open are filled in; ranks[tp * pp * dp], in rank order, each with a node's name; they stay the caller's. -ENOMEM.  Freed with stall_done.
 */
int stall_diagnose(const struct stall_shape *s, Fp8ctl__V1__RankDiagnosis *const *ranks, Fp8ctl__V1__Diagnosis *ret);
void stall_done(Fp8ctl__V1__Diagnosis *d);
