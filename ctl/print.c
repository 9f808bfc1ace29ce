/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/print.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

bool colour_wanted(FILE *f) {
        const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

        return !(no && *no) && !(term && strcmp(term, "dumb") == 0) && isatty(fileno(f));
}

const char *colour_begin(FILE *f, enum colour c) {
        static const char *const codes[] = { "", "\033[32m", "\033[33m", "\033[31m", "\033[2m", "\033[1m" };

        return c != COLOUR_NONE && colour_wanted(f) ? codes[c] : "";
}

const char *colour_end(FILE *f, enum colour c) {
        return c != COLOUR_NONE && colour_wanted(f) ? "\033[0m" : "";
}

enum colour colour_of_state(const char *state) {
        static const struct {
                const char *state;
                enum colour colour;
        } table[] = {
                { "RUNNING", COLOUR_GREEN }, { "COMPLETED", COLOUR_GREEN }, { "ready", COLOUR_GREEN },    { "running", COLOUR_GREEN },
                { "up", COLOUR_GREEN },      { "RECOVERING", COLOUR_YELLOW }, { "STARTING", COLOUR_YELLOW }, { "STOPPING", COLOUR_YELLOW },
                { "PENDING", COLOUR_YELLOW }, { "leaving", COLOUR_YELLOW }, { "waiting", COLOUR_YELLOW }, { "warning", COLOUR_YELLOW },
                { "degraded", COLOUR_YELLOW }, { "FAILED", COLOUR_RED },    { "lost", COLOUR_RED },       { "error", COLOUR_RED },
                { "down", COLOUR_RED },      { "failed", COLOUR_RED },    { "stopped", COLOUR_RED },   { "CANCELLED", COLOUR_DIM },   { "info", COLOUR_DIM },
        };

        for (size_t i = 0; i < ARRAY_SIZE(table); i++)
                if (strcmp(table[i].state, state) == 0)
                        return table[i].colour;
        return COLOUR_NONE;
}

/* Length of the UTF-8 character at s, 0 when it is none or a control character (C1 included). */
static int utf8_length(const unsigned char *s) {
        int n = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3 : s[0] >= 0xf0 && s[0] < 0xf5 ? 4 : 0;

        if (n == 1)
                return s[0] >= 0x20 && s[0] != 0x7f;
        for (int i = 1; i < n; i++)
                if ((s[i] & 0xc0) != 0x80)
                        return 0;
        if (n == 2 && s[0] == 0xc2 && s[1] < 0xa0)
                return 0;
        return n;
}

void print_text(FILE *f, const char *s) {
        for (const unsigned char *p = (const unsigned char *)s; *p;) {
                int n = utf8_length(p);

                if (n == 0) {
                        putc('?', f);
                        p++;
                        continue;
                }
                fwrite(p, 1, (size_t)n, f);
                p += n;
        }
}

/* Columns on a screen: characters, not bytes. */
static int text_width(const char *s) {
        int width = 0;

        for (const unsigned char *p = (const unsigned char *)s; *p; width++) {
                int n = utf8_length(p);

                p += n ? n : 1;
        }
        return width;
}

void print_object(const struct ctl *c, const json_t *o) {
        if (c->format == FORMAT_YAML) {
                print_yaml(stdout, o);
                return;
        }
        json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
        putchar('\n');
}

void print_object_line(const json_t *o) {
        json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(17));
        putchar('\n');
        fflush(stdout);
}

struct sheet {
        const struct sheet_column *columns;
        size_t n_columns, n_cells, size;
        char **cells;
};

struct sheet *sheet_new(const struct sheet_column *columns, size_t n) {
        struct sheet *s = calloc(1, sizeof(*s));

        if (!s)
                return NULL;
        s->columns = columns;
        s->n_columns = n;
        return s;
}

struct sheet *sheet_free(struct sheet *s) {
        if (!s)
                return NULL;
        for (size_t i = 0; i < s->n_cells; i++)
                free(s->cells[i]);
        free(s->cells);
        free(s);
        return NULL;
}

void sheet_add(struct sheet *s, const char *fmt, ...) {
        va_list ap;
        char *text = NULL;

        if (!s)
                return;
        if (s->n_cells == s->size) {
                size_t size = s->size ? 2 * s->size : 64;
                char **cells = realloc(s->cells, size * sizeof(*cells));

                if (!cells)
                        return;
                s->cells = cells;
                s->size = size;
        }
        va_start(ap, fmt);
        if (vasprintf(&text, fmt, ap) < 0)
                text = NULL;
        va_end(ap);
        s->cells[s->n_cells++] = text;
}

