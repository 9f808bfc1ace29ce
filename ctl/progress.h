/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A job's progress on stderr: one line redrawn on a terminal; plain lines elsewhere, when they were asked for. */
#include "ctl/job_view.h"

struct progress;
/* plain: print a line every `plain_every_ms` when stderr is no terminal. */
struct progress *progress_new(bool plain, int64_t plain_every_ms);
void progress_show(struct progress *p, const Fp8ctl__V1__Job *j);
/* Takes the redrawn line away, so that something else can be printed; the next progress_show draws it again. */
void progress_clear(struct progress *p);
struct progress *progress_free(struct progress *p);
