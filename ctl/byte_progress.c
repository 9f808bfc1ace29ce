/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <unistd.h>

#include "base/clock.h"
#include "ctl/checkpoint.h"
#include "ctl/print.h"

#define BAR 24
#define REDRAW_NS (100 * NSEC_PER_MSEC)

void byte_progress_begin(struct byte_progress *p, const char *what, uint64_t total) {
        *p = (struct byte_progress){ .what = what, .total = total, .began_ns = clock_mono_ns(), .terminal = isatty(STDERR_FILENO) && colour_wanted(stderr) };
}

static void draw(struct byte_progress *p, uint64_t now) {
        double part = p->total ? (double)p->done / (double)p->total : 1, seconds = (double)(now - p->began_ns) / 1e9;
        char bar[BAR + 1], done[TEXT_BUF], total[TEXT_BUF], speed[TEXT_BUF], left[TEXT_BUF];
        int full = part >= 1 ? BAR : (int)(part * BAR);

        for (int i = 0; i < BAR; i++)
                bar[i] = i < full ? '#' : '.';
        bar[BAR] = 0;
        fprintf(stderr, "\r\033[K%s [%s] %3.0f%%  %s of %s  %s/s  left %s", p->what, bar, 100 * part, text_bytes(done, p->done), text_bytes(total, p->total),
                text_bytes(speed, seconds > 0 ? (uint64_t)((double)p->done / seconds) : 0), text_duration(left, part > 0 ? seconds / part - seconds : NAN));
        fflush(stderr);
        p->drawn = true;
        p->drawn_ns = now;
}

void byte_progress_add(void *arg, size_t bytes) {
        struct byte_progress *p = arg;
        uint64_t now;

        p->done += bytes;
        if (!p->terminal)
                return;
        now = clock_mono_ns();
        if (now - p->drawn_ns >= REDRAW_NS)
                draw(p, now);
}

void byte_progress_end(struct byte_progress *p) {
        if (p->drawn)
                fputs("\r\033[K", stderr);
        p->drawn = false;
}
