// SPDX-License-Identifier: Apache-2.0
/* What /dev/fp8guard promises, tried from outside; the last lines of main() name its parts. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "driver/fp8guard_uapi.h"

#define CHECK(x) ((x) ? (void)0 : (printf("FAILED %s:%d: %s (%s)\n", __FILE__, __LINE__, #x, strerror(errno)), exit(1)))
#define MS 1000000ULL
#define LONG (20000 * MS) /* for what must come at once on a machine that may be busy */

static uint64_t now_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static void sleep_ns(uint64_t ns) {
        struct timespec t = { .tv_sec = (time_t)(ns / 1000000000ULL), .tv_nsec = (long)(ns % 1000000000ULL) };
        nanosleep(&t, NULL);
}

static int device(void) {
        int fd = open(FP8GUARD_DEVICE, O_RDWR | O_CLOEXEC);
        CHECK(fd >= 0);
        return fd;
}

/* A process that sleeps in a process group of its own. */
static pid_t sleeper(void) {
        pid_t p = fork();
        CHECK(p >= 0);
        if (p == 0) {
                setpgid(0, 0);
                for (;;)
                        pause();
        }
        setpgid(p, p);
        return p;
}

static struct fp8guard_lease create(int fd, uint64_t ttl) {
        struct fp8guard_lease l = { .size = sizeof(l), .ttl_ns = ttl };
        CHECK(ioctl(fd, FP8GUARD_LEASE_CREATE, &l) == 0);
        return l;
}

static int add(int fd, const struct fp8guard_lease *l, uint32_t kind, int target) {
        struct fp8guard_group g = { .size = sizeof(g), .id = l->id, .generation = l->generation, .kind = kind, .target = target };
        return ioctl(fd, FP8GUARD_LEASE_ADD, &g);
}

static struct fp8guard_stat stat_of(int fd, const struct fp8guard_lease *l) {
        struct fp8guard_stat s = { .size = sizeof(s), .id = l->id, .generation = l->generation };
        CHECK(ioctl(fd, FP8GUARD_LEASE_STAT, &s) == 0);
        return s;
}

/* True when the child was killed within the time; it is reaped then. */
static bool killed(pid_t p, uint64_t within) {
        int status;
        for (uint64_t end = now_ns() + within; now_ns() < end; sleep_ns(MS / 5))
                if (waitpid(p, &status, WNOHANG) == p)
                        return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        return false;
}

static void finish(pid_t p) {
        kill(p, SIGKILL);
        waitpid(p, NULL, 0);
}

static void expiry_renewal_drop(void) {
        int fd = device();
        pid_t p = sleeper();
        struct fp8guard_lease l = create(fd, 1200 * MS), old = l;
        CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, p) == 0);
        for (int i = 0; i < 6; i++) {
                sleep_ns(250 * MS);
                l.ttl_ns = 1200 * MS;
                CHECK(ioctl(fd, FP8GUARD_LEASE_RENEW, &l) == 0);
        }
        CHECK(!killed(p, MS));
        CHECK(stat_of(fd, &l).renewals == 6);
        CHECK(killed(p, LONG));
        CHECK(stat_of(fd, &l).state == FP8GUARD_LEASE_LAPSED);
        CHECK(ioctl(fd, FP8GUARD_LEASE_RENEW, &l) < 0 && errno == ETIME);
        CHECK(ioctl(fd, FP8GUARD_LEASE_DROP, &l) == 0);
        /* The slot's next life: a renewal with the old generation does nothing. */
        p = sleeper();
        l = create(fd, 1000 * MS);
        CHECK(l.id == old.id && l.generation != old.generation);
        CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, p) == 0);
        old.ttl_ns = 3600000 * MS;
        CHECK(ioctl(fd, FP8GUARD_LEASE_RENEW, &old) < 0 && errno == ESTALE);
        CHECK(stat_of(fd, &l).stale == 1);
        CHECK(killed(p, LONG));
        CHECK(ioctl(fd, FP8GUARD_LEASE_DROP, &l) == 0);
        /* Dropped: nobody dies. */
        p = sleeper();
        l = create(fd, 800 * MS);
        CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, p) == 0);
        CHECK(ioctl(fd, FP8GUARD_LEASE_DROP, &l) == 0);
        CHECK(!killed(p, 900 * MS));
        close(fd);
        CHECK(!killed(p, 50 * MS));
        finish(p);
}

