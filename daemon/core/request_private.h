/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files that answer clients share. */
#include "daemon/core/core.h"

/* request.c */
void request_refuse(struct controller *c, uint64_t request, int status, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
void request_answer(struct controller *c, uint64_t request, const ProtobufCMessage *m);
void request_answer_node(struct controller *c, uint64_t request, const struct node *n);
void request_answer_job(struct controller *c, uint64_t request, const struct job *j);
bool request_may_touch(const struct caller *who, const struct job *j);
struct job *request_job(struct controller *c, uint64_t request, uint64_t id, const struct caller *who, bool touch); /* NULL: refused */
struct pending *pending_add(struct controller *c, enum pending_kind kind, uint64_t request, uint32_t ms, const struct caller *who); /* NULL: refused */
void pending_remove(struct controller *c, struct pending *p);

/* request_read.c */
void read_status(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void read_list_jobs(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void read_get_job(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void read_list_nodes(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void read_get_node(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void read_list_checkpoints(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void read_list_events(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
bool read_events(struct controller *c, uint64_t request, uint64_t after, uint64_t job, uint32_t limit, bool newest, bool empty_too); /* false: none, not answered */

/* submit.c */
void submit_request(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
void submit_check(struct controller *c, struct pending *p, bool deadline); /* all answered, or no more waiting: it is decided, and p is gone */
void submit_node_gone(struct controller *c, struct pending *p, const struct node *n);

/* ckpt_request.c */
void checkpoint_request_remove(struct controller *c, uint64_t request, const ProtobufCMessage *m, const struct caller *who);
