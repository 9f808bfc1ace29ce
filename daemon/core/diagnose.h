/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the workers of a job say about where its ranks are, until all have spoken. */
#include "daemon/core/core.h"

struct gathering {
        uint64_t job, relay;
        struct node **wait; /* that have not answered */
        size_t n_wait;
        Fp8ctl__V1__RankDiagnosis **ranks; /* [world]; NULL: nothing said yet */
        int world;
};

struct gathering *gathering_begin(struct controller *c, const struct job *j, bool stacks); /* asks; NULL: no memory */
struct gathering *gathering_free(struct gathering *g);
bool gathering_without(struct gathering *g, const struct node *n); /* its answer is not waited for any more; false: it was not */
/* With what has been said. The ranks are lent to *ret: gathering_diagnosed takes them back. */
int gathering_diagnose(struct controller *c, struct gathering *g, const struct job *j, Fp8ctl__V1__Diagnosis *ret);
void gathering_diagnosed(Fp8ctl__V1__Diagnosis *d);

/* A rank waited in vain: where are all? rank_diagnosed follows when every worker has answered. */
void diagnose_incident(struct controller *c, struct job *j);
bool diagnose_certain(struct controller *c, struct job *j); /* that one is stuck */
/* Says in an event what was found. The stuck rank; -1: none, which is certain when *ret_known. */
int diagnose_culprit(struct controller *c, struct job *j, bool *ret_known);
void rank_diagnosed(struct controller *c, struct job *j); /* rank_fault.c */

void diagnose_request(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void diagnose_reply(struct controller *c, struct session *s, const Fp8ctl__V1__DiagnoseReply *m);
void diagnose_answer(struct controller *c, struct pending *p); /* with what there is */
void diagnose_node_gone(struct controller *c, struct pending *p, const struct node *n); /* p may be gone after it */
