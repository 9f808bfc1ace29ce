/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What a check may come to, in order of gravity; ABSENT: there is nothing to check. Names are those of NodeCheck.verdict. */
#include <stddef.h>
#include <string.h>

enum health_verdict { HEALTH_OK, HEALTH_WARN, HEALTH_DRAIN, HEALTH_EVICT, HEALTH_ABSENT, N_HEALTH_VERDICTS };

static inline const char *health_verdict_name(enum health_verdict v) {
        static const char *const names[N_HEALTH_VERDICTS] = { "ok", "warn", "drain", "evict", "absent" };

        return v < N_HEALTH_VERDICTS ? names[v] : "ok";
}

/* -1: no such verdict. */
static inline int health_verdict_parse(const char *name) {
        for (int i = 0; name && i < N_HEALTH_VERDICTS; i++)
                if (strcmp(name, health_verdict_name((enum health_verdict)i)) == 0)
                        return i;
        return -1;
}
