/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINE_SIZE 2048

/* One log for a process: the only globals of base/. Set by log_open before threads start, read-only afterwards. */
static char log_name[64];
static bool log_to_journal;
static _Atomic int log_max = LOG_LEVEL_INFO;

static const struct {
        const char *name;
        enum log_level level;
} levels[] = {
        { "error", LOG_LEVEL_ERROR },
        { "warning", LOG_LEVEL_WARNING },
        { "info", LOG_LEVEL_INFO },
        { "debug", LOG_LEVEL_DEBUG },
};

/* systemd sets JOURNAL_STREAM=<device>:<inode> of the stream it gave us (systemd.exec(5)); stderr may have been redirected since. */
static bool stderr_is_journal(void) {
        const char *s = getenv("JOURNAL_STREAM");
        unsigned long long device, inode;
        struct stat st;

        if (!s || sscanf(s, "%llu:%llu", &device, &inode) != 2 || fstat(STDERR_FILENO, &st) < 0)
                return false;
        return st.st_dev == device && st.st_ino == inode;
}

void log_open(const char *name, enum log_level max) {
        snprintf(log_name, sizeof(log_name), "%s", name ? name : "");
        log_to_journal = stderr_is_journal();
        log_max = max;
}

int log_level_parse(const char *s) {
        for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
                if (strcmp(levels[i].name, s) == 0)
                        return (int)levels[i].level;
        return -EINVAL;
}

static const char *level_name(enum log_level level) {
        for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
                if (levels[i].level == level)
                        return levels[i].name;
        return "log";
}

static int print_head(char *line, size_t size, enum log_level level) {
        struct timespec now = { 0 };
        struct tm tm = { 0 };
        char stamp[32];

        if (log_to_journal)
                return snprintf(line, size, "<%d>", (int)level);
        clock_gettime(CLOCK_REALTIME, &now);
        localtime_r(&now.tv_sec, &tm);
        strftime(stamp, sizeof(stamp), "%Y-%m-%d %H:%M:%S", &tm);
        return snprintf(line, size, "%s.%03ld %s%s%s: ", stamp, now.tv_nsec / 1000000, log_name, log_name[0] ? " " : "",
                        level_name(level));
}

void log_write(enum log_level level, const char *fmt, ...) {
        char line[LINE_SIZE];
        int saved_errno = errno, head, body;
        size_t len;
        va_list ap;
        ssize_t n;

        if ((int)level > log_max)
                return;
        head = print_head(line, sizeof(line) - 1, level);
        va_start(ap, fmt);
        body = vsnprintf(line + head, sizeof(line) - 1 - (size_t)head, fmt, ap);
        va_end(ap);
        len = (size_t)head + (body > 0 ? (size_t)body : 0);
        if (len > sizeof(line) - 2)
                len = sizeof(line) - 2;
        for (size_t i = (size_t)head; i < len; i++) /* one call, one line, whatever a peer put into it */
                if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
                        line[i] = ' ';
        line[len++] = '\n';
        /* One write for the whole line: lines of threads (and of processes sharing the file) do not mix. */
        do
                n = write(STDERR_FILENO, line, len);
        while (n < 0 && errno == EINTR);
        errno = saved_errno;
}
