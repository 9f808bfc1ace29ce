/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calls of comm.h on device memory: exchanges between members and sums in the order of the group's index (dev_comm.h).  Chunk i of a sum goes straight to its owner, block by block
 * through the device's scratch; a small all-reduce goes whole to everyone.  As in collective.c the pattern follows from the size alone.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "worker/comm/comm_private.h"

#define EVERYONE_MOST (256u << 10) /* bytes of one member: below, a second exchange costs more than the bytes it saves */
#define CHUNK_UNIT 64              /* elements: chunks begin where 16-byte accesses may */

static int broke(struct comm *c, int r, struct error *e) {
        return comm_mesh_fail(c->mesh, r, -1, e, "the device failed: %s", strerror(-r));
}

static int parts_room(struct comm *c, struct dev_comm_part **ret, struct error *e) {
        struct comm_device *d = c->mesh->config.device;

        if (d->n_parts < 2 * c->n) {
                struct dev_comm_part *p = realloc(d->parts, 2 * (size_t)c->n * sizeof(*p));

                if (!p) {
                        (void)broke(c, -ENOMEM, e);
                        return -ENOMEM;
                }
                d->parts = p;
                d->n_parts = 2 * c->n;
        }
        *ret = d->parts;
        return 0;
}

static void add_part(struct dev_comm_part *parts, int *n, const void *ptr, size_t bytes, int peer, bool send) {
        if (bytes > 0)
                parts[(*n)++] = (struct dev_comm_part){ .ptr = (void *)(uintptr_t)ptr, .bytes = bytes, .peer = peer, .send = send };
}

static int exchange(struct comm *c, const struct dev_comm_part *parts, int n, struct dev_stream *s, struct error *e) {
        return n > 0 ? device_exchange(c, parts, n, s, e) : 0;
}

static int copy(struct comm *c, void *dst, const void *src, size_t bytes, struct dev_stream *s, struct error *e) {
        int r = dst == src ? 0 : c->mesh->config.device->ops->copy(dst, src, bytes, s);

        return r < 0 ? broke(c, r, e) : 0;
}

static int fold(struct comm *c, void *dst, const void *own, size_t stride, size_t count, enum dtype t, enum comm_op op, struct dev_stream *s, struct error *e) {
        struct comm_device *d = c->mesh->config.device;
        int r = d->comm->fold(dst, d->scratch, stride, own, c->index, c->n, count, t, (enum dev_comm_op)op, s);

        return r < 0 ? broke(c, r, e) : 0;
}

static int all_reduce_everyone(struct comm *c, void *buf, size_t count, enum dtype t, enum comm_op op, struct dev_stream *s, struct error *e) {
        struct comm_device *d = c->mesh->config.device;
        size_t bytes = count * dtype_size(t), stride = (bytes + 255) / 256 * 256;
        struct dev_comm_part *parts = NULL;
        int n = 0, r = parts_room(c, &parts, e);

        if (r != 0)
                return r;
        for (int i = 0; i < c->n; i++)
                if (i != c->index) {
                        add_part(parts, &n, buf, bytes, i, true);
                        add_part(parts, &n, (uint8_t *)d->scratch + (size_t)i * stride, bytes, i, false);
                }
        r = exchange(c, parts, n, s, e);
        return r != 0 ? r : fold(c, buf, buf, stride, count, t, op, s, e);
}

/* counts in elements, offsets from them; out may be the own chunk's place in `in`. */
static int scatter(struct comm *c, uint8_t *in, uint8_t *out, const size_t *counts, enum dtype t, enum comm_op op, struct dev_stream *s, struct error *e) {
        struct comm_device *d = c->mesh->config.device;
        size_t size = dtype_size(t), most = 0, own = counts[c->index], start = 0, block = d->scratch_size / (size_t)c->n / 256 * 256 / size;
        struct dev_comm_part *parts = NULL;
        int r = parts_room(c, &parts, e);

        if (r != 0)
                return r;
        for (int i = 0; i < c->n; i++) {
                most = counts[i] > most ? counts[i] : most;
                start += i < c->index ? counts[i] : 0;
        }
        if (block == 0)
                return broke(c, -ENOMEM, e);
        for (size_t done = 0; done < most; done += block) {
                size_t here = done >= own ? 0 : own - done < block ? own - done : block, at = 0;
                int n = 0;

                for (int i = 0; i < c->n; i++) {
                        size_t there = done >= counts[i] ? 0 : counts[i] - done < block ? counts[i] - done : block;

                        if (i != c->index) {
                                add_part(parts, &n, in + (at + done) * size, there * size, i, true);
                                add_part(parts, &n, (uint8_t *)d->scratch + (size_t)i * block * size, here * size, i, false);
                        }
                        at += counts[i];
                }
                r = exchange(c, parts, n, s, e);
                if (r == 0 && here > 0)
                        r = fold(c, out + done * size, in + (start + done) * size, block * size, here, t, op, s, e);
                if (r != 0)
                        return r;
        }
        return 0;
}

