/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/loss_watch.h"

#include <math.h>
#include <string.h>

#include "base/robust.h"

#define FEWEST 16         /* losses before one is judged */
#define LEAST_SPREAD 0.01 /* of the median: a loss that hardly moves has no spread to speak of */

bool loss_watch_add(struct loss_watch *w, double loss, double limit, double *ret_median) {
        double sorted[LOSS_WATCH_WINDOW], median, sigma;
        size_t n = w->n < LOSS_WATCH_WINDOW ? w->n : LOSS_WATCH_WINDOW;
        bool high = false, begins;

        if (!isfinite(loss))
                return false; /* such a step is skipped, and told as that */
        if (n >= FEWEST && limit > 0) {
                memcpy(sorted, w->last, n * sizeof(*sorted));
                robust_spread(sorted, n, &median, &sigma);
                high = loss > median + limit * fmax(sigma, LEAST_SPREAD * fabs(median));
                if (high)
                        *ret_median = median;
        }
        begins = high && !w->high;
        w->high = high;
        w->last[w->n++ % LOSS_WATCH_WINDOW] = loss;
        return begins;
}
