/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One log for a process, written to stderr (or the journal when JOURNAL_STREAM says that stderr is
 * it: then with <N> priorities and without time stamps).  Only programs (main, daemons' io layers) log
 * above debug; libraries return errors.  Thread-safe.  Never give it a secret.
 */
enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARNING = 4, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };

/* name: put before each line ("fp8d", "fp8-rank 3"); copied. */
void log_open(const char *name, enum log_level max);
/* "error", "warning", "info", "debug" -> level, or -EINVAL. */
int log_level_parse(const char *s);
void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)
