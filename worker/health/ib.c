/* SPDX-License-Identifier: Apache-2.0 */
/*
 * InfiniBand and RoCE ports by sysfs (Documentation/ABI/stable/sysfs-class-infiniband): state, and counters by rate.
 *
 * A port that was never active since the worker began is none of ours (many hosts have unused ones); one that was and is not there any more, because its device is gone, is down.  Flaps are ridden out by NCCL's retries (docs/health.md), so a port that is down is a warning at first; when
 * it stays down for 4 minutes it is dead, which needs no second alert; down three times for 25 s or more within an hour is an alert.  Counters in the table: fatal on any increase, or warnings above a rate, three
 * of which within an hour are an alert too.
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "worker/health/check.h"

enum { PORTS_MAX = 64, DOWNS_MAX = 3, ALERTS_MAX = 3, SYMBOL_SLOTS = 60, GIDS_MAX = 16 };

/* Thresholds. */
#define DROP_NS (240 * NSEC_PER_SEC)
#define FLAP_NS (25 * NSEC_PER_SEC)
#define HOUR_NS (3600 * NSEC_PER_SEC)
#define MINUTE_NS (60 * NSEC_PER_SEC)
#define SYMBOLS_HOUR 120u
#define HOLD_NS (300 * NSEC_PER_SEC) /* what a counter said holds so long */

/* ------------------------------------------------------------------ ports */
struct port {
        char name[CHECK_SUBJECT]; /* "mlx5_0/1" */
        char path[160];
};

static size_t ports(const struct health_world *w, struct port *ret) {
        char devices[PORTS_MAX][64], numbers[16][64], path[160];
        size_t n = world_list(w, "/sys/class/infiniband", devices, PORTS_MAX), k = 0;

        for (size_t i = 0; i < n; i++) {
                size_t m;

                snprintf(path, sizeof(path), "/sys/class/infiniband/%s/ports", devices[i]);
                m = world_list(w, path, numbers, 16);
                for (size_t p = 0; p < m && k < PORTS_MAX; p++) {
                        if (strlen(devices[i]) + strlen(numbers[p]) + 2 > sizeof(ret[k].name))
                                continue;
                        snprintf(ret[k].name, sizeof(ret[k].name), "%.50s/%.10s", devices[i], numbers[p]);
                        snprintf(ret[k].path, sizeof(ret[k].path), "%.120s/%.10s", path, numbers[p]);
                        k++;
                }
        }
        return k;
}

static bool active(const struct health_world *w, const struct port *p, char *text, size_t size) {
        char path[200];

        snprintf(path, sizeof(path), "%s/state", p->path);
        if (world_read(w, path, text, size) < 0)
                snprintf(text, size, "gone");
        text[strcspn(text, "\n")] = 0;
        return strncmp(text, "4:", 2) == 0; /* "4: ACTIVE" */
}

/* One line of a file of the port; "": it is not to be had. */
static void attribute(const struct health_world *w, const struct port *p, const char *file, char *ret, size_t size) {
        char path[200];

        snprintf(path, sizeof(path), "%s/%s", p->path, file);
        if (world_read(w, path, ret, size) < 0)
                ret[0] = 0;
        ret[strcspn(ret, "\n")] = 0;
}

/* By which others reach it: on Ethernet the first of RoCE v2, else the first that is not zero. */
static void gid_of(const struct health_world *w, const struct port *p, char *ret, size_t size) {
        char file[32], text[64], type[32];
        struct in6_addr a;
        bool ethernet;

        ret[0] = 0;
        attribute(w, p, "link_layer", text, sizeof(text));
        ethernet = strcmp(text, "Ethernet") == 0;
        for (int i = 0; i < GIDS_MAX; i++) {
                snprintf(file, sizeof(file), "gids/%d", i);
                attribute(w, p, file, text, sizeof(text));
                if (!text[0])
                        return; /* the table's end */
                if (inet_pton(AF_INET6, text, &a) != 1 || IN6_IS_ADDR_UNSPECIFIED(&a) || !inet_ntop(AF_INET6, &a, text, sizeof(text)))
                        continue;
                snprintf(file, sizeof(file), "gid_attrs/types/%d", i);
                attribute(w, p, file, type, sizeof(type));
                if (!ret[0] || strcmp(type, "RoCE v2") == 0)
                        snprintf(ret, size, ", GID %d %s%s%s%s", i, text, type[0] ? " (" : "", type, type[0] ? ")" : "");
                if (!ethernet || strcmp(type, "RoCE v2") == 0)
                        return;
        }
}

struct port_state {
        struct {
                char name[CHECK_SUBJECT];
                bool was_active, down, here;
                uint64_t since;
                uint64_t downs[DOWNS_MAX]; /* when the last ones of FLAP_NS and more ended */
        } list[PORTS_MAX];
        size_t n;
};