static void refusals(void) {
        int fd = device();
        struct fp8guard_lease l = create(fd, LONG), bad = { .size = sizeof(bad), .ttl_ns = 1 };
        CHECK(ioctl(fd, FP8GUARD_LEASE_CREATE, &bad) < 0 && errno == EINVAL);
        bad.size = 4;
        CHECK(ioctl(fd, FP8GUARD_LEASE_CREATE, &bad) < 0 && errno == EINVAL);
        CHECK(add(fd, &l, 7, 1) < 0 && errno == EINVAL);
        CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, 1) < 0 && (errno == EPERM || errno == ESRCH));
        CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, -1) < 0 && errno == EINVAL);
        CHECK(add(fd, &l, FP8GUARD_GROUP_CGROUP, fd) < 0);
        int root = open("/sys/fs/cgroup", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        CHECK(add(fd, &l, FP8GUARD_GROUP_CGROUP, root) < 0 && errno == EPERM);
        close(root);
        pid_t p = fork();
        CHECK(p >= 0);
        if (p == 0) {
                struct fp8guard_lease mine = { .size = sizeof(mine), .ttl_ns = 1000 * MS };
                CHECK(setuid(65534) == 0);
                _exit(ioctl(fd, FP8GUARD_LEASE_CREATE, &mine) < 0 && errno == EPERM ? 0 : 1);
        }
        int status;
        CHECK(waitpid(p, &status, 0) == p && status == 0);
        CHECK(ioctl(fd, FP8GUARD_LEASE_DROP, &l) == 0);
        close(fd);
}

/* A holder that closes, dies (its child has inherited the file), or is stopped. */
static void holders(void) {
        for (int how = 0; how < 3; how++) {
                pid_t p = sleeper(), heir = -1;
                int link[2];
                CHECK(pipe(link) == 0);
                pid_t holder = fork();
                CHECK(holder >= 0);
                if (holder == 0) {
                        int fd = device();
                        struct fp8guard_lease l = create(fd, how == 2 ? 1000 * MS : 60000 * MS);
                        CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, p) == 0);
                        heir = how == 1 ? sleeper() : -1;
                        CHECK(write(link[1], &heir, sizeof(heir)) == sizeof(heir));
                        if (how == 0)
                                close(fd);
                        if (how == 2)
                                raise(SIGSTOP);
                        for (;;)
                                pause();
                }
                CHECK(read(link[0], &heir, sizeof(heir)) == sizeof(heir));
                if (how == 1) {
                        CHECK(!killed(p, 30 * MS));
                        kill(holder, SIGKILL);
                }
                CHECK(killed(p, LONG));
                finish(holder);
                if (heir > 0)
                        kill(heir, SIGKILL);
                close(link[0]);
                close(link[1]);
        }
}

static int by_value(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
        return (x > y) - (x < y);
}

/* All armed at once, deadlines 1 ms apart; each lateness is the kernel's own from deadline to kill. */
static void many(int n) {
        enum { MANY_MAX = 4000 };
        static struct fp8guard_lease l[MANY_MAX];
        static uint64_t late[MANY_MAX];
        static pid_t p[MANY_MAX];
        CHECK(n > 0 && n <= MANY_MAX);
        int fd = device();
        for (int i = 0; i < n; i++)
                p[i] = sleeper();
        for (int i = 0; i < n; i++) {
                l[i] = create(fd, 3 * LONG);
                CHECK(add(fd, &l[i], FP8GUARD_GROUP_PGRP, p[i]) == 0);
        }
        struct fp8guard_info info = { .size = sizeof(info) };
        CHECK(ioctl(fd, FP8GUARD_INFO, &info) == 0 && info.leases == (uint32_t)n);
        for (int i = 0; i < n; i++) {
                l[i].ttl_ns = (1000 + (uint64_t)i) * MS;
                CHECK(ioctl(fd, FP8GUARD_LEASE_RENEW, &l[i]) == 0);
        }
        for (int i = 0; i < n; i++)
                CHECK(killed(p[i], LONG));
        for (int i = 0; i < n; i++) {
                struct fp8guard_stat s = stat_of(fd, &l[i]);
                CHECK(s.state == FP8GUARD_LEASE_LAPSED && s.lapsed_ns >= s.deadline_ns);
                late[i] = s.lapsed_ns - s.deadline_ns;
        }
        qsort(late, (size_t)n, sizeof(late[0]), by_value);
        printf("FIGURE: %d leases, deadline to kill: p50 %.3f ms, p90 %.3f, p99 %.3f, max %.3f\n", n, (double)late[n / 2] / 1e6,
                (double)late[n * 9 / 10] / 1e6, (double)late[n * 99 / 100] / 1e6, (double)late[n - 1] / 1e6);
        close(fd);
}

