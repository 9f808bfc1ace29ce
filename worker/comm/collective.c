/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The collectives.  Three patterns, chosen by size alone, so that the order of reduction depends on the group and the count only:
 *   everyone   small all-reduce: each sends its whole buffer to each and sums all of them in index order
 *   direct     BF16 and middling reductions: chunk i goes straight to its owner, who sums in index order (BF16: in F32, rounded once)
 *   ring       large: reduce-scatter and all-gather along the group's indices, pipelined (ring.c); the sum of chunk i begins with member i + 1
 * All-gathers have no order: direct when small, by the ring when large, where each byte crosses a link between nodes once.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "worker/comm/comm_private.h"

#define EVERYONE_MOST (16u << 10) /* bytes of one member */
#define DIRECT_MOST (256u << 10)  /* bytes in all */
#define STAGING_MOST (4u << 20)   /* a direct reduction goes block by block through so much memory */

/* What the thread that watches the device's collectives has found. */
static int watched(struct comm_mesh *m, struct error *e) {
        char text[256];
        int peer, condition = m->device ? device_epoch_condition(m->device, &peer, text, sizeof(text)) : 0;

        return condition ? comm_mesh_fail(m, condition, peer, e, "%s", text) : 0;
}

static int call_begin_pair(struct comm *c, const char *name, enum flight_op op, size_t bytes, int to, int from, struct dev_stream *stream, struct error *e) {
        struct comm_mesh *m = c->mesh;
        int r;

        if (m->condition != 0)
                return error_set(e, m->condition < 0 ? m->condition : -ECOMM, "%s: the mesh of epoch %llu has ended before", name,
                                 (unsigned long long)m->config.epoch),
                       m->condition;
        m->op_name = name;
        m->tag = c->tag;
        m->calls++;
        m->number = m->calls;
        if (m->config.flight)
                m->number = flight_enter(m->config.flight, &(struct flight_call){ .op = op, .group = c->tag, .bytes = bytes, .number = to < 0 && from < 0 ? ++c->met : 0,
                                                                                  .to = to < 0 ? -1 : c->ranks[to], .from = from < 0 ? -1 : c->ranks[from] });
        if (atomic_load(&m->abort->raised))
                return comm_mesh_fail(m, COMM_E_ABORTED, -1, e, "aborted");
        r = watched(m, e);
        if (r == 0 && c->on_device)
                return c->n > 1 ? device_work_begin(c, stream, m->number, e) : 0;
        if (r == 0 && m->config.ops && stream) {
                r = m->config.ops->stream_sync(stream);
                if (r < 0)
                        return comm_mesh_fail(m, r, -1, e, "the device failed: %s", strerror(-r));
                r = watched(m, e); /* what ended while we waited ended in garbage */
        }
        return r;
}

static int call_begin(struct comm *c, const char *name, enum flight_op op, size_t bytes, struct dev_stream *stream, struct error *e) {
        return call_begin_pair(c, name, op, bytes, -1, -1, stream, e);
}

/* A call that failed stays open in the flight recorder: that is where it was. */
static int call_end(struct comm *c, int r) {
        if (r == 0 && c->mesh->config.flight && !c->link)
                flight_leave(c->mesh->config.flight, c->mesh->number);
        return r;
}

/* On the device it is only enqueued: the watching thread closes it in the flight recorder. */
static int device_end(struct comm *c, int r, struct dev_stream *stream, struct error *e) {
        if (r == 0 && c->link)
                r = device_work_end(c, stream, e);
        return call_end(c, r);
}

/* Nothing has been sent yet, so the mesh lives on. */
static int call_refuse(const char *name, struct error *e, const char *why) {
        return error_set(e, -EINVAL, "%s: %s", name, why);
}

/* Makes m->staging at least so large. */
static int staging_grow(struct comm_mesh *m, size_t bytes, struct error *e) {
        if (bytes > m->staging_size) {
                uint8_t *p = realloc(m->staging, bytes);

                if (!p)
                        return comm_mesh_fail(m, -ENOMEM, -1, e, "no memory for %zu bytes", bytes);
                m->staging = p;
                m->staging_size = bytes;
        }
        return 0;
}

/* ------------------------------------------------------------------ everyone */

/* dst = src[0] op src[1] op ..., in this order; src[i] for i > 0 and dst may not overlap, src[0] is overwritten unless it is dst. */
static void reduce_in_order(void *dst, void **src, int n, size_t count, enum dtype t, enum comm_op op) {
        if (t == DT_BF16) {
                reduce_bf16(dst, (const uint16_t *const *)(const void *)src, n, count, op);
                return;
        }
        for (int i = 1; i < n; i++)
                reduce(src[0], src[0], src[i], count, t, op);
        if (src[0] != dst)
                memcpy(dst, src[0], count * dtype_size(t));
}