/* Our own part lies in its place. offsets NULL: one after another. */
static int gather(struct comm *c, uint8_t *out, const size_t *offsets, const size_t *sizes, struct dev_stream *s, struct error *e) {
        struct dev_comm_part *parts = NULL;
        size_t at = 0, own = 0;
        int n = 0, r = parts_room(c, &parts, e);

        if (r != 0)
                return r;
        for (int i = 0; i < c->index; i++)
                own += sizes[i];
        for (int i = 0; i < c->n; i++) {
                if (i != c->index) {
                        add_part(parts, &n, out + (offsets ? offsets[c->index] : own), sizes[c->index], i, true);
                        add_part(parts, &n, out + (offsets ? offsets[i] : at), sizes[i], i, false);
                }
                at += sizes[i];
        }
        return exchange(c, parts, n, s, e);
}

int device_all_gather_at(struct comm *c, uint8_t *buf, const size_t *offsets, const size_t *sizes, struct dev_stream *s, struct error *e) {
        return c->n == 1 ? 0 : gather(c, buf, offsets, sizes, s, e);
}

static int unsuited(struct comm *c, enum dtype t, struct error *e) {
        return t == DT_F32 || t == DT_BF16 ? 0 : comm_mesh_fail(c->mesh, -EOPNOTSUPP, -1, e, "found %s, expected f32 or bf16 on the device", dtype_name(t));
}

int device_all_reduce(struct comm *c, void *buf, size_t count, enum dtype t, enum comm_op op, struct dev_stream *s, struct error *e) {
        size_t size = dtype_size(t), at = 0;
        _cleanup_free_ size_t *counts = NULL, *sizes = NULL;
        int r = unsuited(c, t, e);

        if (r != 0 || count == 0 || c->n == 1)
                return r;
        if (count * size <= EVERYONE_MOST && (count * size + 256) * (size_t)c->n <= c->mesh->config.device->scratch_size)
                return all_reduce_everyone(c, buf, count, t, op, s, e);
        counts = calloc((size_t)c->n, sizeof(*counts));
        sizes = calloc((size_t)c->n, sizeof(*sizes));
        if (!counts || !sizes)
                return broke(c, -ENOMEM, e);
        for (int i = 0; i < c->n; i++) {
                counts[i] = comm_chunk_start(count, CHUNK_UNIT, c->n, i + 1) - comm_chunk_start(count, CHUNK_UNIT, c->n, i);
                sizes[i] = counts[i] * size;
                at += i < c->index ? sizes[i] : 0;
        }
        r = scatter(c, buf, (uint8_t *)buf + at, counts, t, op, s, e);
        return r != 0 ? r : gather(c, buf, NULL, sizes, s, e);
}

/* counts NULL: all the same. */
static size_t *fill(const struct comm *c, size_t count, const size_t *counts) {
        size_t *x = calloc((size_t)c->n, sizeof(*x));

        for (int i = 0; x && i < c->n; i++)
                x[i] = counts ? counts[i] : count;
        return x;
}

int device_reduce_scatter(struct comm *c, uint8_t *in, uint8_t *out, size_t count, const size_t *counts, enum dtype t, enum comm_op op, struct dev_stream *s, struct error *e) {
        _cleanup_free_ size_t *x = NULL;
        int r = unsuited(c, t, e);

        if (r != 0)
                return r;
        x = fill(c, count, counts);
        if (!x)
                return broke(c, -ENOMEM, e);
        return c->n == 1 ? copy(c, out, in, x[0] * dtype_size(t), s, e) : scatter(c, in, out, x, t, op, s, e);
}

int device_all_gather(struct comm *c, const uint8_t *in, uint8_t *out, size_t bytes, const size_t *sizes, struct dev_stream *s, struct error *e) {
        _cleanup_free_ size_t *x = fill(c, bytes, sizes);
        size_t own = 0;
        int r;

        if (!x)
                return broke(c, -ENOMEM, e);
        for (int i = 0; i < c->index; i++)
                own += x[i];
        r = copy(c, out + own, in, x[c->index], s, e);
        return r != 0 || c->n == 1 ? r : gather(c, out, NULL, x, s, e);
}

int device_broadcast(struct comm *c, void *buf, size_t bytes, int root, struct dev_stream *s, struct error *e) {
        struct dev_comm_part *parts = NULL;
        int n = 0, r = parts_room(c, &parts, e);

        for (int i = 0; r == 0 && i < c->n && c->index == root; i++)
                if (i != root)
                        add_part(parts, &n, buf, bytes, i, true);
        if (r == 0 && c->index != root)
                add_part(parts, &n, buf, bytes, root, false);
        return r != 0 ? r : exchange(c, parts, n, s, e);
}

/* to, from: -1: nothing that way. */
int device_send_recv(struct comm *c, const void *out, size_t out_bytes, int to, void *in, size_t in_bytes, int from, struct dev_stream *s, struct error *e) {
        struct dev_comm_part parts[2];
        int n = 0;

        if (to == c->index)
                return copy(c, in, out, in_bytes, s, e);
        if (to >= 0)
                add_part(parts, &n, out, out_bytes, to, true);
        if (from >= 0)
                add_part(parts, &n, in, in_bytes, from, false);
        return exchange(c, parts, n, s, e);
}
