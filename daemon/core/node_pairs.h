/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* `fp8ctl node test --pairwise`: rounds of pairs of nodes that measure what is between them. */
#include "daemon/core/core.h"

struct pairs;

void node_pairs_request(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void node_pair_reply(struct controller *c, struct session *s, const Fp8ctl__V1__NodePairReply *m);
void node_pairs_gone(struct controller *c, struct pending *p, const struct node *n); /* p may be gone after it */
void node_pairs_late(struct controller *c, struct pending *p);                       /* the round took too long; p may be gone after it */
struct pairs *node_pairs_free(struct pairs *k);
