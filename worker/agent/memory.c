/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "worker/agent/agent_private.h"

int memory_collect(struct agent *a, uint64_t job, struct memory *ret) {
        size_t n_held = holder_count(a->holder, job), n = n_held;

        for (struct local_rank *r = a->ranks; r; r = r->next)
                n += r->job_id == job && r->replica_fd >= 0;
        *ret = (struct memory){ .fds = calloc(n + 1, sizeof(*ret->fds)) };
        if (!ret->fds)
                return -ENOMEM;
        for (struct local_rank *r = a->ranks; r; r = r->next)
                if (r->job_id == job && r->replica_fd >= 0) {
                        int fd = fcntl(r->replica_fd, F_DUPFD_CLOEXEC, 3);

                        if (fd >= 0)
                                ret->fds[ret->n++] = fd;
                }
        ret->n_own = ret->n;
        ret->n += holder_segments(a->holder, job, ret->fds + ret->n, n_held);
        return 0;
}

void memory_free(struct memory *m) {
        for (size_t i = 0; i < m->n; i++)
                close(m->fds[i]);
        free(m->fds);
        *m = (struct memory){ 0 };
}
