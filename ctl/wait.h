/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include "ctl/job_view.h"

struct wait_options {
        bool progress; /* plain lines where stderr is no terminal */
        bool events;   /* print events to stderr as they come */
        int64_t timeout_ms; /* 0: none */
};

/* Follows a job to its end. 0 and the job (free it), -ETIMEDOUT, or another error. */
int job_wait(struct client *cl, uint64_t id, const struct wait_options *w, Fp8ctl__V1__Job **ret, struct error *e);