static void enter(const char *dir, pid_t p) {
        char path[512], text[32];
        int n = snprintf(text, sizeof(text), "%d", p);
        snprintf(path, sizeof(path), "%s/cgroup.procs", dir);
        int f = open(path, O_WRONLY | O_CLOEXEC);
        CHECK(f >= 0 && write(f, text, (size_t)n) == n);
        close(f);
}

/* Eight processes, half of them in a cgroup below. */
static void cgroup(const char *dir) {
        char below[512];
        int fd = device(), group = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        pid_t p[8];
        CHECK(group >= 0);
        snprintf(below, sizeof(below), "%s/below", dir);
        CHECK(mkdir(below, 0755) == 0);
        for (int i = 0; i < 8; i++) {
                p[i] = sleeper();
                enter(i % 2 ? below : dir, p[i]);
        }
        struct fp8guard_lease l = create(fd, 1000 * MS);
        CHECK(add(fd, &l, FP8GUARD_GROUP_CGROUP, group) == 0);
        for (int i = 0; i < 8; i++)
                CHECK(killed(p[i], LONG));
        for (uint64_t end = now_ns() + LONG; !stat_of(fd, &l).emptied_ns && now_ns() < end;)
                sleep_ns(MS);
        struct fp8guard_stat s = stat_of(fd, &l);
        CHECK(s.signals >= 8 && s.emptied_ns >= s.lapsed_ns);
        printf("FIGURE: a cgroup of 8 processes empty %.3f ms after the deadline\n", (double)(s.emptied_ns - s.deadline_ns) / 1e6);
        close(group);
        close(fd);
}

/* A rank that starts a process in a session of its own, and that one another: the group's lease takes the rank alone, the cgroup's takes all. */
static void escape(const char *dir) {
        for (int with = 0; with < 2; with++) {
                int link[2], fd = device(), group = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                CHECK(group >= 0 && pipe(link) == 0);
                pid_t rank = fork(), fled[2];
                CHECK(rank >= 0);
                if (rank == 0) {
                        setpgid(0, 0);
                        enter(dir, getpid());
                        for (int depth = 0; depth < 2; depth++) {
                                pid_t p = fork();
                                CHECK(p >= 0);
                                if (p > 0)
                                        for (;;)
                                                pause();
                                CHECK(setsid() == getpid() && write(link[1], &(pid_t){ getpid() }, sizeof(pid_t)) == sizeof(pid_t));
                        }
                        for (;;)
                                pause();
                }
                for (int i = 0; i < 2; i++)
                        CHECK(read(link[0], &fled[i], sizeof(pid_t)) == sizeof(pid_t));
                struct fp8guard_lease l = create(fd, 1000 * MS);
                CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, rank) == 0);
                CHECK(!with || add(fd, &l, FP8GUARD_GROUP_CGROUP, group) == 0);
                CHECK(killed(rank, LONG));
                for (uint64_t end = now_ns() + LONG; with && !stat_of(fd, &l).emptied_ns && now_ns() < end;)
                        sleep_ns(MS);
                CHECK(!with || stat_of(fd, &l).signals >= 2);
                for (int i = 0; i < 2; i++) { /* nobody's children now: the guest's first process reaps them, or nobody does */
                        char path[64], state = 'X';
                        snprintf(path, sizeof(path), "/proc/%d/stat", fled[i]);
                        FILE *f = fopen(path, "re");
                        if (f && fscanf(f, "%*d %*s %c", &state) != 1)
                                state = 'X';
                        if (f)
                                fclose(f);
                        CHECK((state == 'X' || state == 'Z') == (with == 1));
                        kill(fled[i], SIGKILL);
                }
                close(link[0]);
                close(link[1]);
                close(group);
                close(fd);
        }
}

/* A reader that does not read while the ring goes round: first the count of what it missed, then all that is left, in order. */
static void overrun(void) {
        enum { RING = 1024, MORE = 76 };
        static struct fp8guard_event e[RING + MORE];
        int reader = device(), holder = device();
        struct pollfd pfd = { .fd = reader, .events = POLLIN };
        while (poll(&pfd, 1, 0) > 0) /* what was before */
                CHECK(read(reader, e, sizeof(e)) > 0);
        for (int i = 0; i < RING + MORE; i++)
                create(holder, 60000 * MS);
        close(holder); /* an event each */
        ssize_t n = read(reader, e, sizeof(e)) / (ssize_t)sizeof(e[0]);
        CHECK(n >= RING + 1 && e[0].type == FP8GUARD_EVENT_LOST && e[0].arg[0] >= MORE && e[0].arg[0] < MORE + 16);
        for (ssize_t i = 2; i < n; i++)
                CHECK(e[i].sequence == e[i - 1].sequence + 1);
        printf("FIGURE: %d events at once for a reader that slept: %llu told as lost, %zd read in order\n", RING + MORE, (unsigned long long)e[0].arg[0], n - 1);
        close(reader);
}

