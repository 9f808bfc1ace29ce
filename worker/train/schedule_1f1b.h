/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One forward, one backward (PipeDream-Flush; Narayanan et al. 2021, arXiv 2104.04473, section 2.2): stage s of pp runs pp - 1 - s forwards ahead, then
 * alternates, then drains.  No more than pp - s micro-batches are in flight.
 */
#include <stdbool.h>

struct schedule_action {
        bool backward;
        int micro_batch;
};

/* Fills actions[2 * n_micro], in order; returns their number. */
int schedule_1f1b(int pp, int stage, int n_micro, struct schedule_action *actions);
