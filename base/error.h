/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Errors: every function that can fail returns 0 or a negative errno and, when the caller passes a
 * struct error, fills it with one line that says what was found and what was expected.
 *
 * A positive return value is a condition that the caller must handle (see comm.h); it is not fatal.
 * Outputs (ret_x) are untouched on failure.  A NULL struct error is allowed everywhere.
 */
#include <errno.h>
#include <stdarg.h>

#define ERROR_TEXT_SIZE 1024

struct error {
        int code;        /* negative errno, 0 when nothing failed */
        char text[ERROR_TEXT_SIZE]; /* one line, no newline at its end */
};

/* Sets code and text; returns code, so that a failing path reads `return error_set(e, -EINVAL, ...)`. */
int error_set(struct error *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int error_setv(struct error *e, int code, const char *fmt, va_list ap) __attribute__((format(printf, 3, 0)));
/* As error_set with the negative of errnum (> 0), and ": <strerror>" after the text. */
int error_errno(struct error *e, int errnum, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts "<prefix>: " before the text that is there; keeps and returns the code. */
int error_prefix(struct error *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* What the static analyser cannot see from one file alone: these return what they are given, so a failing path fails. */
#if defined(__clang_analyzer__) && !defined(ERROR_IMPLEMENTATION)
#define error_set(e, code, ...) ((error_set)((e), (code), __VA_ARGS__), (code))
#define error_errno(e, errnum, ...) ((error_errno)((e), (errnum), __VA_ARGS__), -EIO)
#endif
