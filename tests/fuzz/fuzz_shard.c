/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a shard image: refused, or consistent in itself. */
#include <stdlib.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "format/shard.h"

static const char two[] = "\xa1\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[1,2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[2,8]},"
                          "\"__metadata__\":{\"slice:a\":\"[[1,2],[0,2]] of [9,2]\"}}12345678";
static const char none[] = "\x02\0\0\0\0\0\0\0{}";

const struct fuzz_seed fuzz_seeds[] = { { two, sizeof(two) - 1 }, { none, sizeof(none) - 1 } };
const size_t fuzz_seeds_n = ARRAY_SIZE(fuzz_seeds);

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
