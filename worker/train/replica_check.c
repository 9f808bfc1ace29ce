// SPDX-License-Identifier: Apache-2.0
/*
 * Silent corruption.  With a sharded optimizer only the working parameters are the same on all replicas: each rank hashes them after it has computed with them and before the step counts, and the hashes travel
 * with the agreement.  A difference means that somebody computed with other weights in this step: it is not committed.  What was made before the newest comparison that agreed is sound; a master
 * weight that changes in memory has no second copy to be compared with, and reaches all replicas alike.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "worker/train/trainer_private.h"

static bool due(const struct trainer *t) {
        int64_t every = t->spec->recovery.checksum_every;

        return every > 0 && t->layout.dp > 1 && (t->progress.step + 1) % (uint64_t)every == 0;
}

int replica_checksum(struct trainer *t, uint64_t *ret, struct error *e) {
        struct digest_stream *s = NULL;
        int r;

        *ret = 0;
        if (!due(t))
                return 0;
        if (digest_stream_new(&s) < 0)
                return error_set(e, -ENOMEM, "no memory for a checksum");
        r = digest_add(t, s, t->model.params, act_bytes(&t->model, t->table.elements), e);
        if (r == 0)
                *ret = digest_stream_end(s).lo | 1;
        digest_stream_free(s);
        return r;
}

/* Ranks of one place in the layout, over dp. */
static int odd_of_place(const struct layout *l, const struct vote *votes, int pp, int tp, bool *odd) {
        int n = 0, most = 0;
        uint64_t common = 0;

        for (int i = 0; i < l->dp; i++) {
                uint64_t sum = votes[(pp * l->dp + i) * l->tp + tp].checksum;
                int same = 0;

                for (int k = 0; k < l->dp; k++)
                        same += votes[(pp * l->dp + k) * l->tp + tp].checksum == sum;
                if (same > most) {
                        most = same;
                        common = sum;
                }
        }
        for (int i = 0; i < l->dp && most < l->dp; i++) {
                int rank = (pp * l->dp + i) * l->tp + tp;

                odd[rank] = 2 * most <= l->dp || votes[rank].checksum != common;
                n += odd[rank];
        }
        return n;
}

int replica_odd(const struct layout *l, const struct vote *votes, bool *odd) {
        int n = 0;

        memset(odd, 0, (size_t)l->n_ranks * sizeof(*odd));
        for (int pp = 0; pp < l->pp; pp++)
                for (int tp = 0; tp < l->tp; tp++)
                        n += odd_of_place(l, votes, pp, tp, odd);
        return n;
}

int replica_check(struct trainer *t, struct error *e) {
        int n;

        if (!due(t))
                return 0;
        n = replica_odd(&t->layout, t->votes, t->odd);
        if (n == 0) {
                t->clean_step = t->progress.step + 1;
                return 0;
        }
        return error_set(e, -EILSEQ, "checksums of parameters differ between replicas in step %llu", (unsigned long long)t->progress.step + 1);
}

size_t trainer_suspects(const struct trainer *t, uint32_t *ret, size_t max, int *ret_odd, uint64_t *ret_clean) {
        const struct layout *l = &t->layout;
        size_t n = 0;
        int count = 0, first = -1;

        for (int i = 0; i < l->n_ranks; i++) {
                if (!t->odd[i])
                        continue;
                count++;
                first = first < 0 ? i : first;
                if (n < max)
                        ret[n++] = (uint32_t)i;
        }
        *ret_odd = count == 1 ? first : -1; /* two at once are no majority's word about one */
        *ret_clean = t->clean_step;
        return n;
}
