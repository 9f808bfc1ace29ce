/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One context and protection domain a process, one queue pair and completion queue a lane.
 *
 * Why the receiving end needs no completion of its own: a sender's completion of an RDMA write on a reliable connection says that the other adapter has taken all of it,
 * and what the two say next on their socket comes after that; the digest over what arrived has the last word (InfiniBand Architecture Specification vol. 1, 9.7.5.1.5
 * and o9-20 leave the moment of visibility to a later send, or to the receiver looking).
 *
 * A device may be taken away under us (its driver is unloaded, its card falls off the bus): it says so by an asynchronous event, or only its file in sysfs is gone and its driver waits for us; a thread looks for both.
 * From then on no lane writes, and when the last one is closed the context is too.  Later lanes look for a device of that name again.
 *
 * Times: 4.096 us x 2^TIMEOUT a try (67 ms), RETRIES tries: a pulled link is an error after about half a second; a link that flaps for less is ridden out.
 */
#include "base/rdma.h"

#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define WINDOW 16 /* writes on their way */
#define WRITE_BYTES (UINT32_C(1) << 20)
#define TIMEOUT 14
#define RETRIES 7
#define LOOK_MS 1000 /* is it still there? */

struct rdma {
        struct ibv_context *context;
        struct ibv_pd *pd;
        struct ibv_port_attr port_attr;
        union ibv_gid gid;
        uint8_t port;
        int gid_index;
        char name[80], device[65];
        pthread_t watcher;
        int stop;            /* the watcher is to end */
        atomic_bool gone;    /* the device was taken away; set by the watcher, which ends */
        pthread_mutex_t lock; /* of the context, of what take_port() finds, and of what follows */
        int lanes;
        bool watched;        /* the watcher is to be joined */
};

struct region {
        struct lane_pool pool;
        struct ibv_mr *mr;
};

struct lane {
        struct rdma *device;
        struct ibv_comp_channel *channel;
        struct ibv_cq *cq;
        struct ibv_qp *qp;
        struct rdma_address self;
        struct region exposed, source;
};

