/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tells by itself: the kernel's log (/dev/kmsg), and the events of fp8guard where that is loaded.  Lines come from the log when it can be read, else from fp8guard; what only fp8guard sees (memory errors, block
 * errors by their tracepoints) comes from there.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "driver/fp8guard_uapi.h"
#include "worker/health/health_private.h"

#define READS_A_TURN 64 /* then the loop has its turn */
#define USER_PRIORITY 8 /* the facility is not the kernel's */

static uint64_t wall_of(const struct health *h, uint64_t mono_ns) {
        uint64_t now = h->world.mono_ns(), wall = h->world.wall_ns();

        return (now > mono_ns && wall > now - mono_ns ? wall - (now - mono_ns) : wall) / NSEC_PER_MSEC;
}

static void take_line(struct health *h, const char *line, size_t len) {
        struct kernel_finding f;
        struct kernel_line l;

        if (!kernel_line_parse(line, len, &l) || (l.priority >= USER_PRIORITY && !h->user_lines) || !kernel_line_find(&l, &f))
                return;
        health_found(h, &f, l.sequence + 1, wall_of(h, l.us * 1000)); /* the first record has number 0 */
}

/* A record a read in /dev/kmsg, any bytes in a test's pipe: lines either way. Continuation lines (" SUBSYSTEM=pci") have not the form of a record. */
static void take_bytes(struct health *h, const char *buf, size_t n) {
        for (size_t i = 0; i < n; i++) {
                if (buf[i] == '\n') {
                        if (!h->log_skip)
                                take_line(h, h->log_line, h->log_len);
                        h->log_len = 0;
                        h->log_skip = false;
                } else if (h->log_len < sizeof(h->log_line)) {
                        h->log_line[h->log_len++] = buf[i];
                } else {
                        h->log_skip = true;
                }
        }
}

static void on_log(void *arg, uint32_t revents) {
        struct health *h = arg;
        char buf[8192 + 1024]; /* a record's text and its dictionary (printk's own bound) */

        for (int i = 0; i < READS_A_TURN; i++) {
                ssize_t n = read(h->log_fd, buf, sizeof(buf));

                if (n > 0) {
                        take_bytes(h, buf, (size_t)n);
                        continue;
                }
                if (n < 0 && (errno == EPIPE || errno == EINTR)) /* records were overwritten before they were read: the next is the oldest there is */
                        continue;
                if (n == 0 || errno != EAGAIN) {
                        h->log_source = loop_remove(h->log_source);
                        closep(&h->log_fd);
                        h->log_fd = -1;
                }
                break;
        }
        health_flush(h);
}

/* ------------------------------------------------------------------ fp8guard */
static void take_event(struct health *h, const struct fp8guard_event *ev) {
        struct kernel_finding f = { 0 };
        struct kernel_line l = { .text = ev->text, .len = strnlen(ev->text, sizeof(ev->text)) };

        switch (ev->type) {
        case FP8GUARD_EVENT_XID:
        case FP8GUARD_EVENT_LINE:
                if (h->log_fd >= 0 || ((ev->flags & FP8GUARD_EVENT_USER) && !h->user_lines) || !kernel_line_find(&l, &f))
                        return;
                break;
        case FP8GUARD_EVENT_MCE: /* bit 61 of the status: uncorrected (Intel SDM 16.3.2.2, AMD APM 9.3.2) */
                f.check = "mce";
                f.verdict = ev->arg[0] >> 61 & 1 ? HEALTH_DRAIN : HEALTH_WARN;
                snprintf(f.text, sizeof(f.text), "machine check: bank %u of processor %u, status %#llx", (unsigned)(ev->arg[3] >> 32), (unsigned)ev->arg[3], (unsigned long long)ev->arg[0]);
                snprintf(f.subject, sizeof(f.subject), "bank %u", (unsigned)(ev->arg[3] >> 32));
                break;
        case FP8GUARD_EVENT_BLOCK:
                if (h->log_fd >= 0)
                        return; /* its line is in the log */
                f.check = "io";
                f.verdict = HEALTH_WARN;
                snprintf(f.subject, sizeof(f.subject), "%.32s", ev->text);
                snprintf(f.text, sizeof(f.text), "I/O error %lld at sector %llu", (long long)ev->arg[0], (unsigned long long)ev->arg[1]);
                break;
        case FP8GUARD_EVENT_AER:
                f.check = "pcie";
                f.verdict = ev->arg[1] == 1 ? HEALTH_DRAIN : ev->arg[1] == 0 ? HEALTH_WARN : HEALTH_OK;
                snprintf(f.subject, sizeof(f.subject), "%.32s", ev->text);
                snprintf(f.text, sizeof(f.text), "PCIe error, status %#llx, severity %llu", (unsigned long long)ev->arg[0], (unsigned long long)ev->arg[1]);
                break;
        case FP8GUARD_EVENT_IB:
                health_look_at_ports(h);
                return;
        default:
                return;
        }
        health_found(h, &f, 0, wall_of(h, ev->time_ns));
}

static void on_guard(void *arg, uint32_t revents) {
        struct health *h = arg;
        struct fp8guard_event list[16];
        ssize_t n = read(h->guard_fd, list, sizeof(list));

        for (size_t i = 0; n > 0 && i < (size_t)n / sizeof(list[0]); i++) {
                list[i].text[sizeof(list[i].text) - 1] = 0;
                take_event(h, &list[i]);
        }
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
                h->guard_source = loop_remove(h->guard_source);
                closep(&h->guard_fd);
                h->guard_fd = -1;
        }
        health_flush(h);
}

static void start(struct health *h, const char *path, int *fd, void (*fn)(void *arg, uint32_t revents), struct loop_source **source) {
        _cleanup_free_ char *full = world_path(&h->world, "%s", path);

        struct stat s;

        *fd = full ? open(full, O_RDONLY | O_NONBLOCK | O_CLOEXEC) : -1;
        if (*fd >= 0 && fstat(*fd, &s) == 0 && S_ISFIFO(s.st_mode)) { /* a test's: it has no end when its writer leaves */
                close(*fd);
                *fd = open(full, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        }
        if (*fd >= 0 && loop_add_fd(h->config.loop, *fd, EPOLLIN, fn, h, source) < 0) {
                close(*fd);
                *fd = -1;
        }
}

void sources_start(struct health *h) {
        start(h, "/dev/kmsg", &h->log_fd, on_log, &h->log_source);
        start(h, FP8GUARD_DEVICE, &h->guard_fd, on_guard, &h->guard_source);
}

void sources_stop(struct health *h) {
        h->log_source = loop_remove(h->log_source);
        h->guard_source = loop_remove(h->guard_source);
        closep(&h->log_fd);
        closep(&h->guard_fd);
        h->log_fd = h->guard_fd = -1;
}