static int all_reduce_everyone(struct comm *c, void *buf, size_t count, enum dtype t, enum comm_op op, struct error *e) {
        struct comm_mesh *m = c->mesh;
        size_t bytes = count * dtype_size(t), k = 0;
        int r = staging_grow(m, (size_t)c->n * bytes, e);

        if (r != 0)
                return r;
        for (int i = 0; i < c->n; i++) {
                m->sources[i] = m->staging + (size_t)i * bytes;
                if (i == c->index)
                        continue;
                comm_io_plain(&m->ios[k++], c->ranks[i], true, buf, bytes);
                comm_io_plain(&m->ios[k++], c->ranks[i], false, m->sources[i], bytes);
        }
        r = comm_io_run(m, m->ios, k, e);
        if (r != 0)
                return r;
        memcpy(m->sources[c->index], buf, bytes);
        reduce_in_order(buf, m->sources, c->n, count, t, op);
        return 0;
}

/* ------------------------------------------------------------------ direct */

size_t comm_chunk_start(size_t count, size_t unit, int n, int i) {
        size_t units = (count + unit - 1) / unit, each = units / (size_t)n, more = units % (size_t)n, k = (size_t)i, at = (k * each + (k < more ? k : more)) * unit;

        return at < count ? at : count;
}

/* in: the members' chunks one after another, counts[i] elements each; own chunk's sum -> out, which may be its place in `in`. */
static int reduce_scatter_direct(struct comm *c, uint8_t *in, uint8_t *out, const size_t *counts, enum dtype t, enum comm_op op, struct error *e) {
        struct comm_mesh *m = c->mesh;
        size_t size = dtype_size(t), most = 0, block = STAGING_MOST / size / (size_t)c->n, own = counts[c->index], start = 0;
        int r;

        for (int i = 0; i < c->n; i++) {
                most = counts[i] > most ? counts[i] : most;
                start += i < c->index ? counts[i] : 0;
        }
        block = block < 1 ? 1 : block < most ? block : most;
        r = staging_grow(m, (size_t)c->n * block * size, e);
        if (r != 0)
                return r;
        for (size_t done = 0; done < most; done += block) {
                size_t here = done >= own ? 0 : own - done < block ? own - done : block, at = 0, k = 0;

                for (int i = 0; i < c->n; i++) {
                        size_t there = done >= counts[i] ? 0 : counts[i] - done < block ? counts[i] - done : block;

                        m->sources[i] = m->staging + (size_t)i * block * size;
                        if (i == c->index) {
                                memcpy(m->sources[i], in + (start + done) * size, here * size);
                        } else {
                                comm_io_plain(&m->ios[k++], c->ranks[i], true, in + (at + done) * size, there * size);
                                comm_io_plain(&m->ios[k++], c->ranks[i], false, m->sources[i], here * size);
                        }
                        at += counts[i];
                }
                r = comm_io_run(m, m->ios, k, e);
                if (r != 0)
                        return r;
                if (here > 0)
                        reduce_in_order(out + done * size, m->sources, c->n, here, t, op);
        }
        return 0;
}

/* out: the members' parts, our own in its place. */
static int all_gather_direct(struct comm *c, uint8_t *out, const size_t *offsets, const size_t *sizes, struct error *e) {
        struct comm_mesh *m = c->mesh;
        size_t k = 0;

        for (int i = 0; i < c->n; i++)
                if (i != c->index) {
                        comm_io_plain(&m->ios[k++], c->ranks[i], true, out + offsets[c->index], sizes[c->index]);
                        comm_io_plain(&m->ios[k++], c->ranks[i], false, out + offsets[i], sizes[i]);
                }
        return comm_io_run(m, m->ios, k, e);
}

/* ------------------------------------------------------------------ ring */

static int wrap(int i, int n) {
        return ((i % n) + n) % n;
}

/*
 * Segments of the ring: `first` is the chunk this member sends first, each next one is its predecessor in the ring; the first `reduced` that come in are summed.
 */
