/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* DIR/jobs/NUMBER: what the ranks of a job wrote on this node (logs, metrics, the job file). Each is bounded; so is their number. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define JOB_FOLDERS_KEPT 50

/*
 * Removes the folders that were used longest ago until `keep` are left, beside those of the jobs in in_use. What is not a job's folder is left alone;
 * one that cannot be removed is passed over. Returns how many went.
 */
int job_folders_prune(const char *dir, size_t keep, const uint64_t *in_use, size_t n_in_use, struct error *e);
