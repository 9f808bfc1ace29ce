/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * --set KEY=VALUE: changes a job file's text before it is parsed, in place, so that a message about any other line still names the right line.
 * KEY is dotted ("train.steps"); VALUE is YAML; a string that YAML would read otherwise is quoted.
 */
#include "base/error.h"

/* text: YAML. A new text in *ret_text (free()), NUL-terminated. -EINVAL with one line when the text is no mapping or KEY names no place for a value. */
int job_set(const char *text, const char *file_name, const char *assignment, char **ret_text, struct error *e);
