/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include <stdint.h>

#include "proto/job_spec.h"

/*
 * The rate of optimizer step `n` (0-based, skipped steps not counted): linear warm-up over warmup_steps, then
 *   cosine    lr -> min_lr over the rest of the run
 *   wsd       constant, then linear to min_lr over the last decay_steps (Hu et al. 2024, MiniCPM)
 *   constant  lr
 */
double lr_at(const struct job_spec *s, uint64_t n);
