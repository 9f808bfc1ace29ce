/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/progress.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define BAR 24

struct progress {
        bool terminal, plain, drawn;
        uint64_t plain_every_ns, last_plain_ns;
        uint64_t last_step;
        Fp8ctl__V1__JobState last_state;
        /* For the time left: steps since we began to look, without the time that recoveries took. */
        uint64_t first_step, first_ns;
        bool started;
};

struct progress *progress_new(bool plain, int64_t plain_every_ms) {
        struct progress *p = calloc(1, sizeof(*p));

        if (!p)
                return NULL;
        p->terminal = isatty(STDERR_FILENO) && colour_wanted(stderr);
        p->plain = plain;
        p->plain_every_ns = (uint64_t)plain_every_ms * NSEC_PER_MSEC;
        return p;
}

/* Seconds left at the speed seen so far; NaN while nothing is known. */
static double time_left(struct progress *p, const Fp8ctl__V1__Job *j) {
        uint64_t now = clock_mono_ns();

        if (j->state == FP8CTL__V1__JOB_STATE__RUNNING && !p->started) {
                p->started = true;
                p->first_step = j->step;
                p->first_ns = now;
        }
        if (!p->started || j->step <= p->first_step || j->steps <= j->step)
                return j->steps && j->steps == j->step ? 0 : NAN;
        return (double)(now - p->first_ns) / 1e9 / (double)(j->step - p->first_step) * (double)(j->steps - j->step);
}

static void show_text(struct progress *p, const Fp8ctl__V1__Job *j, char *out, size_t size) {
        char loss[TEXT_BUF], speed[TEXT_BUF], left[TEXT_BUF];

        snprintf(out, size, "step %" PRIu64 "/%" PRIu64 "  loss %s  %s tokens/s  left %s  %s", j->step, j->steps, text_number(loss, "%.3f", j->loss_last),
                 text_number(speed, "%.0f", j->tokens_per_s), text_duration(left, time_left(p, j)), job_state_name(j->state));
}

static void draw(struct progress *p, const Fp8ctl__V1__Job *j) {
        double part = j->steps ? (double)j->step / (double)j->steps : 0;
        int full = (int)(part * BAR);
        struct winsize ws = { 0 };
        char text[256], bar[BAR + 1];
        int room;

        full = full < 0 ? 0 : full > BAR ? BAR : full;
        for (int i = 0; i < BAR; i++)
                bar[i] = i < full ? '#' : '.';
        bar[BAR] = 0;
        show_text(p, j, text, sizeof(text));
        if (ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) < 0 || ws.ws_col == 0)
                ws.ws_col = 80;
        room = (int)ws.ws_col - BAR - 4;
        fprintf(stderr, "\r\033[K%s[%s]%s %.*s", colour_begin(stderr, colour_of_state(job_state_name(j->state))), bar,
                colour_end(stderr, colour_of_state(job_state_name(j->state))), room > 0 ? room : 0, text);
        fflush(stderr);
        p->drawn = true;
}

void progress_show(struct progress *p, const Fp8ctl__V1__Job *j) {
        uint64_t now = clock_mono_ns();
        char text[256];

        if (!p)
                return;
        if (p->terminal) {
                draw(p, j);
                return;
        }
        if (!p->plain)
                return;
        if (p->last_plain_ns && now - p->last_plain_ns < p->plain_every_ns && j->state == p->last_state && !job_state_is_end(j->state)) {
                time_left(p, j);
                return;
        }
        p->last_plain_ns = now;
        p->last_state = j->state;
        show_text(p, j, text, sizeof(text));
        fprintf(stderr, "%s\n", text);
}

void progress_clear(struct progress *p) {
        if (p && p->drawn) {
                fputs("\r\033[K", stderr);
                fflush(stderr);
                p->drawn = false;
        }
}

struct progress *progress_free(struct progress *p) {
        if (!p)
                return NULL;
        if (p->drawn)
                fputc('\n', stderr);
        free(p);
        return NULL;
}