/* ------------------------------------------------------------------ the device */
/* RoCE v2 over IPv4 before the others: it is what is routed, and what Soft-RoCE needs. */
static int choose_gid(struct rdma *r) {
        struct ibv_gid_entry g;
        int best = -1, best_rank = 0;

        for (int i = 0; i < r->port_attr.gid_tbl_len; i++) {
                bool mapped;
                int rank;

                if (ibv_query_gid_ex(r->context, r->port, (uint32_t)i, &g, 0) != 0)
                        continue;
                mapped = memcmp(g.gid.raw, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0;
                rank = g.gid_type == IBV_GID_TYPE_ROCE_V2 ? (mapped ? 4 : 3) : g.gid_type == IBV_GID_TYPE_IB ? 2 : 1;
                if (rank > best_rank) {
                        best = i;
                        best_rank = rank;
                        r->gid = g.gid;
                }
        }
        return best;
}

static int take_port(struct rdma *r, uint8_t port) {
        if (ibv_query_port(r->context, port, &r->port_attr) != 0 || r->port_attr.state != IBV_PORT_ACTIVE)
                return -ENODEV;
        r->port = port;
        r->gid_index = choose_gid(r);
        return r->gid_index >= 0 || r->port_attr.link_layer == IBV_LINK_LAYER_INFINIBAND ? 0 : -ENODEV;
}

static int take_device(struct rdma *r, struct ibv_device *d, unsigned port) {
        struct ibv_device_attr attr;

        r->context = ibv_open_device(d);
        if (!r->context)
                return -ENODEV;
        if (ibv_query_device(r->context, &attr) == 0)
                for (unsigned p = port ? port : 1; p <= (port ? port : attr.phys_port_cnt) && p <= UINT8_MAX; p++)
                        if (take_port(r, (uint8_t)p) == 0) {
                                snprintf(r->name, sizeof(r->name), "%.64s/%u", ibv_get_device_name(d), p);
                                snprintf(r->device, sizeof(r->device), "%.64s", ibv_get_device_name(d));
                                r->pd = ibv_alloc_pd(r->context);
                                if (r->pd)
                                        return 0;
                        }
        (void)ibv_close_device(r->context);
        r->context = NULL;
        return -ENODEV;
}

static void let_go(struct rdma *r) {
        if (r->pd)
                (void)ibv_dealloc_pd(r->pd);
        if (r->context)
                (void)ibv_close_device(r->context);
        r->pd = NULL;
        r->context = NULL;
}

/* Events are taken as they come: one of a queue pair that was not would keep it from being destroyed. */
static void *watch(void *arg) {
        struct rdma *r = arg;
        struct pollfd fds[2] = { { .fd = r->stop, .events = POLLIN }, { .fd = r->context->async_fd, .events = POLLIN } };
        bool there = true;

        while (there) {
                struct ibv_async_event ev;
                int got = 0;

                (void)poll(fds, 2, LOOK_MS);
                if (fds[0].revents)
                        return NULL;
                while (there && (got = ibv_get_async_event(r->context, &ev)) == 0) {
                        there = ev.event_type != IBV_EVENT_DEVICE_FATAL;
                        ibv_ack_async_event(&ev);
                }
                there = there && (got == 0 || errno == EAGAIN || errno == EINTR) && access(r->context->device->dev_path, F_OK) == 0;
        }
        pthread_mutex_lock(&r->lock);
        atomic_store(&r->gone, true);
        if (r->lanes == 0)
                let_go(r);
        pthread_mutex_unlock(&r->lock);
        return NULL;
}

static int start_watch(struct rdma *r) {
        int rc = !r->context ? -ENODEV : fcntl(r->context->async_fd, F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;

        atomic_store(&r->gone, false);
        if (rc == 0)
                rc = -pthread_create(&r->watcher, NULL, watch, r);
        r->watched = rc == 0;
        return rc;
}

static void join_watch(struct rdma *r) {
        if (r->watched)
                (void)pthread_join(r->watcher, NULL);
        r->watched = false;
}

static int find_device(struct rdma *r, const char *name, unsigned port, int *ret_n) {
        struct ibv_device **list = ibv_get_device_list(ret_n);
        int found = -ENODEV;

        for (int i = 0; list && i < *ret_n && found < 0; i++)
                if (!name[0] || strcmp(name, ibv_get_device_name(list[i])) == 0)
                        found = take_device(r, list[i], port);
        if (list)
                ibv_free_device_list(list);
        return found;
}

int rdma_open(const char *want, struct rdma **ret, struct error *e) {
        struct rdma *r;
        char name[65] = "";
        unsigned port = 0;
        int n = 0, found;

        if (want && strcmp(want, "off") == 0)
                return error_set(e, -ENODEV, "RDMA: switched off");
        if (want && *want && sscanf(want, "%64[^:]:%u", name, &port) < 1)
                return error_set(e, -EINVAL, "RDMA: found '%.60s', expected DEVICE, DEVICE:PORT or off", want);
        if (access("/sys/class/infiniband", F_OK) < 0)
                return error_set(e, -ENODEV, "RDMA: no device here");
        (void)ibv_fork_init(); /* registered pages stay ours when somebody forks */
        r = calloc(1, sizeof(*r));
        if (!r)
                return error_errno(e, ENOMEM, "RDMA");
        pthread_mutex_init(&r->lock, NULL);
        r->stop = eventfd(0, EFD_CLOEXEC);
        found = r->stop < 0 ? -errno : find_device(r, name, port, &n);
        if (found == 0)
                found = start_watch(r);
        if (found < 0) {
                let_go(r);
                closep(&r->stop);
                pthread_mutex_destroy(&r->lock);
                free(r);
                return error_set(e, -ENODEV, "RDMA: found %d devices, expected %s with an active port", n, name[0] ? name : "one");
        }
        *ret = r;
        return 0;
}

struct rdma *rdma_free(struct rdma *r) {
        if (!r)
                return NULL;
        (void)eventfd_write(r->stop, 1);
        join_watch(r);
        let_go(r);
        closep(&r->stop);
        pthread_mutex_destroy(&r->lock);
        free(r);
        return NULL;
}

const char *rdma_name(const struct rdma *r) {
        return r->name;
}

/* ------------------------------------------------------------------ a lane */
static struct lane *lane_close(struct lane *l) {
        if (!l)
                return NULL;
        if (l->qp)
                (void)ibv_destroy_qp(l->qp); /* first: from here on nothing comes in */
        if (l->exposed.mr)
                (void)ibv_dereg_mr(l->exposed.mr);
        if (l->source.mr)
                (void)ibv_dereg_mr(l->source.mr);
        if (l->cq)
                (void)ibv_destroy_cq(l->cq);
        if (l->channel)
                (void)ibv_destroy_comp_channel(l->channel);
        pthread_mutex_lock(&l->device->lock);
        l->device->lanes--;
        if (l->device->lanes == 0 && atomic_load(&l->device->gone))
                let_go(l->device);
        pthread_mutex_unlock(&l->device->lock);
        free(l);
        return NULL;
}

static int make_queues(struct lane *l, struct error *e) {
        struct rdma *r = l->device;
        struct ibv_qp_init_attr init = { .qp_type = IBV_QPT_RC, .sq_sig_all = 1 };
        struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = r->port, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE };

        l->channel = ibv_create_comp_channel(r->context);
        if (l->channel && fcntl(l->channel->fd, F_SETFL, O_NONBLOCK) == 0)
                l->cq = ibv_create_cq(r->context, 2 * WINDOW, NULL, l->channel, 0);
        if (!l->cq)
                return error_errno(e, errno ? errno : EIO, "RDMA: cannot make a completion queue on %s", r->name);
        init.send_cq = init.recv_cq = l->cq;
        init.cap.max_send_wr = WINDOW;
        init.cap.max_recv_wr = 1;
        init.cap.max_send_sge = init.cap.max_recv_sge = 1;
        l->qp = ibv_create_qp(r->pd, &init);
        if (!l->qp)
                return error_errno(e, errno ? errno : EIO, "RDMA: cannot make a queue pair on %s", r->name);
        if (ibv_modify_qp(l->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) != 0)
                return error_errno(e, errno ? errno : EIO, "RDMA: cannot begin with a queue pair on %s", r->name);
        return 0;
}

/* One more lane on a device that is there (again), its port as it is now: it was opened for long, and addresses may have changed since. */
static int enter(struct rdma *r, struct error *e) {
        int n, rc = 0;

        pthread_mutex_lock(&r->lock);
        if (atomic_load(&r->gone) && !r->context) {
                join_watch(r); /* it has ended */
                rc = find_device(r, r->device, r->port, &n);
                if (rc == 0)
                        rc = start_watch(r);
                if (rc < 0) {
                        let_go(r);
                        atomic_store(&r->gone, true);
                }
        }
        if (atomic_load(&r->gone))
                rc = error_set(e, -ENODEV, "RDMA: %s was taken away", r->name);
        else if (take_port(r, r->port) < 0)
                rc = error_set(e, -ENETDOWN, "RDMA: the port of %s is not active", r->name);
        if (rc == 0)
                r->lanes++;
        pthread_mutex_unlock(&r->lock);
        return rc;
}

static int lane_open(void *device, char ret_address[LANE_ADDRESS], struct lane **ret, struct error *e) {
        struct rdma *r = device;
        struct lane *l = calloc(1, sizeof(*l));
        uint32_t psn = 0;
        int rc;

        if (!l)
                return error_errno(e, ENOMEM, "RDMA");
        l->device = r;
        rc = enter(r, e);
        if (rc < 0) {
                free(l);
                return rc;
        }
        rc = make_queues(l, e);
        if (rc == 0 && getrandom(&psn, sizeof(psn), 0) != (ssize_t)sizeof(psn))
                rc = error_errno(e, errno, "RDMA");
        if (rc < 0) {
                lane_close(l);
                return rc;
        }
        l->self = (struct rdma_address){ .qpn = l->qp->qp_num, .psn = psn & 0xffffff, .lid = r->port_attr.lid, .mtu = r->port_attr.active_mtu,
                                         .ethernet = r->port_attr.link_layer == IBV_LINK_LAYER_ETHERNET };
        memcpy(l->self.gid, r->gid.raw, sizeof(l->self.gid));
        rdma_address_print(&l->self, ret_address);
        *ret = l;
        return 0;
}

static int lane_connect(struct lane *l, const char *address, struct error *e) {
        struct rdma_address a;
        struct ibv_qp_attr rtr = { .qp_state = IBV_QPS_RTR, .max_dest_rd_atomic = 1, .min_rnr_timer = 12 };
        struct ibv_qp_attr rts = { .qp_state = IBV_QPS_RTS, .timeout = TIMEOUT, .retry_cnt = RETRIES, .rnr_retry = RETRIES, .max_rd_atomic = 1 };
        int r = rdma_address_read(address, &a, e);

        if (r < 0)
                return r;
        if (a.ethernet != l->self.ethernet)
                return error_set(e, -EPROTO, "RDMA: one end is on Ethernet, the other on InfiniBand");
        rtr.path_mtu = a.mtu < l->self.mtu ? a.mtu : l->self.mtu;
        rtr.dest_qp_num = a.qpn;
        rtr.rq_psn = a.psn;
        rtr.ah_attr.dlid = (uint16_t)a.lid;
        rtr.ah_attr.port_num = l->device->port;
        if (a.ethernet) {
                rtr.ah_attr.is_global = 1;
                memcpy(rtr.ah_attr.grh.dgid.raw, a.gid, sizeof(a.gid));
                rtr.ah_attr.grh.sgid_index = (uint8_t)l->device->gid_index;
                rtr.ah_attr.grh.hop_limit = 64;
        }
        rts.sq_psn = l->self.psn;
        r = ibv_modify_qp(l->qp, &rtr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
        if (r == 0)
                r = ibv_modify_qp(l->qp, &rts, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
        return r == 0 ? 0 : error_errno(e, r > 0 ? r : EIO, "RDMA: %s cannot reach the other end", l->device->name);
}

/* Pinning memory is slow, so the whole pool is registered, and stays so while it is asked for again. */
static int use_region(struct lane *l, struct region *g, const struct lane_pool *p, int access, struct error *e) {
        if (g->mr && g->pool.base == p->base && g->pool.size == p->size && g->pool.id == p->id)
                return 0;
        if (g->mr && ibv_dereg_mr(g->mr) != 0)
                return error_errno(e, errno ? errno : EIO, "RDMA: cannot let go of %" PRIu64 " bytes", g->pool.size);
        g->mr = ibv_reg_mr(l->device->pd, p->base, (size_t)p->size, access);
        if (!g->mr)
                return error_errno(e, errno ? errno : EIO, "RDMA: cannot register %" PRIu64 " bytes (ulimit -l?)", p->size);
        g->pool = *p;
        return 0;
}

static int lane_expose(struct lane *l, const struct lane_pool *p, uint32_t *ret_key, struct error *e) {
        int r = use_region(l, &l->exposed, p, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, e);

        if (r == 0)
                *ret_key = l->exposed.mr->rkey;
        return r;
}

static int post(struct lane *l, const uint8_t *from, uint32_t bytes, uint64_t to, uint32_t key, struct error *e) {
        struct ibv_sge sge = { .addr = (uintptr_t)from, .length = bytes, .lkey = l->source.mr->lkey };
        struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .wr.rdma = { .remote_addr = to, .rkey = key } }, *bad;
        int r = ibv_post_send(l->qp, &wr, &bad);

        return r == 0 ? 0 : error_errno(e, r > 0 ? r : EIO, "RDMA: %s takes no write", l->device->name);
}

/* Completions that are there: their number. */
static int reap(struct lane *l, struct error *e) {
        struct ibv_wc wc[WINDOW];
        int n = ibv_poll_cq(l->cq, WINDOW, wc);

        if (n < 0)
                return error_set(e, -EIO, "RDMA: %s's completion queue failed", l->device->name);
        for (int i = 0; i < n; i++)
                if (wc[i].status != IBV_WC_SUCCESS)
                        return error_set(e, -EIO, "RDMA: a write on %s ended with '%s'", l->device->name, ibv_wc_status_str(wc[i].status));
        return n;
}

/* At least one completion, or -ETIMEDOUT. */
static int await(struct lane *l, int timeout_ms, struct error *e) {
        uint64_t deadline = clock_mono_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;

        for (;;) {
                struct pollfd p = { .fd = l->channel->fd, .events = POLLIN };
                struct ibv_cq *cq;
                void *context;
                int n = reap(l, e);

                if (n != 0)
                        return n;
                if (ibv_req_notify_cq(l->cq, 0) != 0)
                        return error_set(e, -EIO, "RDMA: %s tells no completions", l->device->name);
                n = reap(l, e); /* what came in between is not told */
                if (n != 0)
                        return n;
                if (atomic_load(&l->device->gone))
                        return error_set(e, -ENODEV, "RDMA: %s was taken away", l->device->name);
                if (clock_mono_ns() > deadline)
                        return error_set(e, -ETIMEDOUT, "RDMA: no write on %s was completed for %d ms", l->device->name, timeout_ms);
                if (poll(&p, 1, 20) > 0 && ibv_get_cq_event(l->channel, &cq, &context) == 0)
                        ibv_ack_cq_events(cq, 1);
        }
}

static int lane_write(struct lane *l, const struct lane_pool *p, const void *from, uint64_t bytes, uint64_t to, uint32_t key, int timeout_ms, struct error *e) {
        const uint8_t *at = from;
        unsigned under_way = 0;
        int r = atomic_load(&l->device->gone) ? error_set(e, -ENODEV, "RDMA: %s was taken away", l->device->name) : use_region(l, &l->source, p, IBV_ACCESS_LOCAL_WRITE, e);

        while (r >= 0 && (bytes > 0 || under_way > 0)) {
                uint32_t n = bytes < WRITE_BYTES ? (uint32_t)bytes : WRITE_BYTES;

                if (bytes > 0 && under_way < WINDOW) {
                        r = post(l, at, n, to, key, e);
                        at += n;
                        to += n;
                        bytes -= n;
                        under_way++;
                        continue;
                }
                r = await(l, timeout_ms, e);
                if (r > 0)
                        under_way -= (unsigned)r;
        }
        return r < 0 ? r : 0;
}

static const struct lane_ops verbs = { "RDMA", lane_open, lane_connect, lane_expose, lane_write, lane_close };

struct lane_device rdma_lanes(struct rdma *r) {
        return (struct lane_device){ .ops = r ? &verbs : NULL, .device = r };
}
