/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "ctl/job_view.h"
#include "ctl/local.h"
#include "proto/rpc_client.h"

#define SERVICE "/fp8ctl.v1.Cluster/"
#define RETRY_FOR_MS 5000 /* a controller restarts in less than 3 s (restart_budget_ms) */
#define RETRY_EVERY_MS 100

static bool rpc_ready;

struct client {
        struct rpc_client *rpc;
        char *address;
        struct tls_files tls;
        bool has_tls;
        const char *home; /* of the local cluster whose socket this is: we can say how to start one; else NULL */
};

int client_address(const struct ctl *c, char **ret, struct error *e) {
        struct sockaddr_un un;
        char *address;

        if (c->controller) {
                /* A bare path is what people type. */
                address = c->controller[0] == '/' ? file_path("unix:%s", c->controller) : strdup(c->controller);
                if (!address)
                        return error_set(e, -ENOMEM, "no memory");
        } else {
                address = file_path("unix:%s/fp8d.sock", c->home);
                if (!address)
                        return error_set(e, -ENOMEM, "no memory");
        }
        if (strncmp(address, "unix:", 5) == 0 && strlen(address + 5) >= sizeof(un.sun_path)) {
                error_set(e, -ENAMETOOLONG, "%s: found a path of %zu bytes, a socket may have %zu; use a shorter folder (--dir)", address + 5,
                          strlen(address + 5), sizeof(un.sun_path) - 1);
                free(address);
                return -ENAMETOOLONG;
        }
        *ret = address;
        return 0;
}

int client_new(const struct ctl *c, struct client **ret, struct error *e) {
        struct client *cl;
        int r;

        if ((c->tls_ca || c->tls_cert || c->tls_key) && !(c->tls_ca && c->tls_cert && c->tls_key))
                return error_set(e, -EINVAL, "TLS: expected all of --tls-ca, --tls-cert and --tls-key (or FP8CTL_TLS_CA, _CERT, _KEY)");
        cl = calloc(1, sizeof(*cl));
        if (!cl)
                return error_set(e, -ENOMEM, "no memory");
        cl->home = c->controller ? NULL : c->home;
        cl->tls = (struct tls_files){ c->tls_ca, c->tls_cert, c->tls_key };
        cl->has_tls = c->tls_ca != NULL;
        r = client_address(c, &cl->address, e);
        if (r >= 0 && !rpc_ready) {
                r = rpc_init(e);
                rpc_ready = r >= 0;
        }
        if (r >= 0)
                r = rpc_client_new(cl->address, cl->has_tls ? &cl->tls : NULL, &cl->rpc, e);
        if (r < 0) {
                client_free(cl);
                return r;
        }
        *ret = cl;
        return 0;
}

struct client *client_free(struct client *c) {
        if (!c)
                return NULL;
        rpc_client_free(c->rpc);
        free(c->address);
        free(c);
        return NULL;
}

void client_done(void) {
        if (rpc_ready)
                rpc_shutdown();
        rpc_ready = false;
}

const char *client_where(const struct client *c) {
        return c->address;
}

/* A channel that was refused waits before it tries again, longer than a controller takes to come back: the next attempt gets a fresh one. */
static void renew(struct client *c) {
        struct rpc_client *fresh;

        if (rpc_client_new(c->address, c->has_tls ? &c->tls : NULL, &fresh, NULL) < 0)
                return;
        rpc_client_free(c->rpc);
        c->rpc = fresh;
}

static int unreachable(struct client *c, struct error *e) {
        char said[sizeof(e->text)];

        memcpy(said, e->text, sizeof(said));
        renew(c);
        if (c->home)
                return error_set(e, -ECONNREFUSED, "no controller answers at %s; `fp8ctl cluster up` starts one here (%.300s)", c->address, said);
        return error_set(e, -ECONNREFUSED, "no controller answers at %s (%.300s)", c->address, said);
}

/* A Unix socket that is not there at all means: nothing to wait for; but for a keeper, whose next fp8d takes the old socket away and makes its own. */
static bool may_come_back(const struct client *c) {
        struct stat st;

        return strncmp(c->address, "unix:", 5) != 0 || stat(c->address + 5, &st) == 0 || (c->home && local_keeper(c->home) > 0);
}

