/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The keeper of a local cluster: one process that starts fp8d and the workers, starts again whichever dies, and stops all of them.  See keeper.c.
 */
#include "ctl/local.h"

struct keeper_options {
        const char *home;
        bool stop; /* adopt what an earlier keeper left, and stop it */
};

/* Runs until it was told to stop and all is stopped. Signals: SIGTERM stops with grace, SIGINT at once, SIGHUP starts at once what waits for its pause. */
int keeper_run(const struct keeper_options *o, struct error *e);