static int ring_chunks(struct comm *c, uint8_t *buf, const size_t *offsets, const size_t *sizes, int first, int reduced, int received, uint8_t *last, enum dtype t,
                       enum comm_op op, struct error *e) {
        _cleanup_free_ struct ring_segment *seg = calloc((size_t)received + 1, sizeof(*seg));

        if (!seg)
                return comm_mesh_fail(c->mesh, -ENOMEM, -1, e, "out of memory");
        for (int i = 0; i <= received; i++) {
                int k = wrap(first - i, c->n);

                seg[i] = (struct ring_segment){ .ptr = buf + offsets[k], .own = i > 0 && i <= reduced ? buf + offsets[k] : NULL, .len = sizes[k] };
        }
        if (last) /* the finished sum goes straight to the caller's buffer */
                seg[received].ptr = last;
        return ring_run(c, seg, (size_t)received + 1, t, op, e);
}

struct cut {
        size_t *counts, *offsets, *sizes; /* elements; bytes */
        size_t total;                     /* bytes */
};

static void cut_clear(struct cut *x) {
        free(x->counts);
}

/* counts NULL: `count` elements cut evenly. */
static int cut_make(struct comm *c, struct cut *x, size_t count, const size_t *counts, size_t element, struct error *e) {
        size_t n = (size_t)c->n, at = 0;

        x->counts = calloc(3 * n, sizeof(size_t));
        if (!x->counts) {
                comm_mesh_fail(c->mesh, -ENOMEM, -1, e, "out of memory");
                return -ENOMEM;
        }
        x->offsets = x->counts + n;
        x->sizes = x->offsets + n;
        for (int i = 0; i < c->n; i++) {
                x->counts[i] = counts ? counts[i] : comm_chunk_start(count, 1, c->n, i + 1) - comm_chunk_start(count, 1, c->n, i);
                x->offsets[i] = at;
                x->sizes[i] = x->counts[i] * element;
                at += x->sizes[i];
        }
        x->total = at;
        return 0;
}

static int all_gather_cut(struct comm *c, uint8_t *out, const struct cut *x, struct error *e) {
        if (x->total <= DIRECT_MOST || c->n == 2)
                return all_gather_direct(c, out, x->offsets, x->sizes, e);
        return ring_chunks(c, out, x->offsets, x->sizes, c->index, 0, c->n - 1, NULL, DT_U8, COMM_SUM, e);
}

static int all_reduce_run(struct comm *c, void *buf, size_t count, enum dtype t, enum comm_op op, struct error *e) {
        _cleanup_(cut_clear) struct cut x = { 0 };
        size_t bytes = count * dtype_size(t);
        int r;

        if (count == 0 || c->n == 1)
                return 0;
        if (bytes <= EVERYONE_MOST)
                return all_reduce_everyone(c, buf, count, t, op, e);
        r = cut_make(c, &x, count, NULL, dtype_size(t), e);
        if (r != 0)
                return r;
        if (t != DT_BF16 && bytes > DIRECT_MOST)
                return ring_chunks(c, buf, x.offsets, x.sizes, wrap(c->index - 1, c->n), c->n - 1, 2 * (c->n - 1), NULL, t, op, e);
        r = reduce_scatter_direct(c, buf, (uint8_t *)buf + x.offsets[c->index], x.counts, t, op, e);
        return r != 0 ? r : all_gather_cut(c, buf, &x, e);
}

int comm_all_reduce(struct comm *c, void *buf, size_t count, enum dtype t, enum comm_op op, struct dev_stream *stream, struct error *e) {
        int r;

        if (t != DT_BF16 && reduce_check(t) < 0)
                return call_refuse("all-reduce", e, "this type cannot be summed");
        r = call_begin(c, "all-reduce", FLIGHT_ALL_REDUCE, count * dtype_size(t), stream, e);
        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_all_reduce(c, buf, count, t, op, stream, e), stream, e);
        return call_end(c, all_reduce_run(c, buf, count, t, op, e));
}

static int reduce_scatter_run(struct comm *c, uint8_t *in, uint8_t *out, size_t count, const size_t *counts, enum dtype t, enum comm_op op, struct error *e) {
        _cleanup_(cut_clear) struct cut x = { 0 };
        int r;

        if (c->n == 1) {
                memcpy(out, in, (counts ? counts[0] : count) * dtype_size(t));
                return 0;
        }
        r = cut_make(c, &x, count * (size_t)c->n, counts, dtype_size(t), e);
        if (r != 0)
                return r;
        if (t == DT_BF16 || x.total <= DIRECT_MOST)
                return reduce_scatter_direct(c, in, out, x.counts, t, op, e);
        return ring_chunks(c, in, x.offsets, x.sizes, wrap(c->index - 1, c->n), c->n - 1, c->n - 1, out, t, op, e);
}