/* Until it is killed: readers, and holders that arm and drop leases over groups of processes, which die or do not. */
static void load(const char *dir) {
        for (int i = 0; i < 4; i++)
                if (fork() == 0) {
                        char mine[512];
                        snprintf(mine, sizeof(mine), "%s/%d", dir, i);
                        CHECK(mkdir(mine, 0755) == 0 || errno == EEXIST);
                        int fd = device(), group = open(mine, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                        CHECK(group >= 0);
                        for (;;) {
                                static struct fp8guard_event e[64];
                                pid_t p = i < 2 ? -1 : sleeper();
                                if (i < 2) {
                                        CHECK(read(fd, e, sizeof(e)) > 0);
                                        continue;
                                }
                                enter(mine, p);
                                struct fp8guard_lease l = create(fd, 20 * MS);
                                CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, p) == 0 || errno == ETIME);
                                CHECK(add(fd, &l, FP8GUARD_GROUP_CGROUP, group) == 0 || errno == ETIME);
                                sleep_ns((i == 2 ? 5 : 25) * MS);
                                finish(p);
                                CHECK(ioctl(fd, FP8GUARD_LEASE_DROP, &l) == 0);
                        }
                }
        for (;;)
                pause();
}

static void events(double seconds) {
        struct fp8guard_event e[8];
        int fd = device();
        struct pollfd pfd = { .fd = fd, .events = POLLIN };
        uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
        while (now_ns() < end) {
                if (poll(&pfd, 1, 50) <= 0)
                        continue;
                ssize_t n = read(fd, e, sizeof(e));
                CHECK(n > 0 && n % (ssize_t)sizeof(e[0]) == 0);
                for (size_t i = 0; i < (size_t)n / sizeof(e[0]); i++)
                        printf("event %u flags %u seq %llu at %llu arg %llu %llu %llu %llu text %s\n", e[i].type, e[i].flags, (unsigned long long)e[i].sequence, (unsigned long long)e[i].time_ns,
                                (unsigned long long)e[i].arg[0], (unsigned long long)e[i].arg[1], (unsigned long long)e[i].arg[2],
                                (unsigned long long)e[i].arg[3], e[i].text);
        }
        close(fd);
}

/* DEVICE LOCAL REMOTE PORT MAC-of-the-next-hop */
static void gasp(char **a) {
        struct fp8guard_gasp g = { .size = sizeof(g), .local_port = htons(6666), .remote_port = htons((uint16_t)atoi(a[3])) };
        snprintf(g.device, sizeof(g.device), "%s", a[0]);
        CHECK(inet_pton(AF_INET, a[1], &g.local_ip) == 1 && inet_pton(AF_INET, a[2], &g.remote_ip) == 1);
        CHECK(sscanf(a[4], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &g.remote_mac[0], &g.remote_mac[1], &g.remote_mac[2], &g.remote_mac[3], &g.remote_mac[4],
                      &g.remote_mac[5]) == 6);
        strcpy(g.node, "node-7");
        strcpy(g.boot_id, "a-boot");
        memset(g.key, 0x42, sizeof(g.key));
        int fd = device();
        CHECK(ioctl(fd, FP8GUARD_GASP_SET, &g) == 0);
        close(fd);
}

int main(int argc, char **argv) {
        setbuf(stdout, NULL);
        if (argc == 4 && !strcmp(argv[1], "leases")) {
                expiry_renewal_drop();
                refusals();
                holders();
                cgroup(argv[2]);
                escape(argv[2]);
                overrun();
                many(atoi(argv[3]));
        } else if (argc == 3 && !strcmp(argv[1], "load")) {
                load(argv[2]);
        } else if (argc == 3 && !strcmp(argv[1], "events")) {
                events(atof(argv[2]));
        } else if (argc == 7 && !strcmp(argv[1], "gasp")) {
                gasp(argv + 2);
        } else {
                fprintf(stderr, "usage: guard leases CGROUP COUNT | load CGROUP | events SECONDS | gasp DEVICE LOCAL REMOTE PORT MAC\n");
                return 2;
        }
        return 0;
}
