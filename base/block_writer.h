/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A large file written from memory in aligned blocks, several of them under way at a time and past the page cache where the file system can do that: the cache
 * would copy every byte once more and push out what others need.  io_uring where it was built in and the kernel allows it, threads with pwrite otherwise.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define BLOCK_WRITER_ALIGN 4096u /* no device asks for more (logical blocks are 512 or 4096 bytes) */
#define BLOCK_WRITER_BLOCK (8u << 20)
#define BLOCK_WRITER_DEPTH 4

struct block_writer_config {
        uint64_t bytes_per_s;       /* 0: as fast as it goes */
        bool threads;               /* even where there is io_uring */
        const _Atomic bool *cancel; /* looked at between blocks; -ECANCELED when set; may be NULL */
        _Atomic uint64_t *written;  /* counts up as blocks reach the file; may be NULL */
};

struct block_writer;

/*
 * Creates path (or empties it) with room for len bytes, so that a full disk is told before anything is written. The config's pointers are kept.
 */
int block_writer_open(const char *path, uint64_t len, const struct block_writer_config *c, struct block_writer **ret, struct error *e);
/* The next bytes, a multiple of BLOCK_WRITER_ALIGN but for the last ones. The memory stays untouched until finish or free. Waits while enough blocks are under way. */
int block_writer_add(struct block_writer *w, const void *data, size_t len, struct error *e);
/* All blocks in the file, the file at its length and durable (fsync). The name is the caller's affair. */
int block_writer_finish(struct block_writer *w, struct error *e);
/* Waits for blocks under way. */
struct block_writer *block_writer_free(struct block_writer *w);
/* "io_uring" or "threads"; ", cached" when the file system takes no direct writes. */
const char *block_writer_method(const struct block_writer *w);
