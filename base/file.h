/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Files: whole reads with a bound, durable writes, folders, bounded logs. All calls block. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* Reads at most max bytes; a larger file is -EFBIG. *ret_data is NUL-terminated after its len bytes; free() it. */
int file_read(const char *path, size_t max, char **ret_data, size_t *ret_len, struct error *e);
/* Temporary name in the same folder, write, fsync, rename, fsync of the folder: old or new, never half. */
int file_write_atomic(const char *path, const void *data, size_t len, mode_t mode, struct error *e);
/* write(2) until all is written; handles EINTR and short writes. */
int file_write_all(int fd, const void *data, size_t len);
/* mkdir -p. An existing folder is fine. */
int file_mkdir_p(const char *path, mode_t mode, struct error *e);
/* The same, and the entries of the folders that are new, and of the last one in any case, survive a power cut. */
int file_mkdir_p_durable(const char *path, mode_t mode, struct error *e);
int file_fsync_dir(const char *path, struct error *e);
/* rm -r, never following a symbolic link; a path that is not there is fine. */
int file_remove_tree(const char *path, struct error *e);
/* asprintf for paths: NULL on no memory. */
char *file_path(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/*
 * An append-only log kept within 2 * max_bytes: at max_bytes `path` is renamed to `path.1` (which is replaced) and a
 * new one begins. Not thread-safe.
 */
struct rotated_log;
int rotated_log_open(const char *path, uint64_t max_bytes, struct rotated_log **ret, struct error *e);
int rotated_log_write(struct rotated_log *l, const void *data, size_t len);
struct rotated_log *rotated_log_free(struct rotated_log *l);
/*
 * Reads from a logical offset counted over the life of the log (rotation does not reset it: the start offset of each
 * file is kept beside it in `path.offset`). An offset already rotated away moves to the oldest byte there is.
 * *ret_next is where to go on; *ret_len 0: nothing new.
 */
int rotated_log_read(const char *path, uint64_t offset, void *buf, size_t size, size_t *ret_len, uint64_t *ret_next,
                     struct error *e);
