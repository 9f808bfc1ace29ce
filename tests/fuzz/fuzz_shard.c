/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a shard image: refused, or consistent in itself. */
#include <stdlib.h>

#include "worker/ckpt/shard.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct shard_view *v = NULL;
        struct error e = { 0 };

        if (shard_view_open(data, size, &v, &e) < 0)
                return 0;
        for (size_t i = 0; i < shard_view_count(v); i++) {
                const struct shard_tensor *t = shard_view_tensor(v, i);
                size_t bytes;

                if (shard_tensor_bytes(t, &bytes) < 0 || (const uint8_t *)t->data < data || bytes > (size_t)(data + size - (const uint8_t *)t->data) ||
                    t->row0 < 0 || t->col0 < 0 || t->rows > t->global_rows - t->row0 || t->cols > t->global_cols - t->col0 || shard_view_find(v, t->name) != t)
                        abort();
        }
        shard_view_free(v);
        return 0;
}
