/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Scope cleanup in systemd's manner: _cleanup_(f) calls f(&variable) when the scope ends. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

/* Defines f##p(T *p) that calls f(*p) when *p is not NULL, for use with _cleanup_. */
#define DEFINE_CLEANUP(type, f)                   \
        static inline void f##p(type *p) {        \
                if (*p)                           \
                        f(*p);                    \
        }                                         \
        struct cleanup_semicolon_##f

static inline void freep(void *p) {
        free(*(void **)p);
}
static inline void closep(int *fd) {
        if (*fd >= 0)
                close(*fd);
}
static inline void fclosep(FILE **f) {
        if (*f)
                fclose(*f);
}

#define _cleanup_free_ _cleanup_(freep)
#define _cleanup_close_ _cleanup_(closep)
#define _cleanup_fclose_ _cleanup_(fclosep)

/* Hands ownership out of a cleanup variable. */
#define STEAL_PTR(p)                       \
        ({                                 \
                __auto_type _p = (p);      \
                (p) = NULL;                \
                _p;                        \
        })
#define STEAL_FD(fd)                \
        ({                          \
                int _fd = (fd);     \
                (fd) = -1;          \
                _fd;                \
        })

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