int client_call_once(struct client *c, const char *method, const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type, int timeout_ms,
                     ProtobufCMessage **ret, struct error *e) {
        size_t len = protobuf_c_message_get_packed_size(request), reply_len = 0;
        _cleanup_free_ uint8_t *data = malloc(len ? len : 1), *reply = NULL;
        _cleanup_free_ char *path = file_path("%s%s", SERVICE, method);
        struct error own = { 0 };
        ProtobufCMessage *m;
        int r;

        e = e ? e : &own;
        if (!data || !path)
                return error_set(e, -ENOMEM, "no memory");
        protobuf_c_message_pack(request, data);
        r = rpc_client_call(c->rpc, path, data, len, timeout_ms, &reply, &reply_len, e);
        if (r == -ECONNREFUSED)
                return unreachable(c, e);
        if (r < 0)
                return r;
        m = protobuf_c_message_unpack(type, NULL, reply_len, reply);
        if (!m)
                return error_set(e, -EIO, "%s: the controller's answer is no %s: is it of another version?", method, type->name);
        *ret = m;
        return 0;
}

int client_call(struct client *c, const char *method, const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type, int timeout_ms,
                ProtobufCMessage **ret, struct error *e) {
        uint64_t end = clock_mono_ns() + RETRY_FOR_MS * NSEC_PER_MSEC;

        for (;;) {
                struct timespec pause = { 0, RETRY_EVERY_MS * (long)NSEC_PER_MSEC };
                int r = client_call_once(c, method, request, type, timeout_ms, ret, e);

                if (r != -ECONNREFUSED || !may_come_back(c) || clock_mono_ns() > end)
                        return r;
                nanosleep(&pause, NULL);
        }
}

int client_get_job(struct client *c, uint64_t id, Fp8ctl__V1__Job **ret, struct error *e) {
        Fp8ctl__V1__GetJobRequest rq = FP8CTL__V1__GET_JOB_REQUEST__INIT;

        rq.id = id;
        return client_call(c, "GetJob", &rq.base, &fp8ctl__v1__job__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)ret, e);
}

int client_status(struct client *c, int timeout_ms, Fp8ctl__V1__StatusReply **ret, struct error *e) {
        Fp8ctl__V1__StatusRequest rq = FP8CTL__V1__STATUS_REQUEST__INIT;

        return client_call_once(c, "Status", &rq.base, &fp8ctl__v1__status_reply__descriptor, timeout_ms, (ProtobufCMessage **)ret, e);
}

int client_list_events(struct client *c, uint64_t job, uint64_t after, unsigned limit, unsigned wait_ms, Fp8ctl__V1__ListEventsReply **ret,
                       struct error *e) {
        Fp8ctl__V1__ListEventsRequest rq = FP8CTL__V1__LIST_EVENTS_REQUEST__INIT;

        rq.job_id = job;
        rq.after_id = after;
        rq.limit = limit;
        rq.wait_ms = wait_ms;
        return client_call(c, "ListEvents", &rq.base, &fp8ctl__v1__list_events_reply__descriptor, (int)wait_ms + CALL_TIMEOUT_MS,
                           (ProtobufCMessage **)ret, e);
}

int client_newest_events(struct client *c, uint64_t job, unsigned limit, Fp8ctl__V1__ListEventsReply **ret, struct error *e) {
        Fp8ctl__V1__ListEventsRequest rq = FP8CTL__V1__LIST_EVENTS_REQUEST__INIT;

        rq.job_id = job;
        rq.limit = limit;
        rq.newest = true;
        return client_call(c, "ListEvents", &rq.base, &fp8ctl__v1__list_events_reply__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)ret, e);
}

int client_read_or_wait(struct client *c, const Fp8ctl__V1__ReadFileRequest *rq, bool *over, Fp8ctl__V1__ReadFileReply **ret, struct error *e) {
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        struct error said = { 0 };
        int r = client_read_file(c, rq, ret, &said);

        if (r != -ENOENT && r != -EBUSY) {
                if (r < 0)
                        *e = said;
                return r;
        }
        if (rq->kind == FP8CTL__V1__FILE_KIND__WORKER_LOG || *over) {
                *e = said;
                return r;
        }
        r = client_get_job(c, rq->job_id, &j, e);
        if (r < 0 || !j)
                return r;
        *over = job_state_is_end(j->state);
        if (!*over)
                return 0;
        return client_read_file(c, rq, ret, e); /* it may have begun and ended meanwhile */
}

int client_read_file(struct client *c, const Fp8ctl__V1__ReadFileRequest *rq, Fp8ctl__V1__ReadFileReply **ret, struct error *e) {
        return client_call(c, "ReadFile", &rq->base, &fp8ctl__v1__read_file_reply__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)ret, e);
}
