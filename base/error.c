/* SPDX-License-Identifier: Apache-2.0 */
#define ERROR_IMPLEMENTATION
#include "base/error.h"

#include <stdio.h>
#include <string.h>

/* A message may quote what a peer or a file said; whatever that was, the text stays one line. */
static void keep_one_line(char *s) {
        for (; *s; s++)
                if ((unsigned char)*s < 0x20 || *s == 0x7f)
                        *s = ' ';
}

int error_setv(struct error *e, int code, const char *fmt, va_list ap) {
        char text[ERROR_TEXT_SIZE];

        if (!e)
                return code;
        /* Through a buffer of our own: the arguments may point into e->text. */
        vsnprintf(text, sizeof(text), fmt, ap);
        keep_one_line(text);
        memcpy(e->text, text, sizeof(text));
        e->code = code;
        return code;
}

int error_set(struct error *e, int code, const char *fmt, ...) {
        va_list ap;

        va_start(ap, fmt);
        error_setv(e, code, fmt, ap);
        va_end(ap);
        return code;
}

int error_errno(struct error *e, int errnum, const char *fmt, ...) {
        const char *why = strerrordesc_np(errnum);
        char text[ERROR_TEXT_SIZE];
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        return error_set(e, -errnum, "%s: %s", text, why ? why : "unknown error");
}

int error_prefix(struct error *e, const char *fmt, ...) {
        char prefix[ERROR_TEXT_SIZE];
        va_list ap;

        if (!e)
                return 0;
        va_start(ap, fmt);
        vsnprintf(prefix, sizeof(prefix), fmt, ap);
        va_end(ap);
        return error_set(e, e->code, "%s: %s", prefix, e->text);
}
