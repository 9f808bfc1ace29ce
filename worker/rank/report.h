/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What a rank says, each with its identity stamped on. */
#include <stdbool.h>
#include <stdint.h>

#include "proto/fp8ctl.pb-c.h"
#include "worker/rank/control.h"
#include "worker/rank/identity.h"

void report_ready(struct control *c, const struct identity *id, const char *endpoint, const char *fingerprint);
void report_parked(struct control *c, const struct identity *id, uint64_t epoch, uint64_t step);
/* What an epoch began from. */
struct report_loaded {
        Fp8ctl__V1__LoadedFrom from;
        uint64_t bytes; /* from memory */
        char node[128]; /* a peer's */
};
void report_running(struct control *c, const struct identity *id, uint64_t epoch, uint64_t step, double load_ms, double mesh_ms, const struct report_loaded *l);
/* Parameters of replicas differ: whose (odd; -1: only that they do), and the newest step made of sound ones. */
void report_corrupt(struct control *c, const struct identity *id, uint64_t epoch, uint64_t step, int odd, const uint32_t *suspects, size_t n, uint64_t clean_step, const char *text);
void report_fault(struct control *c, const struct identity *id, uint64_t epoch, Fp8ctl__V1__RankFault__Kind kind, uint64_t step, int peer, const char *text);
void report_done(struct control *c, const struct identity *id, uint64_t epoch, Fp8ctl__V1__RankProgress *progress, bool stopped);
void report_notice(struct control *c, const struct identity *id, uint64_t epoch, uint64_t step, const char *kind, const char *severity, const char *text);