static size_t port_slot(struct port_state *k, const char *name) {
        size_t i = 0;

        while (i < k->n && strcmp(k->list[i].name, name) != 0)
                i++;
        if (i == k->n && k->n < PORTS_MAX) {
                snprintf(k->list[i].name, sizeof(k->list[i].name), "%.63s", name);
                k->n++;
        }
        return i < k->n ? i : PORTS_MAX;
}

static void look_at_port(struct port_state *k, size_t i, bool up, const char *text, const char *what, uint64_t now, struct check_out *o) {
        double s = (double)(now - k->list[i].since) / 1e9;

        if (up && k->list[i].down && now - k->list[i].since >= FLAP_NS) {
                memmove(k->list[i].downs, k->list[i].downs + 1, (DOWNS_MAX - 1) * sizeof(k->list[i].downs[0]));
                k->list[i].downs[DOWNS_MAX - 1] = now;
        }
        if (up == k->list[i].down || !k->list[i].was_active)
                k->list[i].since = now;
        k->list[i].down = !up;
        k->list[i].was_active = k->list[i].was_active || up;
        if (!k->list[i].was_active)
                check_say(o, k->list[i].name, -1, HEALTH_ABSENT, "%s, and was not active since the worker began", text);
        else if (!up && now - k->list[i].since >= DROP_NS)
                check_say(o, k->list[i].name, -1, HEALTH_EVICT, "down (%s) for more than 4 minutes", text);
        else if (k->list[i].downs[0] && now - k->list[i].downs[0] < HOUR_NS)
                check_say(o, k->list[i].name, -1, HEALTH_DRAIN, "down three times for 25 s or more within an hour");
        else if (!up)
                check_say(o, k->list[i].name, -1, HEALTH_WARN, "down (%s)%s", text, s >= 25 ? " for more than 25 s" : "");
        else
                check_say(o, k->list[i].name, -1, HEALTH_OK, "%s%s", text, what);
}

void check_ib_port(struct health_world *w, void **state, struct check_out *o) {
        struct port_state *k = *state ? *state : calloc(1, sizeof(*k));
        static _Thread_local struct port list[PORTS_MAX];
        size_t n = ports(w, list);

        if (!k)
                return;
        *state = k;
        for (size_t i = 0; i < k->n; i++)
                k->list[i].here = false;
        for (size_t i = 0; i < n; i++) {
                char text[64], rate[64] = "", gid[112] = "", what[180] = "";
                size_t at = port_slot(k, list[i].name);
                bool up = active(w, &list[i], text, sizeof(text));

                if (up) {
                        attribute(w, &list[i], "rate", rate, sizeof(rate)); /* the kernel's active_speed times active_width */
                        gid_of(w, &list[i], gid, sizeof(gid));
                        snprintf(what, sizeof(what), "%s%s%s", rate[0] ? ", " : "", rate, gid);
                }
                if (at < PORTS_MAX) {
                        k->list[at].here = true;
                        look_at_port(k, at, up, text, what, w->mono_ns(), o);
                }
        }
        for (size_t i = 0; i < k->n; i++)
                if (!k->list[i].here && k->list[i].was_active) {
                        look_at_port(k, i, false, "its device is gone", "", w->mono_ns(), o);
                        n++;
                }
        if (n == 0)
                check_say(o, "", -1, HEALTH_ABSENT, "no InfiniBand or RoCE device");
}

/* ------------------------------------------------------------------ counters */
/* clang-format off */
static const struct counter {
        const char *file;
        bool fatal;       /* on any increase */
        double rate;      /* else: more than so many ... */
        uint64_t per_ns;  /* ... in that time is a warning */
} counters[] = {
        { "counters/link_downed", true, 0, 0 },
        { "counters/excessive_buffer_overrun_errors", true, 0, 0 },
        { "counters/local_link_integrity_errors", true, 0, 0 },
        { "hw_counters/rnr_nak_retry_err", true, 0, 0 },
        { "hw_counters/retry_rnr_exceeded_err", true, 0, 0 }, /* the same, of Soft-RoCE */
        { "counters/symbol_error", false, 10, NSEC_PER_SEC },
        { "counters/link_error_recovery", false, 5, MINUTE_NS },
        { "counters/port_rcv_errors", false, 10, NSEC_PER_SEC },
        { "hw_counters/local_ack_timeout_err", false, 1, NSEC_PER_SEC },
        { "counters/port_xmit_discards", false, 100, NSEC_PER_SEC },
};
/* clang-format on */
enum { N_COUNTERS = ARRAY_SIZE(counters), SYMBOL_ERROR = 5 };

struct counter_port {
        char name[CHECK_SUBJECT];
        bool known[N_COUNTERS];
        uint64_t value[N_COUNTERS], at[N_COUNTERS];
        uint64_t symbols[SYMBOL_SLOTS], slot_at[SYMBOL_SLOTS]; /* of each minute */
        uint64_t warned[ALERTS_MAX];
        enum health_verdict verdict;
        uint32_t blows; /* how often one rose that is fatal: each is an alert */
        uint64_t verdict_at;
        char why[128];
};

