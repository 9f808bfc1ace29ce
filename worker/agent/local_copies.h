/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The node's side of copies on its own disk (format/local_copy.h): what there is of a job, what may go, and what is litter.  Ranks write and read them. All calls block.
 * Each job's folder is its user's, and is read with that user's rights.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "format/local_copy.h"

struct local_rank_place {
        uint64_t job;
        uint32_t rank;
};

/* Of all ranks, as their manifests say; free() the list. */
int local_copies_of(const char *dir, const char *cluster, uint64_t job, struct local_copy **ret, size_t *ret_n, struct error *e);
/* Jobs of this cluster with a folder; free() the list. */
int local_copies_jobs(const char *dir, const char *cluster, uint64_t **ret, size_t *ret_n, struct error *e);
int local_copies_remove(const char *dir, const char *cluster, uint64_t job, struct error *e);
/*
 * Ranks run here: folders of their jobs' other ranks go, and folders of jobs that have none here, the oldest first, until those left fill at most `space` bytes.
 * Returns how many job folders went.
 */
int local_copies_prune(const char *dir, const char *cluster, const struct local_rank_place *here, size_t n, uint64_t space, struct error *e);
