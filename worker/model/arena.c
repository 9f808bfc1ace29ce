// SPDX-License-Identifier: Apache-2.0
#include "worker/model/arena.h"

#define ARENA_ALIGN ((size_t)256)

void *arena_take(struct arena *a, size_t bytes) {
        size_t at = a->used;

        if (bytes == 0)
                return NULL;
        a->used += (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
        return a->base ? a->base + at : NULL;
}

int arena_commit(struct arena *a, const struct dev_ops *ops, struct dev *d, struct error *e) {
        void *p = NULL;
        int r;

        a->size = a->used ? a->used : ARENA_ALIGN;
        r = ops->alloc(d, a->size, &p, e);
        if (r < 0)
                return error_prefix(e, "arena of %zu bytes", a->size);
        a->base = p;
        a->used = 0;
        return 0;
}

void arena_release(struct arena *a, const struct dev_ops *ops, struct dev *d) {
        if (a->base)
                ops->free(d, a->base);
        *a = (struct arena){ 0 };
}