struct counters_state {
        struct counter_port list[PORTS_MAX];
        size_t n;
};

static void counter_says(struct counter_port *p, enum health_verdict v, uint64_t now, const char *why) {
        if (v < p->verdict)
                return;
        p->verdict = v;
        p->verdict_at = now;
        snprintf(p->why, sizeof(p->why), "%s", why);
}

static uint64_t symbols_of_hour(struct counter_port *p, uint64_t more, uint64_t now) {
        size_t slot = (size_t)(now / MINUTE_NS % SYMBOL_SLOTS);
        uint64_t sum = 0;

        if (now - p->slot_at[slot] >= MINUTE_NS) {
                p->symbols[slot] = 0;
                p->slot_at[slot] = now;
        }
        p->symbols[slot] += more;
        for (size_t i = 0; i < SYMBOL_SLOTS; i++)
                if (now - p->slot_at[i] < HOUR_NS)
                        sum += p->symbols[i];
        return sum;
}

static void warn(struct counter_port *p, uint64_t now, const char *why) {
        char text[128];

        if (p->verdict >= HEALTH_WARN && now - p->verdict_at < MINUTE_NS)
                return; /* one that goes on */
        memmove(p->warned, p->warned + 1, (ALERTS_MAX - 1) * sizeof(p->warned[0]));
        p->warned[ALERTS_MAX - 1] = now;
        snprintf(text, sizeof(text), "three warnings within an hour, the last: %.80s", why);
        if (p->warned[0] && now - p->warned[0] < HOUR_NS)
                counter_says(p, HEALTH_DRAIN, now, text);
        else
                counter_says(p, HEALTH_WARN, now, why);
}

static void look_at_counter(struct counter_port *p, size_t i, uint64_t value, uint64_t now) {
        uint64_t rose = p->known[i] && value >= p->value[i] ? value - p->value[i] : 0, ns = now - p->at[i];
        const char *name = strchr(counters[i].file, '/') + 1;
        char why[128];

        if (p->known[i] && rose && counters[i].fatal) {
                snprintf(why, sizeof(why), "%s rose by %" PRIu64 " to %" PRIu64, name, rose, value);
                counter_says(p, HEALTH_EVICT, now, why);
                p->blows++;
        }
        if (p->known[i] && !counters[i].fatal && ns) {
                double rate = (double)rose * (double)counters[i].per_ns / (double)ns;

                snprintf(why, sizeof(why), "%s: %.1f a %s, expected at most %.0f", name, rate, counters[i].per_ns == NSEC_PER_SEC ? "second" : "minute", counters[i].rate);
                if (rate > counters[i].rate)
                        warn(p, now, why);
        }
        if (i == SYMBOL_ERROR) {
                uint64_t hour = symbols_of_hour(p, rose, now);

                snprintf(why, sizeof(why), "%" PRIu64 " symbol errors within an hour, expected at most %u", hour, SYMBOLS_HOUR);
                if (hour > SYMBOLS_HOUR)
                        counter_says(p, HEALTH_EVICT, now, why);
        }
        p->known[i] = true;
        p->value[i] = value;
        p->at[i] = now;
}

static void look_at_counters(const struct health_world *w, struct counter_port *p, const struct port *port, struct check_out *o) {
        uint64_t now = w->mono_ns();
        size_t found = 0;

        if (p->verdict != HEALTH_OK && now - p->verdict_at >= HOLD_NS)
                p->verdict = HEALTH_OK;
        for (size_t i = 0; i < N_COUNTERS; i++) {
                char path[256];
                uint64_t value;

                snprintf(path, sizeof(path), "%s/%s", port->path, counters[i].file);
                if (world_read_u64(w, path, &value) < 0)
                        continue;
                found++;
                look_at_counter(p, i, value, now);
        }
        o->blow = p->blows;
        if (!found)
                check_say(o, p->name, -1, HEALTH_ABSENT, "no counters");
        else if (p->verdict == HEALTH_OK)
                check_say(o, p->name, -1, HEALTH_OK, "%zu counters", found);
        else
                check_say(o, p->name, -1, p->verdict, "%s", p->why);
        o->blow = 0;
}

void check_ib_counters(struct health_world *w, void **state, struct check_out *o) {
        struct counters_state *k = *state ? *state : calloc(1, sizeof(*k));
        static _Thread_local struct port list[PORTS_MAX];
        size_t n = ports(w, list);

        if (!k)
                return;
        *state = k;
        for (size_t i = 0; i < n; i++) {
                size_t at = 0;

                while (at < k->n && strcmp(k->list[at].name, list[i].name) != 0)
                        at++;
                if (at == PORTS_MAX)
                        continue;
                if (at == k->n) {
                        memcpy(k->list[at].name, list[i].name, sizeof(k->list[at].name));
                        k->n++;
                }
                look_at_counters(w, &k->list[at], &list[i], o);
        }
        if (n == 0)
                check_say(o, "", -1, HEALTH_ABSENT, "no InfiniBand or RoCE device");
}
