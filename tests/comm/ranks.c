/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "tests/comm/ranks.h"

void ranks_fail(struct ranks *r, const char *fmt, ...) {
        va_list ap;

        va_start(ap, fmt);
        (void)vsnprintf(r->shared->failure[r->rank], sizeof(r->shared->failure[0]), fmt, ap);
        va_end(ap);
        _exit(1);
}

static void child(struct ranks *r, int rank) {
        struct error e = { 0 };
        char name[32];

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        r->rank = rank;
        (void)snprintf(name, sizeof(name), "r%d.i%d", rank, 100 + rank);
        RANK_OK(r, comm_listener_new(r->dir, r->tcp ? "127.0.0.1" : NULL, name, &r->listener, &e), e);
        RANK_OK(r, comm_abort_new(&r->abort, &e), e);
        (void)snprintf(r->shared->endpoint[rank], sizeof(r->shared->endpoint[0]), "%s", comm_listener_endpoint(r->listener));
        (void)pthread_barrier_wait(&r->shared->met);
        r->fn(r, rank);
        r->abort = comm_abort_free(r->abort);
        r->listener = comm_listener_free(r->listener);
        exit(0); /* so that the leak check runs */
}

void ranks_start(struct ranks *r) {
        pthread_barrierattr_t attr;

        if (!r->timeout_ms)
                r->timeout_ms = 60000;
        if (!r->connect_timeout_ms)
                r->connect_timeout_ms = 60000;
        (void)snprintf(r->dir, sizeof(r->dir), "/tmp/fp8ctl-comm-XXXXXX");
        if (!mkdtemp(r->dir))
                abort();
        r->shared = mmap(NULL, sizeof(*r->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (r->shared == MAP_FAILED)
                abort();
        (void)pthread_barrierattr_init(&attr);
        (void)pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
        (void)pthread_barrier_init(&r->shared->met, &attr, (unsigned)r->n);
        (void)pthread_barrierattr_destroy(&attr);
        (void)fflush(NULL);
        for (int i = 0; i < r->n; i++) {
                r->pids[i] = fork();
                if (r->pids[i] < 0)
                        abort();
                if (r->pids[i] == 0)
                        child(r, i);
        }
}

int ranks_wait(struct ranks *r, int killed) {
        int failed = 0;

        for (int i = 0; i < r->n; i++) {
                int status = 0;

                while (waitpid(r->pids[i], &status, 0) < 0 && errno == EINTR)
                        ;
                if ((WIFEXITED(status) && WEXITSTATUS(status) == 0) || (i == killed && WIFSIGNALED(status)))
                        continue;
                failed++;
                printf("    rank %d: status 0x%x: %s\n", i, status, r->shared->failure[i]);
        }
        (void)munmap(r->shared, sizeof(*r->shared));
        (void)file_remove_tree(r->dir, NULL);
        return failed;
}

struct comm_mesh_config ranks_config(struct ranks *r, uint64_t epoch, struct comm_peer *peers) {
        static char nodes[RANKS_MOST][16];
        struct comm_mesh_config c = { .job = 7, .epoch = epoch, .rank = r->rank, .n_ranks = r->n, .peers = peers, .timeout_ms = r->timeout_ms,
                                      .connect_timeout_ms = r->connect_timeout_ms };

        for (int i = 0; i < r->n; i++) {
                (void)snprintf(nodes[i], sizeof(nodes[i]), "node%d", r->tcp ? i : 0);
                peers[i] = (struct comm_peer){ .incarnation = 100 + (uint64_t)i, .endpoint = r->shared->endpoint[i], .node = nodes[i] };
        }
        c.node = nodes[r->rank];
        memset(c.key, (int)epoch, sizeof(c.key));
        return c;
}

int ranks_mesh(struct ranks *r, uint64_t epoch, struct comm_mesh **ret, struct error *e) {
        struct comm_peer peers[RANKS_MOST];
        struct comm_mesh_config c = ranks_config(r, epoch, peers);

        return comm_mesh_new(r->listener, r->abort, &c, ret, e);
}

struct comm *ranks_world(struct ranks *r, struct comm_mesh *m) {
        int ranks[RANKS_MOST];
        struct comm *c = NULL;
        struct error e = { 0 };

        for (int i = 0; i < r->n; i++)
                ranks[i] = i;
        RANK_OK(r, comm_new(m, ranks, r->n, 0, &c, &e), e);
        return c;
}
