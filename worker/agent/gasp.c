/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A dying kernel looks nothing up: device, addresses and the next hop's are found while it is well, again every minute, since the next hop may be another machine then.
 */
#include "worker/agent/gasp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/net.h"
#include "driver/fp8guard_uapi.h"
#include "proto/gasp.h"
#include "worker/agent/agent_private.h"
#include "worker/agent/guard.h"

#define AGAIN_NS (60 * NSEC_PER_SEC)
#define RETRY_NS (10 * NSEC_PER_SEC)
#define TABLE_MAX (1u << 22)
#define RESOLVE_TRIES 10
#define RESOLVE_MS 100
#define ROUTE_UP 0x1u     /* linux/route.h */
#define ROUTE_REJECT 0x200u
#define ARP_COMPLETE 0x2u /* linux/if_arp.h */

struct last_gasp {
        struct agent *agent;
        struct loop_source *timer;
        struct sockaddr_in to;
        uint8_t key[GASP_KEY];
        bool wanted, set, stopped, running, again;
        char said[256]; /* last, of it */
};

struct gasp_task {
        struct last_gasp *of;
        struct sockaddr_in to;
        struct fp8guard_gasp arg;
        int result;
        struct error error;
};

/* ------------------------------------------------------------------ the kernel's tables */
static const char *next_line(const char *at) {
        const char *end = strchr(at, '\n');

        return end ? end + 1 : NULL;
}

int gasp_route(const char *table, uint32_t to, char ret_device[16], uint32_t *ret_hop) {
        unsigned best_bits = 0, best_metric = 0;
        bool found = false;

        for (const char *at = next_line(table); at && *at; at = next_line(at)) {
                unsigned to_net, gateway, flags, metric, mask, bits;
                char device[16];

                if (sscanf(at, "%15s %8x %8x %4x %*u %*u %9u %8x", device, &to_net, &gateway, &flags, &metric, &mask) != 6 || !(flags & ROUTE_UP) || (flags & ROUTE_REJECT) || (to & mask) != to_net)
                        continue;
                bits = (unsigned)__builtin_popcount(mask);
                if (found && (bits < best_bits || (bits == best_bits && metric >= best_metric)))
                        continue;
                found = true;
                best_bits = bits;
                best_metric = metric;
                memcpy(ret_device, device, sizeof(device));
                *ret_hop = gateway ? gateway : to;
        }
        return found ? 0 : -ENETUNREACH;
}

int gasp_neighbour(const char *table, uint32_t hop, const char *device, uint8_t ret_mac[6]) {
        for (const char *at = next_line(table); at && *at; at = next_line(at)) {
                char ip[16], name[16];
                unsigned flags, mac[6];
                struct in_addr who;

                if (sscanf(at, "%15s 0x%*x 0x%4x %2x:%2x:%2x:%2x:%2x:%2x %*s %15s", ip, &flags, &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5], name) != 9 || inet_pton(AF_INET, ip, &who) != 1)
                        continue;
                if (who.s_addr != hop || strcmp(name, device) != 0 || !(flags & ARP_COMPLETE))
                        continue;
                for (size_t i = 0; i < 6; i++)
                        ret_mac[i] = (uint8_t)mac[i];
                return 0;
        }
        return -ENOENT;
}

/* ------------------------------------------------------------------ in a thread */
static int read_table(const char *path, char **ret, struct error *e) {
        size_t len;

        return file_read(path, TABLE_MAX, ret, &len, e);
}

static int find_way(struct gasp_task *t, struct error *e) {
        _cleanup_close_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        _cleanup_free_ char *routes = NULL;
        struct sockaddr_in self = { 0 };
        socklen_t len = sizeof(self);
        uint32_t hop = 0;
        char text[INET_ADDRSTRLEN];
        struct in_addr who;
        int r;

        if (fd < 0 || connect(fd, (const struct sockaddr *)&t->to, sizeof(t->to)) < 0 || getsockname(fd, (struct sockaddr *)&self, &len) < 0)
                return error_errno(e, errno, "no way to the controller");
        r = read_table("/proc/net/route", &routes, e);
        if (r < 0)
                return r;
        if (gasp_route(routes, t->to.sin_addr.s_addr, t->arg.device, &hop) < 0)
                return error_set(e, -ENETUNREACH, "no route to the controller in /proc/net/route");
        t->arg.local_ip = self.sin_addr.s_addr;
        t->arg.remote_ip = t->to.sin_addr.s_addr;
        t->arg.local_port = t->arg.remote_port = t->to.sin_port;
        for (int i = 0; i < RESOLVE_TRIES; i++) {
                _cleanup_free_ char *neighbours = NULL;

                r = read_table("/proc/net/arp", &neighbours, e);
                if (r < 0 || gasp_neighbour(neighbours, hop, t->arg.device, t->arg.remote_mac) == 0)
                        return r;
                (void)send(fd, "", 0, 0); /* an empty datagram, so that the kernel asks for it */
                (void)poll(NULL, 0, RESOLVE_MS);
        }
        who.s_addr = hop;
        return error_set(e, -EHOSTUNREACH, "%s has no address on %s's network", inet_ntop(AF_INET, &who, text, sizeof(text)), t->arg.device);
}

