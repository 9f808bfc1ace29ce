/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dev_comm.h by NCCL, and between devices of one host by copies into each other's memory (peers.c).  NCCL is loaded when the first job of more than one rank asks for it: a node with one GPU
 * needs none.  Communicators are non-blocking, so that none of its calls keeps a thread that an abort is to reach.
 */
#include <dlfcn.h>
#include <errno.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/hopper.h"
#include "kernels/cuda/fold.h"
#include "kernels/cuda/peers.h"

_Static_assert(sizeof(ncclUniqueId) == DEV_COMM_ID, "the id of dev_comm.h is NCCL's");

struct dev_comm {
        ncclComm_t comm;
        struct peers *peers; /* instead of it */
};

struct dev_event {
        cudaEvent_t event;
};

static bool peer_copies; /* of the job */

static struct {
        ncclResult_t (*get_version)(int *version);
        ncclResult_t (*get_unique_id)(ncclUniqueId *id);
        ncclResult_t (*init)(ncclComm_t *comm, int n, ncclUniqueId id, int rank, ncclConfig_t *config);
        ncclResult_t (*async_error)(ncclComm_t comm, ncclResult_t *error);
        ncclResult_t (*abort)(ncclComm_t comm);
        ncclResult_t (*send)(const void *buf, size_t count, ncclDataType_t t, int peer, ncclComm_t comm, cudaStream_t s);
        ncclResult_t (*recv)(void *buf, size_t count, ncclDataType_t t, int peer, ncclComm_t comm, cudaStream_t s);
        ncclResult_t (*group_start)(void);
        ncclResult_t (*group_end)(void);
        const char *(*error_string)(ncclResult_t r);
        char fingerprint[48];
} nccl;

/* ------------------------------------------------------------------ loading */

static int find(void *library, const char *name, void *slot) {
        void *symbol = dlsym(library, name);

        memcpy(slot, &symbol, sizeof symbol);
        return symbol ? 0 : -ENOENT;
}

static int find_all(void *library) {
        const struct {
                const char *name;
                void *slot;
        } needed[] = {
                { "ncclGetVersion", &nccl.get_version }, { "ncclGetUniqueId", &nccl.get_unique_id }, { "ncclCommInitRankConfig", &nccl.init },
                { "ncclCommGetAsyncError", &nccl.async_error }, { "ncclCommAbort", &nccl.abort }, { "ncclSend", &nccl.send }, { "ncclRecv", &nccl.recv },
                { "ncclGroupStart", &nccl.group_start }, { "ncclGroupEnd", &nccl.group_end }, { "ncclGetErrorString", &nccl.error_string },
        };

        for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
                if (find(library, needed[i].name, needed[i].slot) < 0)
                        return -ENOENT;
        return 0;
}

#define PORTS "NCCL_IB_HCA"

/* Read when the first communicator is made. */
static void nccl_use_ports(const char *list) {
        (void)setenv(PORTS, list, 0);
}

static void set_number(const char *name, int value) {
        char text[16];

        (void)snprintf(text, sizeof text, "%d", value);
        (void)setenv(name, text, 1);
}

static int nccl_load(const struct dev_comm_settings *s, struct error *e) {
        const char *path = getenv("FP8_NCCL_LIBRARY");
        void *library;
        int version = 0;

        /* It reads them once, at its first call. */
        set_number("NCCL_IB_TIMEOUT", s->ib_timeout);
        set_number("NCCL_IB_RETRY_CNT", s->ib_retry_cnt);
        set_number("NCCL_NVLS_ENABLE", s->nvls ? 1 : 0);
        if (s->ib_hca[0])
                (void)setenv(PORTS, s->ib_hca, 1);
        if (s->channels > 0) { /* all data goes by sends and receives, of which NCCL makes one peer's with few channels by itself */
                set_number("NCCL_NCHANNELS_PER_PEER", s->channels);
                set_number("NCCL_MIN_P2P_NCHANNELS", s->channels);
        }
        peer_copies = s->peer_copies;
        path = path ? path : "libnccl.so.2";
        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library)
                return error_set(e, -ENODEV, "NCCL: %s", dlerror());
        if (find_all(library) < 0 || nccl.get_version(&version) != ncclSuccess || version < NCCL_VERSION(2, 18, 0)) {
                (void)dlclose(library);
                return error_set(e, -ENODEV, "%s: found version %d, expected NCCL of at least %d", path, version, NCCL_VERSION(2, 18, 0));
        }
        (void)snprintf(nccl.fingerprint, sizeof nccl.fingerprint, "nccl%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
        return 0;
}

static const char *nccl_fingerprint(void) {
        return nccl.fingerprint;
}

/* ------------------------------------------------------------------ communicators */

static int failed(ncclResult_t r, const char *what, struct error *e) {
        int code = r == ncclUnhandledCudaError ? -EIO : r == ncclInvalidArgument || r == ncclInvalidUsage ? -EINVAL : -ECOMM;

        if (r == ncclInProgress)
                return -EINPROGRESS;
        return error_set(e, code, "NCCL, %s: %s", what, nccl.error_string(r));
}

static int nccl_enter(struct dev *d) {
        return cudaSetDevice(d->index) == cudaSuccess ? 0 : -EIO;
}

static int nccl_unique_id(uint8_t ret[DEV_COMM_ID], struct error *e) {
        ncclUniqueId id;
        ncclResult_t r = nccl.get_unique_id(&id);

        if (r != ncclSuccess)
                return failed(r, "unique id", e);
        memcpy(ret, id.internal, DEV_COMM_ID);
        return 0;
}

