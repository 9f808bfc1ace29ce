/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "worker/comm/comm_private.h"

struct ring {
        struct comm_io *in, *out;
        struct ring_segment *seg;
        size_t n;
        size_t in_seg, in_at;   /* bytes of seg[in_seg] that have landed, reduced where that is asked */
        size_t out_seg, out_at; /* bytes of seg[out_seg] that were sent */
        size_t held;            /* bytes in scratch that do not make a whole element yet */
        size_t element;
        uint8_t *scratch;
        enum dtype t;
        enum comm_op op;
};

/* Sets the window of what may go out: of seg[out_seg], as far as it has landed. Segments before in_seg have landed whole (seg[0] is our own). */
static void ring_open_out(struct ring *r) {
        while (r->out_seg + 1 < r->n && r->out_seg < r->in_seg && r->out_at == r->seg[r->out_seg].len) {
                r->out_seg++;
                r->out_at = 0;
        }
        if (r->out_seg + 1 == r->n) {
                r->out->len = 0;
                return;
        }
        r->out->ptr = r->seg[r->out_seg].ptr + r->out_at;
        r->out->len = (r->out_seg < r->in_seg ? r->seg[r->out_seg].len : r->in_at) - r->out_at;
}

/* Sets the window of what may come in: scratch when it is reduced, else its place. */
static void ring_open_in(struct ring *r) {
        while (r->in_seg < r->n && r->in_at == r->seg[r->in_seg].len) {
                r->in_seg++;
                r->in_at = 0;
        }
        if (r->in_seg == r->n) {
                r->in->len = 0;
                return;
        }
        struct ring_segment *s = &r->seg[r->in_seg];
        size_t left = s->len - r->in_at - r->held;

        if (s->own) {
                r->in->ptr = r->scratch + r->held;
                r->in->len = left < COMM_SCRATCH - r->held ? left : COMM_SCRATCH - r->held;
        } else {
                r->in->ptr = s->ptr + r->in_at;
                r->in->len = left;
        }
}

static void ring_received(struct comm_io *io, size_t n) {
        struct ring *r = io->arg;
        struct ring_segment *s = &r->seg[r->in_seg];

        if (s->own) {
                size_t have = r->held + n, whole = have - have % r->element;

                reduce(s->ptr + r->in_at, r->scratch, s->own + r->in_at, whole / r->element, r->t, r->op);
                r->held = have - whole;
                memmove(r->scratch, r->scratch + whole, r->held);
                r->in_at += whole;
        } else {
                r->in_at += n;
        }
        ring_open_in(r);
        ring_open_out(r);
}

static void ring_sent(struct comm_io *io, size_t n) {
        struct ring *r = io->arg;

        r->out_at += n;
        ring_open_out(r);
}

int ring_run(struct comm *c, struct ring_segment *seg, size_t n, enum dtype t, enum comm_op op, struct error *e) {
        struct comm_io ios[2];
        struct ring r = { .in = &ios[0], .out = &ios[1], .seg = seg, .n = n, .in_seg = 1, .element = dtype_size(t), .scratch = c->mesh->scratch, .t = t, .op = op };

        comm_io_plain(&ios[0], c->ranks[(c->index + c->n - 1) % c->n], false, NULL, 0);
        comm_io_plain(&ios[1], c->ranks[(c->index + 1) % c->n], true, NULL, 0);
        for (size_t i = 0; i < n; i++) {
                if (i > 0)
                        ios[0].left += seg[i].len;
                if (i + 1 < n)
                        ios[1].left += seg[i].len;
        }
        ios[0].moved = ring_received;
        ios[1].moved = ring_sent;
        ios[0].arg = ios[1].arg = &r;
        ring_open_in(&r);
        ring_open_out(&r);
        return comm_io_run(c->mesh, ios, 2, e);
}
