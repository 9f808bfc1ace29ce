/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The connection to the controller, and its calls with messages instead of bytes. */
#include <protobuf-c/protobuf-c.h>

#include "ctl/ctl.h"
#include "proto/fp8ctl.pb-c.h"

struct client;

/* Where the controller is: c->controller, else the local cluster's socket. free() it. -ENAMETOOLONG when no socket can have that path. */
int client_address(const struct ctl *c, char **ret, struct error *e);
int client_new(const struct ctl *c, struct client **ret, struct error *e);
struct client *client_free(struct client *c);
static inline void client_freep(struct client **c) {
        client_free(*c);
}
/* At the end of the program: ends gRPC when a client began it. */
void client_done(void);
const char *client_where(const struct client *c);

/*
 * method: "Submit". The reply (type) is freed by protobuf_c_message_free_unpacked. A controller that is being restarted is waited for: a
 * refused connection is tried again for a few seconds; calls here may all be made twice (Submit has its request id).
 */
int client_call(struct client *c, const char *method, const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type, int timeout_ms,
                ProtobufCMessage **ret, struct error *e);
/* One attempt only. */
int client_call_once(struct client *c, const char *method, const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type, int timeout_ms,
                     ProtobufCMessage **ret, struct error *e);

/* For use with _cleanup_. */
static inline void messagep(void *p) {
        ProtobufCMessage *m = *(ProtobufCMessage **)p;

        if (m)
                protobuf_c_message_free_unpacked(m, NULL);
}
#define _cleanup_message_ _cleanup_(messagep)

#define CALL_TIMEOUT_MS 15000

/* Typed forms: client_get_job(c, id, &job, e) etc.; CALL_TIMEOUT_MS. */
int client_get_job(struct client *c, uint64_t id, Fp8ctl__V1__Job **ret, struct error *e);
int client_status(struct client *c, int timeout_ms, Fp8ctl__V1__StatusReply **ret, struct error *e);
int client_list_events(struct client *c, uint64_t job, uint64_t after, unsigned limit, unsigned wait_ms, Fp8ctl__V1__ListEventsReply **ret,
                       struct error *e);
int client_newest_events(struct client *c, uint64_t job, unsigned limit, Fp8ctl__V1__ListEventsReply **ret, struct error *e); /* in order */
/* Of a job that has not written the file yet: 0 and *ret left alone. *over (false at first) is the caller's to keep: the job has ended, what is missing now never comes. */
int client_read_or_wait(struct client *c, const Fp8ctl__V1__ReadFileRequest *rq, bool *over, Fp8ctl__V1__ReadFileReply **ret, struct error *e);
int client_read_file(struct client *c, const Fp8ctl__V1__ReadFileRequest *rq, Fp8ctl__V1__ReadFileReply **ret, struct error *e);
