/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "worker/comm/comm_private.h"

DEFINE_CLEANUP(struct comm_mesh *, comm_mesh_free);

static void mesh_close(struct comm_mesh *m) {
        for (int i = 0; m->fds && i < m->config.n_ranks; i++)
                if (m->fds[i] >= 0) {
                        close(m->fds[i]);
                        m->fds[i] = -1;
                }
}

int comm_mesh_fail(struct comm_mesh *m, int condition, int peer, struct error *e, const char *fmt, ...) {
        char what[512];
        va_list ap;

        va_start(ap, fmt);
        (void)vsnprintf(what, sizeof(what), fmt, ap);
        va_end(ap);
        m->condition = condition;
        m->lost_peer = peer;
        if (m->device)
                device_epoch_end(m->device);
        mesh_close(m);
        if (m->op_name)
                error_set(e, condition < 0 ? condition : -ECOMM, "%s %llu of epoch %llu (group %u): %s", m->op_name, (unsigned long long)m->number,
                          (unsigned long long)m->config.epoch, m->tag, what);
        else
                error_set(e, condition < 0 ? condition : -ECOMM, "mesh of epoch %llu: %s", (unsigned long long)m->config.epoch, what);
        return condition;
}

int comm_mesh_new(struct comm_listener *l, struct comm_abort *a, const struct comm_mesh_config *c, struct comm_mesh **ret, struct error *e) {
        _cleanup_(comm_mesh_freep) struct comm_mesh *m = NULL;
        size_t n = (size_t)c->n_ranks;
        int r;

        if (c->n_ranks < 1 || c->n_ranks > 1 << 20 || c->rank < 0 || c->rank >= c->n_ranks || !c->peers || c->timeout_ms <= 0 || c->connect_timeout_ms <= 0)
                return error_set(e, -EINVAL, "mesh: rank %d of %d, timeouts %d and %d ms, expected a rank of the mesh and positive timeouts", c->rank, c->n_ranks,
                                 c->timeout_ms, c->connect_timeout_ms);
        m = calloc(1, sizeof(*m));
        if (!m)
                return error_set(e, -ENOMEM, "mesh: out of memory");
        m->config = *c;
        m->abort = a;
        m->lost_peer = -1;
        m->fds = malloc(n * sizeof(*m->fds));
        m->polls = calloc(2 * n + 2, sizeof(*m->polls));
        m->ios = calloc(2 * n, sizeof(*m->ios));
        m->sources = calloc(n, sizeof(*m->sources));
        m->scratch = malloc(COMM_SCRATCH);
        for (size_t i = 0; m->fds && i < n; i++)
                m->fds[i] = -1;
        if (!m->fds || !m->polls || !m->ios || !m->sources || !m->scratch)
                return error_set(e, -ENOMEM, "mesh of %d ranks: out of memory", c->n_ranks);
        r = comm_mesh_build(m, l, e);
        if (r != 0)
                return r;
        m->config.peers = NULL;
        m->config.node = NULL;
        if (c->device && c->n_ranks > 1) {
                r = device_epoch_new(m, e);
                if (r != 0)
                        return r;
        }
        *ret = STEAL_PTR(m);
        return 0;
}

struct comm_mesh *comm_mesh_free(struct comm_mesh *m) {
        if (!m)
                return NULL;
        m->device = device_epoch_free(m->device); /* before the connections: a peer that sees them close may be in the same collective */
        mesh_close(m);
        free(m->fds);
        free(m->polls);
        free(m->ios);
        free(m->sources);
        free(m->scratch);
        free(m->staging);
        explicit_bzero(m->config.key, sizeof(m->config.key));
        free(m);
        return NULL;
}

int comm_mesh_lost_peer(const struct comm_mesh *m) {
        return m->lost_peer;
}

int comm_new_device(struct comm_mesh *m, const int *ranks, int n, uint32_t tag, struct comm **ret, struct error *e) {
        struct comm *c;
        int r = comm_new(m, ranks, n, tag, &c, e);

        if (r != 0)
                return r;
        if (m->config.device) {
                c->on_device = true;
                if (n > 1)
                        r = device_link_find(c, e);
        }
        if (r != 0) {
                comm_free(c);
                return r;
        }
        *ret = c;
        return 0;
}

int comm_new(struct comm_mesh *m, const int *ranks, int n, uint32_t tag, struct comm **ret, struct error *e) {
        struct comm *c;
        int index = -1;

        if (n < 1 || n > m->config.n_ranks)
                return error_set(e, -EINVAL, "group of %d ranks, expected 1 to %d", n, m->config.n_ranks);
        for (int i = 0; i < n; i++) {
                if (ranks[i] < 0 || ranks[i] >= m->config.n_ranks)
                        return error_set(e, -EINVAL, "group: found rank %d, expected 0 to %d", ranks[i], m->config.n_ranks - 1);
                for (int j = 0; j < i; j++)
                        if (ranks[j] == ranks[i])
                                return error_set(e, -EINVAL, "group: found rank %d twice", ranks[i]);
                if (ranks[i] == m->config.rank)
                        index = i;
        }
        if (index < 0)
                return error_set(e, -EINVAL, "group: own rank %d is not in it", m->config.rank);
        c = calloc(1, sizeof(*c) + (size_t)n * sizeof(c->ranks[0]));
        if (!c)
                return error_set(e, -ENOMEM, "group: out of memory");
        c->mesh = m;
        c->n = n;
        c->index = index;
        c->tag = tag;
        memcpy(c->ranks, ranks, (size_t)n * sizeof(c->ranks[0]));
        *ret = c;
        return 0;
}

struct comm *comm_free(struct comm *c) {
        free(c);
        return NULL;
}

int comm_rank(const struct comm *c) {
        return c->index;
}

int comm_size(const struct comm *c) {
        return c->n;
}
