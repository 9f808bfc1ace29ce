/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "worker/comm/comm_private.h"

int comm_abort_new(struct comm_abort **ret, struct error *e) {
        struct comm_abort *a = calloc(1, sizeof(*a));

        if (!a)
                return error_set(e, -ENOMEM, "abort handle: out of memory");
        a->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (a->fd < 0) {
                int r = error_errno(e, errno, "abort handle: eventfd");

                free(a);
                return r;
        }
        *ret = a;
        return 0;
}

struct comm_abort *comm_abort_free(struct comm_abort *a) {
        if (!a)
                return NULL;
        close(a->fd);
        free(a);
        return NULL;
}

void comm_abort_raise(struct comm_abort *a) {
        uint64_t one = 1;

        atomic_store(&a->raised, 1);
        /* The only way for this to fail is a counter at its maximum: readable all the same. */
        while (write(a->fd, &one, sizeof(one)) < 0 && errno == EINTR)
                ;
}

/* The flag first: a raise that comes between leaves the flag, one that is half way leaves the event, and either is an abort to whoever looks. */
void comm_abort_reset(struct comm_abort *a) {
        uint64_t count;

        atomic_store(&a->raised, 0);
        while (read(a->fd, &count, sizeof(count)) < 0 && errno == EINTR)
                ;
}
