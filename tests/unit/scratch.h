/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A folder of a test's own, removed at its end, and small files in it. */
#include <CUnit/CUnit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"

struct scratch {
        char dir[64];
        char path[256]; /* of the last scratch_path() */
};

static inline struct scratch scratch_new(void) {
        struct scratch s = { .dir = "/tmp/fp8ctl-test-XXXXXX" };

        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(s.dir));
        return s;
}

static inline void scratch_free(struct scratch *s) {
        struct error e;

        CU_ASSERT_EQUAL(file_remove_tree(s->dir, &e), 0);
}

static inline const char *scratch_path(struct scratch *s, const char *name) {
        snprintf(s->path, sizeof(s->path), "%s/%s", s->dir, name);
        return s->path;
}

static inline void scratch_write(struct scratch *s, const char *name, const void *data, size_t len) {
        struct error e;

        CU_ASSERT_EQUAL_FATAL(file_write_atomic(scratch_path(s, name), data, len, 0644, &e), 0);
}

static inline void scratch_text(struct scratch *s, const char *name, const char *text) {
        scratch_write(s, name, text, strlen(text));
}

#define _cleanup_scratch_ _cleanup_(scratch_free)