static size_t sum_of(const size_t *sizes, int n) {
        size_t sum = 0;

        for (int i = 0; i < n; i++)
                sum += sizes[i];
        return sum;
}

int comm_reduce_scatter(struct comm *c, void *in, void *out, size_t count, enum dtype t, enum comm_op op, struct dev_stream *stream, struct error *e) {
        int r;

        if (t != DT_BF16 && reduce_check(t) < 0)
                return call_refuse("reduce-scatter", e, "this type cannot be summed");
        r = call_begin(c, "reduce-scatter", FLIGHT_REDUCE_SCATTER, count * (size_t)c->n * dtype_size(t), stream, e);
        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_reduce_scatter(c, in, out, count, NULL, t, op, stream, e), stream, e);
        return call_end(c, reduce_scatter_run(c, in, out, count, NULL, t, op, e));
}

int comm_reduce_scatter_v(struct comm *c, void *in, void *out, const size_t *counts, enum dtype t, enum comm_op op, struct dev_stream *stream, struct error *e) {
        int r;

        if (t != DT_BF16 && reduce_check(t) < 0)
                return call_refuse("reduce-scatter", e, "this type cannot be summed");
        r = call_begin(c, "reduce-scatter", FLIGHT_REDUCE_SCATTER, sum_of(counts, c->n) * dtype_size(t), stream, e);
        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_reduce_scatter(c, in, out, 0, counts, t, op, stream, e), stream, e);
        return call_end(c, reduce_scatter_run(c, in, out, 0, counts, t, op, e));
}

static int all_gather_run(struct comm *c, const uint8_t *in, uint8_t *out, size_t bytes, const size_t *sizes, struct error *e) {
        _cleanup_(cut_clear) struct cut x = { 0 };
        int r = cut_make(c, &x, bytes * (size_t)c->n, sizes, 1, e);

        if (r != 0)
                return r;
        if (in != out + x.offsets[c->index])
                memmove(out + x.offsets[c->index], in, x.sizes[c->index]);
        return c->n == 1 ? 0 : all_gather_cut(c, out, &x, e);
}

int comm_all_gather(struct comm *c, const void *in, void *out, size_t bytes, struct dev_stream *stream, struct error *e) {
        int r = call_begin(c, "all-gather", FLIGHT_ALL_GATHER, bytes * (size_t)c->n, stream, e);

        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_all_gather(c, in, out, bytes, NULL, stream, e), stream, e);
        return call_end(c, all_gather_run(c, in, out, bytes, NULL, e));
}

int comm_all_gather_v(struct comm *c, const void *in, void *out, const size_t *sizes, struct dev_stream *stream, struct error *e) {
        int r = call_begin(c, "all-gather", FLIGHT_ALL_GATHER, sum_of(sizes, c->n), stream, e);

        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_all_gather(c, in, out, 0, sizes, stream, e), stream, e);
        return call_end(c, all_gather_run(c, in, out, 0, sizes, e));
}

int comm_all_gather_at(struct comm *c, void *buf, const size_t *offsets, const size_t *sizes, struct dev_stream *stream, struct error *e) {
        int r = call_begin(c, "all-gather", FLIGHT_ALL_GATHER, sum_of(sizes, c->n), stream, e);

        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_all_gather_at(c, buf, offsets, sizes, stream, e), stream, e);
        return call_end(c, all_gather_direct(c, buf, offsets, sizes, e));
}

int comm_gather_run(struct comm *c, void *buf, size_t bytes, struct error *e) {
        _cleanup_(cut_clear) struct cut x = { 0 };
        int r = cut_make(c, &x, bytes * (size_t)c->n, NULL, 1, e);

        return r != 0 ? r : all_gather_direct(c, buf, x.offsets, x.sizes, e);
}

int comm_stream_after(struct comm *c, struct dev_stream *later, struct dev_stream *earlier, struct error *e) {
        return c->link ? device_stream_after(c, later, earlier, e) : 0;
}

/* ------------------------------------------------------------------ the others */

/* What has landed may go on: each member of a broadcast passes it to the next. */
static void chain_moved(struct comm_io *in, size_t n) {
        struct comm_io *out = in->arg;

        out->len += n;
}

