/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handler finds the mapping in a table that changes by atomic stores only, and puts zeros over the rest of it.  mmap is no function that POSIX lists as safe there; on
 * Linux it is one system call.  A mapping that finds no place in the table is as any other: its SIGBUS ends the process.
 */
#include "base/mapping.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAPPINGS_MAX 32768

static struct {
        _Atomic uintptr_t begin; /* 0: free; 1: being filled */
        _Atomic size_t size;
        atomic_bool cut;
} table[MAPPINGS_MAX];
static atomic_uint used, n_cut; /* used: places from here on were never taken */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static uintptr_t page;

static void on_bus(int signal, siginfo_t *info, void *context) {
        uintptr_t at = (uintptr_t)info->si_addr;
        unsigned n = atomic_load(&used);
        int saved = errno;

        (void)context;
        for (unsigned i = 0; i < n; i++) {
                uintptr_t begin = atomic_load(&table[i].begin), from = at & ~(page - 1);
                size_t size = atomic_load(&table[i].size);

                if (begin <= 1 || at < begin || at - begin >= ((size + page - 1) & ~(page - 1)))
                        continue;
                if (mmap((void *)from, begin + size - from, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
                        break;
                if (!atomic_exchange(&table[i].cut, true))
                        atomic_fetch_add(&n_cut, 1);
                errno = saved;
                return;
        }
        /* Not ours: the instruction is tried again and ends the process. */
        (void)sigaction(signal, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
        errno = saved;
}

static void install(void) {
        struct sigaction a = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_RESTART };

        page = (uintptr_t)sysconf(_SC_PAGESIZE);
        (void)sigemptyset(&a.sa_mask);
        (void)sigaction(SIGBUS, &a, NULL);
}

static void enter(uintptr_t begin, size_t size) {
        for (unsigned i = 0; i < MAPPINGS_MAX; i++) {
                uintptr_t none = 0;
                unsigned n = atomic_load(&used);

                if (!atomic_compare_exchange_strong(&table[i].begin, &none, 1))
                        continue;
                atomic_store(&table[i].size, size);
                atomic_store(&table[i].cut, false);
                atomic_store(&table[i].begin, begin);
                while (n < i + 1 && !atomic_compare_exchange_weak(&used, &n, i + 1))
                        ;
                return;
        }
}

/* Its place in the table; MAPPINGS_MAX: none. */
static unsigned find(const void *data) {
        unsigned n = atomic_load(&used);

        for (unsigned i = 0; i < n; i++)
                if (atomic_load(&table[i].begin) == (uintptr_t)data)
                        return i;
        return MAPPINGS_MAX;
}

int mapping_open(int fd, size_t size, const char *name, void **ret, struct error *e) {
        sigset_t bus;
        void *p;

        (void)pthread_once(&once, install);
        /* Threads here begin with all signals blocked; a fault that is blocked ends the process. */
        (void)sigemptyset(&bus);
        (void)sigaddset(&bus, SIGBUS);
        (void)pthread_sigmask(SIG_UNBLOCK, &bus, NULL);
        p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
                return error_errno(e, errno, "cannot map '%s'", name);
        enter((uintptr_t)p, size);
        *ret = p;
        return 0;
}

void mapping_close(const void *data, size_t size) {
        unsigned i;

        if (!data)
                return;
        i = find(data);
        if (i < MAPPINGS_MAX) {
                if (atomic_load(&table[i].cut))
                        atomic_fetch_sub(&n_cut, 1);
                atomic_store(&table[i].begin, 0);
        }
        (void)munmap((void *)(uintptr_t)data, size);
}

int mapping_check(const void *data, const char *name, struct error *e) {
        unsigned i;

        if (!data || atomic_load(&n_cut) == 0)
                return 0;
        i = find(data);
        return i < MAPPINGS_MAX && atomic_load(&table[i].cut) ? error_set(e, -EIO, "'%s' became shorter while it was read", name) : 0;
}