static void work(void *arg) {
        struct gasp_task *t = arg;
        _cleanup_close_ int fd = guard_open();

        if (fd < 0) {
                t->result = error_errno(&t->error, -fd, FP8GUARD_DEVICE);
                return;
        }
        t->result = t->to.sin_port ? find_way(t, &t->error) : 0;
        if (t->result == 0 && ioctl(fd, FP8GUARD_GASP_SET, &t->arg) < 0)
                t->result = error_errno(&t->error, errno, FP8GUARD_DEVICE " takes no address by %s", t->arg.device[0] ? t->arg.device : "no device");
}

/* ------------------------------------------------------------------ in the loop */
static void begin(void *arg);

static void say(struct last_gasp *g, bool well, const char *text) {
        if (strcmp(g->said, text) == 0)
                return;
        snprintf(g->said, sizeof(g->said), "%s", text);
        if (well)
                log_info("last gasp: %s", text);
        else
                log_warning("last gasp: a kernel that dies cannot tell the controller: %s", text);
}

static void done(void *arg) {
        struct gasp_task *t = arg;
        struct last_gasp *g = t->of;
        char text[256];

        g->set = t->result == 0 && t->to.sin_port;
        if (t->result < 0)
                say(g, false, t->error.text);
        else if (g->set) {
                snprintf(text, sizeof(text), "a kernel that dies tells the controller at %s by %s", g->agent->config->panic_to, t->arg.device);
                say(g, true, text);
        }
        g->running = false;
        if (g->stopped)
                g->again = false;
        else if (g->again)
                begin(g);
        else if (g->wanted)
                loop_timer_set(g->timer, clock_mono_ns() + (t->result < 0 ? RETRY_NS : AGAIN_NS));
        OPENSSL_cleanse(&t->arg, sizeof(t->arg));
        free(t);
}

static void begin(void *arg) {
        struct last_gasp *g = arg;
        struct gasp_task *t;

        g->again = g->running; /* one at a time: the newest key is the last that is set */
        t = g->running ? NULL : calloc(1, sizeof(*t));
        if (!t)
                return;
        t->of = g;
        t->arg.size = sizeof(t->arg);
        if (g->wanted) {
                t->to = g->to;
                snprintf(t->arg.node, sizeof(t->arg.node), "%s", g->agent->config->name);
                snprintf(t->arg.boot_id, sizeof(t->arg.boot_id), "%.39s", g->agent->node.boot_id);
                memcpy(t->arg.key, g->key, sizeof(t->arg.key));
        }
        g->running = tasks_run(g->agent->tasks, work, done, t, &t->error) == 0;
        if (g->running)
                return;
        loop_timer_set(g->timer, clock_mono_ns() + RETRY_NS);
        free(t);
}

void gasp_welcome(struct agent *a, const Fp8ctl__V1__Welcome *w) {
        struct error e = { 0 };
        struct last_gasp *g = a->gasp;

        if (!a->config->panic_to)
                return;
        if (!g) {
                g = calloc(1, sizeof(*g));
                if (!g || net_ipv4(a->config->panic_to, &g->to, &e) < 0 || loop_add_timer(a->loop, 0, begin, g, &g->timer) < 0) {
                        free(g);
                        return;
                }
                g->agent = a;
                a->gasp = g;
        }
        g->wanted = w->panic_key.len == sizeof(g->key);
        if (g->wanted)
                memcpy(g->key, w->panic_key.data, sizeof(g->key));
        else
                say(g, false, "it does not listen (fp8d --panic-listen)");
        if (g->wanted || g->set)
                begin(g);
}

void gasp_stop(struct agent *a) {
        if (!a->gasp)
                return;
        a->gasp->stopped = true;
        a->gasp->timer = loop_remove(a->gasp->timer);
}

void gasp_free(struct agent *a) {
        if (a->gasp)
                OPENSSL_cleanse(a->gasp->key, sizeof(a->gasp->key));
        free(a->gasp);
        a->gasp = NULL;
}
