// SPDX-License-Identifier: Apache-2.0
#include "worker/train/zero.h"

#include <errno.h>
#include <stdlib.h>

/* The allowed cut nearest to `want`. Tensors lie one after another, padding belongs to the one before it. */
static int64_t nearest_cut(const struct tensor_table *t, int64_t want) {
        int64_t best = 0;

        for (int i = 0; i < t->n; i++) {
                const struct tensor *x = &t->tensors[i];
                int64_t band = x->norm ? x->count : ZERO_BAND * x->cols, k = (want - x->offset + band / 2) / band, at;

                if (want < x->offset)
                        k = 0;
                at = x->offset + k * band;
                if (at >= x->offset + x->count)
                        at = k > 0 ? INT64_MAX : x->offset;
                if (at != INT64_MAX && llabs(at - want) < llabs(best - want))
                        best = at;
        }
        return llabs(t->elements - want) < llabs(best - want) ? t->elements : best;
}

static void add_pieces(const struct tensor_table *t, struct zero *z) {
        int64_t lo = zero_begin(z), hi = lo + zero_count(z);

        for (int i = 0; i < t->n; i++) {
                const struct tensor *x = &t->tensors[i];
                int64_t a = lo > x->offset ? lo : x->offset, b = hi < x->offset + x->count ? hi : x->offset + x->count;

                if (a >= b)
                        continue;
                z->pieces[z->n_pieces++] = (struct zero_piece){
                        .tensor = x, .row0 = (a - x->offset) / x->cols, .rows = (b - a) / x->cols, .offset = a, .count = b - a
                };
        }
}

int zero_init(const struct tensor_table *t, int dp, int index, struct zero *ret, struct error *e) {
        struct zero z = { .dp = dp, .index = index };

        z.cuts = calloc((size_t)dp + 1, sizeof(*z.cuts));
        z.pieces = calloc((size_t)t->n, sizeof(*z.pieces));
        if (!z.cuts || !z.pieces) {
                zero_done(&z);
                return error_set(e, -ENOMEM, "no memory for the optimizer's cuts");
        }
        for (int i = 1; i < dp; i++) { /* nearest_cut rises with its argument */
                z.cuts[i] = nearest_cut(t, t->elements * i / dp);
                if (z.cuts[i] < z.cuts[i - 1])
                        z.cuts[i] = z.cuts[i - 1];
        }
        z.cuts[dp] = t->elements;
        add_pieces(t, &z);
        *ret = z;
        return 0;
}

void zero_done(struct zero *z) {
        free(z->cuts);
        free(z->pieces);
        *z = (struct zero){ 0 };
}