int comm_broadcast_run(struct comm *c, void *buf, size_t bytes, int root, struct error *e) {
        struct comm_mesh *m = c->mesh;
        int at = wrap(c->index - root, c->n);
        size_t k = 0;

        if (bytes <= DIRECT_MOST || c->n == 2) {
                for (int i = 0; i < c->n && at == 0; i++)
                        if (i != root)
                                comm_io_plain(&m->ios[k++], c->ranks[i], true, buf, bytes);
                if (at != 0)
                        comm_io_plain(&m->ios[k++], c->ranks[root], false, buf, bytes);
                return comm_io_run(m, m->ios, k, e);
        }
        if (at > 0)
                comm_io_plain(&m->ios[k++], c->ranks[wrap(c->index - 1, c->n)], false, buf, bytes);
        if (at < c->n - 1) {
                comm_io_plain(&m->ios[k++], c->ranks[wrap(c->index + 1, c->n)], true, buf, bytes);
                if (at > 0) {
                        m->ios[1].len = 0;
                        m->ios[0].moved = chain_moved;
                        m->ios[0].arg = &m->ios[1];
                }
        }
        return comm_io_run(m, m->ios, k, e);
}

int comm_broadcast(struct comm *c, void *buf, size_t bytes, int root, struct dev_stream *stream, struct error *e) {
        int r;

        if (root < 0 || root >= c->n)
                return call_refuse("broadcast", e, "the root is not an index of the group");
        r = call_begin(c, "broadcast", FLIGHT_BROADCAST, bytes, stream, e);
        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_broadcast(c, buf, bytes, root, stream, e), stream, e);
        return call_end(c, c->n == 1 ? 0 : comm_broadcast_run(c, buf, bytes, root, e));
}

static bool other_member(const struct comm *c, int i) {
        return i >= 0 && i < c->n && i != c->index;
}

int comm_send(struct comm *c, const void *buf, size_t bytes, int to, struct dev_stream *stream, struct error *e) {
        struct comm_io io;
        int r;

        if (!other_member(c, to))
                return call_refuse("send", e, "the receiver is not another member of the group");
        r = call_begin_pair(c, "send", FLIGHT_SEND, bytes, to, -1, stream, e);
        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_send_recv(c, buf, bytes, to, NULL, 0, -1, stream, e), stream, e);
        comm_io_plain(&io, c->ranks[to], true, buf, bytes);
        return call_end(c, comm_io_run(c->mesh, &io, 1, e));
}

int comm_recv(struct comm *c, void *buf, size_t bytes, int from, struct dev_stream *stream, struct error *e) {
        struct comm_io io;
        int r;

        if (!other_member(c, from))
                return call_refuse("receive", e, "the sender is not another member of the group");
        r = call_begin_pair(c, "receive", FLIGHT_RECV, bytes, -1, from, stream, e);
        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_send_recv(c, NULL, 0, -1, buf, bytes, from, stream, e), stream, e);
        comm_io_plain(&io, c->ranks[from], false, buf, bytes);
        return call_end(c, comm_io_run(c->mesh, &io, 1, e));
}

int comm_send_recv(struct comm *c, const void *out, size_t out_bytes, int to, void *in, size_t in_bytes, int from, struct dev_stream *stream, struct error *e) {
        struct comm_io ios[2];
        int r;
        bool self = to == c->index && from == c->index && out_bytes == in_bytes;

        if (!self && (!other_member(c, to) || !other_member(c, from)))
                return call_refuse("send-receive", e, "a peer is not another member of the group");
        r = call_begin_pair(c, "send-receive", FLIGHT_SEND, out_bytes + in_bytes, to, from, stream, e);
        if (r != 0)
                return r;
        if (c->on_device)
                return device_end(c, device_send_recv(c, out, out_bytes, to, in, in_bytes, from, stream, e), stream, e);
        if (self) {
                memmove(in, out, in_bytes);
                return call_end(c, 0);
        }
        comm_io_plain(&ios[0], c->ranks[to], true, out, out_bytes);
        comm_io_plain(&ios[1], c->ranks[from], false, in, in_bytes);
        return call_end(c, comm_io_run(c->mesh, ios, 2, e));
}

int comm_barrier(struct comm *c, struct error *e) {
        struct comm *host = NULL;
        uint8_t token = 0;
        int r;

        if (c->on_device) { /* the same ranks over the sockets */
                r = comm_new(c->mesh, c->ranks, c->n, c->tag, &host, e);
                if (r != 0)
                        return r;
                host->met = c->met;
                r = comm_barrier(host, e);
                c->met = host->met;
                comm_free(host);
                return r;
        }
        r = call_begin(c, "barrier", FLIGHT_BARRIER, 0, NULL, e);
        if (r != 0)
                return r;
        return call_end(c, all_reduce_run(c, &token, 1, DT_U8, COMM_MAX, e));
}
