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
        struct fp8guard_lease l = create(fd, 100 * MS), old = l;
        CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, p) == 0);
        for (int i = 0; i < 6; i++) {
                sleep_ns(40 * MS);
                l.ttl_ns = 100 * MS;
                CHECK(ioctl(fd, FP8GUARD_LEASE_RENEW, &l) == 0);
        }
        CHECK(!killed(p, MS));
        CHECK(stat_of(fd, &l).renewals == 6);
        CHECK(killed(p, 200 * MS));
        CHECK(stat_of(fd, &l).state == FP8GUARD_LEASE_LAPSED);
        CHECK(ioctl(fd, FP8GUARD_LEASE_RENEW, &l) < 0 && errno == ETIME);
        CHECK(ioctl(fd, FP8GUARD_LEASE_DROP, &l) == 0);
        /* The slot's next life: a renewal with the old generation does nothing. */
        p = sleeper();
        l = create(fd, 100 * MS);
        CHECK(l.id == old.id && l.generation != old.generation);
        CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, p) == 0);
        old.ttl_ns = 3600000 * MS;
        CHECK(ioctl(fd, FP8GUARD_LEASE_RENEW, &old) < 0 && errno == ESTALE);
        CHECK(stat_of(fd, &l).stale == 1);
        CHECK(killed(p, 300 * MS));
        CHECK(ioctl(fd, FP8GUARD_LEASE_DROP, &l) == 0);
        /* Dropped: nobody dies. */
        p = sleeper();
        l = create(fd, 50 * MS);
        CHECK(add(fd, &l, FP8GUARD_GROUP_PGRP, p) == 0);
        CHECK(ioctl(fd, FP8GUARD_LEASE_DROP, &l) == 0);
        CHECK(!killed(p, 150 * MS));
        close(fd);
        CHECK(!killed(p, 50 * MS));
        finish(p);
}

static void refusals(void) {
        int fd = device();
        struct fp8guard_lease l = create(fd, 1000 * MS), bad = { .size = sizeof(bad), .ttl_ns = 1 };
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
                        struct fp8guard_lease l = create(fd, how == 2 ? 200 * MS : 60000 * MS);
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
                CHECK(killed(p, 500 * MS));
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
static void thousand(void) {
        enum { N = 1000 };
        static struct fp8guard_lease l[N];
        static uint64_t late[N];
        static pid_t p[N];
        int fd = device();
        for (int i = 0; i < N; i++)
                p[i] = sleeper();
        for (int i = 0; i < N; i++) {
                l[i] = create(fd, (1500 + (uint64_t)i) * MS);
                CHECK(add(fd, &l[i], FP8GUARD_GROUP_PGRP, p[i]) == 0);
        }
        struct fp8guard_info info = { .size = sizeof(info) };
        CHECK(ioctl(fd, FP8GUARD_INFO, &info) == 0 && info.leases == N);
        for (int i = 0; i < N; i++)
                CHECK(killed(p[i], 5000 * MS));
        for (int i = 0; i < N; i++) {
                struct fp8guard_stat s = stat_of(fd, &l[i]);
                CHECK(s.state == FP8GUARD_LEASE_LAPSED && s.lapsed_ns >= s.deadline_ns);
                late[i] = s.lapsed_ns - s.deadline_ns;
        }
        qsort(late, N, sizeof(late[0]), by_value);
        printf("FIGURE: 1000 leases, deadline to kill: p50 %.3f ms, p90 %.3f, p99 %.3f, max %.3f\n", (double)late[N / 2] / 1e6,
                (double)late[N * 9 / 10] / 1e6, (double)late[N * 99 / 100] / 1e6, (double)late[N - 1] / 1e6);
        close(fd);
}

/* A process that called setsid() has left its group; its cgroup has it still, below in another cgroup too. */
static void cgroup(const char *dir) {
        char path[512], text[32];
        int fd = device(), group = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        pid_t p[8];
        CHECK(group >= 0);
        snprintf(path, sizeof(path), "%s/below", dir);
        CHECK(mkdir(path, 0755) == 0);
        for (int i = 0; i < 8; i++) {
                p[i] = sleeper();
                snprintf(path, sizeof(path), "%s%s/cgroup.procs", dir, i % 2 ? "/below" : "");
                snprintf(text, sizeof(text), "%d", p[i]);
                int f = open(path, O_WRONLY | O_CLOEXEC);
                CHECK(f >= 0 && write(f, text, strlen(text)) > 0);
                close(f);
        }
        struct fp8guard_lease l = create(fd, 100 * MS);
        CHECK(add(fd, &l, FP8GUARD_GROUP_CGROUP, group) == 0);
        for (int i = 0; i < 8; i++)
                CHECK(killed(p[i], 500 * MS));
        sleep_ns(150 * MS);
        struct fp8guard_stat s = stat_of(fd, &l);
        CHECK(s.signals >= 8 && s.emptied_ns >= s.lapsed_ns);
        printf("FIGURE: a cgroup of 8 processes empty %.3f ms after the deadline\n", (double)(s.emptied_ns - s.deadline_ns) / 1e6);
        close(group);
        close(fd);
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
        if (argc == 3 && !strcmp(argv[1], "leases")) {
                expiry_renewal_drop();
                refusals();
                holders();
                cgroup(argv[2]);
                thousand();
        } else if (argc == 3 && !strcmp(argv[1], "events")) {
                events(atof(argv[2]));
        } else if (argc == 7 && !strcmp(argv[1], "gasp")) {
                gasp(argv + 2);
        } else {
                fprintf(stderr, "usage: guard leases CGROUP | events SECONDS | gasp DEVICE LOCAL REMOTE PORT MAC\n");
                return 2;
        }
        return 0;
}
