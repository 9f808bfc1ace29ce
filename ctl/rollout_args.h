/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What people type of a rollout: "gpu.driver=550.54" and "5,20,50,100". */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define ROLLOUT_STAGES_MAX 16

/* key gets room for all before the first '='; *ret_value points into text. -EINVAL. */
int rollout_parse_fact(const char *text, char *key, size_t size, const char **ret_value, struct error *e);
/* Percentages that grow, the last 100. -EINVAL. */
int rollout_parse_stages(const char *text, uint32_t stages[ROLLOUT_STAGES_MAX], size_t *ret_n, struct error *e);
