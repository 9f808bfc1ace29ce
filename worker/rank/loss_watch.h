/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Spikes of the loss: far above the median of the newest, by their robust spread. */
#include <stdbool.h>
#include <stddef.h>

#define LOSS_WATCH_WINDOW 64

struct loss_watch {
        double last[LOSS_WATCH_WINDOW];
        size_t n;
        bool high; /* one event a spike, however long it lasts */
};

/* The loss of the next step. limit: so many robust standard deviations above the median are a spike; 0: none are. True when one begins; then the median is given. */
bool loss_watch_add(struct loss_watch *w, double loss, double limit, double *ret_median);