static const char *cell_text(const struct sheet *s, size_t i) {
        return i < s->n_cells && s->cells[i] && s->cells[i][0] ? s->cells[i] : "-";
}

static void print_cell(FILE *f, const char *text, int width, bool right, enum colour colour) {
        int pad = width - text_width(text);

        if (right)
                fprintf(f, "%*s", pad > 0 ? pad : 0, "");
        fputs(colour_begin(f, colour), f);
        print_text(f, text);
        fputs(colour_end(f, colour), f);
        if (!right)
                fprintf(f, "%*s", pad > 0 ? pad : 0, "");
}

void sheet_print(const struct sheet *s, bool wide, FILE *f) {
        size_t n_rows;

        if (!s)
                return;
        n_rows = s->n_cells / s->n_columns;
        _cleanup_free_ int *width = calloc(s->n_columns, sizeof(*width));
        size_t last = 0;

        if (!width)
                return;
        for (size_t k = 0; k < s->n_columns; k++) {
                width[k] = text_width(s->columns[k].title);
                if (wide || !s->columns[k].wide)
                        last = k;
                for (size_t r = 0; r < n_rows; r++) {
                        int w = text_width(cell_text(s, r * s->n_columns + k));

                        width[k] = w > width[k] ? w : width[k];
                }
        }
        for (size_t r = 0; r <= n_rows; r++) {
                for (size_t k = 0; k <= last; k++) {
                        const struct sheet_column *col = &s->columns[k];
                        const char *text = r == 0 ? col->title : cell_text(s, (r - 1) * s->n_columns + k);
                        enum colour colour = r == 0 ? COLOUR_BOLD : col->state ? colour_of_state(text) : COLOUR_NONE;

                        if (!wide && col->wide)
                                continue;
                        print_cell(f, text, k == last && !col->right ? 0 : width[k], col->right, colour);
                        fputs(k == last ? "\n" : "  ", f);
                }
        }
}

char *text_bytes(char buf[TEXT_BUF], uint64_t bytes) {
        static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
        double v = (double)bytes;
        size_t u = 0;

        while (v >= 1024 && u + 1 < ARRAY_SIZE(units)) {
                v /= 1024;
                u++;
        }
        snprintf(buf, TEXT_BUF, u && v < 100 ? "%.1f %s" : "%.0f %s", v, units[u]);
        return buf;
}

char *text_duration(char buf[TEXT_BUF], double seconds) {
        if (!isfinite(seconds) || seconds < 0)
                snprintf(buf, TEXT_BUF, "-");
        else if (seconds < 10)
                snprintf(buf, TEXT_BUF, "%.1fs", seconds);
        else if (seconds < 60)
                snprintf(buf, TEXT_BUF, "%.0fs", seconds);
        else if (seconds < 3600)
                snprintf(buf, TEXT_BUF, "%dm%02ds", (int)seconds / 60, (int)seconds % 60);
        else if (seconds < 86400)
                snprintf(buf, TEXT_BUF, "%dh%02dm", (int)seconds / 3600, (int)seconds % 3600 / 60);
        else
                snprintf(buf, TEXT_BUF, "%.0fd%02dh", floor(seconds / 86400), (int)(fmod(seconds, 86400) / 3600));
        return buf;
}

char *text_time(char buf[TEXT_BUF], uint64_t unix_ms) {
        time_t t = (time_t)(unix_ms / 1000);
        struct tm tm;

        if (unix_ms == 0 || !localtime_r(&t, &tm) || strftime(buf, TEXT_BUF, "%Y-%m-%d %H:%M:%S", &tm) == 0)
                snprintf(buf, TEXT_BUF, "-");
        return buf;
}

char *text_age(char buf[TEXT_BUF], uint64_t unix_ms) {
        double now = (double)clock_wall_ns() / 1e9;

        return text_duration(buf, unix_ms ? fmax(0, now - (double)unix_ms / 1e3) : NAN);
}

char *text_number(char buf[TEXT_BUF], const char *fmt, double v) {
        if (isnan(v)) {
                snprintf(buf, TEXT_BUF, "-");
                return buf;
        }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(buf, TEXT_BUF, fmt, v);
#pragma GCC diagnostic pop
        return buf;
}