static int nccl_start(struct dev *d, const uint8_t id[DEV_COMM_ID], int n, int index, struct dev_comm **ret, struct error *e) {
        struct dev_comm *c = calloc(1, sizeof *c);
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        ncclUniqueId unique;
        ncclResult_t r;

        if (!c)
                return error_errno(e, ENOMEM, "NCCL");
        config.blocking = 0;
        memcpy(unique.internal, id, DEV_COMM_ID);
        r = cudaSetDevice(d->index) == cudaSuccess ? nccl.init(&c->comm, n, unique, index, &config) : ncclUnhandledCudaError;
        if (r != ncclSuccess && r != ncclInProgress) {
                free(c);
                return failed(r, "meeting the others", e);
        }
        *ret = c;
        return 0;
}

static int nccl_open_window(struct dev *d, int n, int index, uint8_t ret_card[DEV_COMM_CARD], struct dev_comm **ret, struct error *e) {
        struct dev_comm *c;
        int r;

        if (!peer_copies)
                return -EOPNOTSUPP;
        c = calloc(1, sizeof *c);
        if (!c)
                return error_errno(e, ENOMEM, "peers' memory");
        r = peers_open(d, n, index, ret_card, &c->peers, e);
        if (r < 0)
                free(c);
        else
                *ret = c;
        return r;
}

static int nccl_join_windows(struct dev_comm *c, const uint8_t (*cards)[DEV_COMM_CARD], struct error *e) {
        return peers_join(c->peers, cards, e);
}

static int nccl_state(struct dev_comm *c, struct error *e) {
        ncclResult_t state = ncclSuccess, r;

        if (c->peers)
                return 0;
        r = nccl.async_error(c->comm, &state);
        if (r == ncclSuccess)
                r = state;
        return r == ncclSuccess ? 0 : failed(r, "asynchronously", e);
}

static int nccl_exchange(struct dev_comm *c, const struct dev_comm_part *parts, int n, struct dev_stream *s, struct error *e) {
        ncclResult_t r, end;

        if (c->peers)
                return peers_exchange(c->peers, parts, n, s, e);
        r = nccl.group_start();
        if (r != ncclSuccess)
                return failed(r, "group", e);
        for (int i = 0; i < n && (r == ncclSuccess || r == ncclInProgress); i++) {
                if (parts[i].send)
                        r = nccl.send(parts[i].ptr, parts[i].bytes, ncclInt8, parts[i].peer, c->comm, s->stream);
                else
                        r = nccl.recv(parts[i].ptr, parts[i].bytes, ncclInt8, parts[i].peer, c->comm, s->stream);
        }
        end = nccl.group_end();
        r = r != ncclSuccess && r != ncclInProgress ? r : end;
        return r == ncclSuccess ? 0 : failed(r, "send and receive", e);
}

static void nccl_abort(struct dev_comm *c) {
        if (c->peers)
                peers_free(c->peers);
        else
                (void)nccl.abort(c->comm);
        free(c);
}

static int nccl_fold(void *dst, const void *staging, size_t stride, const void *own, int own_index, int n, size_t count, enum dtype t, enum dev_comm_op op, struct dev_stream *s) {
        return cuda_launch_fold(dst, staging, stride, own, own_index, n, count, t, (int)op, s->stream);
}

/* ------------------------------------------------------------------ events */

static int nccl_event_new(struct dev_event **ret) {
        struct dev_event *ev = calloc(1, sizeof *ev);

        if (!ev)
                return -ENOMEM;
        if (cudaEventCreateWithFlags(&ev->event, cudaEventDisableTiming) != cudaSuccess) {
                free(ev);
                return -EIO;
        }
        *ret = ev;
        return 0;
}

static void nccl_event_free(struct dev_event *ev) {
        if (ev)
                (void)cudaEventDestroy(ev->event);
        free(ev);
}

static int nccl_event_record(struct dev_event *ev, struct dev_stream *s) {
        return cudaEventRecord(ev->event, s->stream) == cudaSuccess ? 0 : -EIO;
}

static int nccl_event_done(struct dev_event *ev) {
        cudaError_t r = cudaEventQuery(ev->event);

        return r == cudaSuccess ? 1 : r == cudaErrorNotReady ? 0 : -EIO;
}

static int nccl_event_wait(struct dev_event *ev, struct dev_stream *s) {
        return cudaStreamWaitEvent(s->stream, ev->event, 0) == cudaSuccess ? 0 : -EIO;
}

static const struct dev_comm_ops table = {
        .size = sizeof(struct dev_comm_ops), .version = DEV_COMM_VERSION, .kind = "cuda",
        .load = nccl_load, .use_ports = nccl_use_ports, .fingerprint = nccl_fingerprint, .enter = nccl_enter, .unique_id = nccl_unique_id, .start = nccl_start,
        .open_window = nccl_open_window, .join_windows = nccl_join_windows, .state = nccl_state, .exchange = nccl_exchange,
        .abort = nccl_abort, .fold = nccl_fold,
        .event_new = nccl_event_new, .event_free = nccl_event_free, .event_record = nccl_event_record, .event_done = nccl_event_done, .event_wait = nccl_event_wait,
};

const struct dev_comm_ops *fp8_comm_plugin(void) {
        return &table;
}
