/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A program that is run for its exit code and its first words: bounded in time and in what is kept of its output. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct program {
        const char *path;
        char *const *argv;   /* argv[0] too */
        uint32_t timeout_ms; /* then it and its process group are killed */
        bool our_environment; /* else it has a path and the locale C, and no more */
        bool nobody;         /* as the user nobody, without groups, when we are root */
        bool background;     /* on processors that nothing else wants */
        const void *input;   /* its standard input, short (a pipe holds it); NULL: none */
        size_t input_len;
        void (*said)(void *arg, const char *out); /* whenever it has said more; NULL: only the end counts */
        void *arg;
        const atomic_bool *cancel; /* it is killed when this becomes true; NULL: never */
};

/* May it be run with our rights? Not if somebody else could have written it: -EPERM; -ENOENT and so on. */
int program_safe(const char *path, struct error *e);
/* out: its standard output and error, cut at size - 1, NUL-terminated. *ret_status: as waitpid's. -ETIMEDOUT, -ECANCELED: it was killed (out and *ret_status are set all the same). */
int program_run(const struct program *p, char *out, size_t size, int *ret_status, struct error *e);
