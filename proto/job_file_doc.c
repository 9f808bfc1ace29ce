/* SPDX-License-Identifier: Apache-2.0 */
/* Prints docs/job-file.md: `job-file-doc > docs/job-file.md`. */
#include <stdio.h>

#include "proto/job_spec.h"

int main(void) {
        return job_schema_print_markdown(stdout) < 0 || fflush(stdout) ? 1 : 0;
}
