/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Collectives between forked ranks of this machine (AF_UNIX), beside torch.distributed's gloo measured in the same run when /usr/bin/python3 has it.
 * A figure is the median over batches of calls made back to back; "value" and "peer" are milliseconds a call, GB/s is the buffer's size over it.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/opt.h"
#include "bench/report.h"
#include "tests/comm/ranks.h"

#define BATCHES 5
#define ROWS_MOST 64

static const char *const op_names[] = { "all_reduce", "reduce_scatter", "all_gather" };

struct row {
        char name[64];
        size_t bytes;
        double ms, peer_ms; /* 0: no peer */
};

struct bench {
        int64_t sizes[3];
        struct row rows[ROWS_MOST];
        int n_rows;
};

static int one_call(struct comm *c, int op, uint8_t *a, uint8_t *b, size_t bytes, struct error *e) {
        size_t part = bytes / (size_t)comm_size(c);

        if (op == 0)
                return comm_all_reduce(c, a, bytes / sizeof(float), DT_F32, COMM_SUM, NULL, e);
        if (op == 1)
                return comm_reduce_scatter(c, a, b, part / sizeof(float), DT_F32, COMM_SUM, NULL, e);
        return comm_all_gather(c, a, b, part, NULL, e);
}

static int compare_doubles(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return x < y ? -1 : x > y;
}

/* value[i]: ms of row i, as a double's bits. */
static void measure(struct ranks *r, int rank) {
        const struct bench *bench = r->arg;
        struct comm_mesh *m = NULL;
        struct error e = { 0 };
        struct comm *c;
        int at = 0;

        RANK_OK(r, ranks_mesh(r, 1, &m, &e), e);
        c = ranks_world(r, m);
        for (int op = 0; op < 3; op++)
                for (size_t k = 0; k < ARRAY_SIZE(bench->sizes); k++) {
                        size_t bytes = (size_t)bench->sizes[k];
                        uint8_t *a = calloc(1, bytes), *b = calloc(1, bytes);
                        int calls = bytes >= 8u << 20 ? 2 : bytes >= 65536 ? 40 : 1000;
                        double ms[BATCHES];
                        uint64_t bits;

                        RANK_CHECK(r, a && b);
                        RANK_OK(r, one_call(c, op, a, b, bytes, &e), e);
                        for (int batch = 0; batch < BATCHES; batch++) {
                                RANK_OK(r, comm_barrier(c, &e), e);
                                uint64_t start = clock_mono_ns();
                                for (int i = 0; i < calls; i++)
                                        RANK_OK(r, one_call(c, op, a, b, bytes, &e), e);
                                RANK_OK(r, comm_barrier(c, &e), e);
                                ms[batch] = (double)(clock_mono_ns() - start) / 1e6 / calls;
                        }
                        qsort(ms, BATCHES, sizeof(ms[0]), compare_doubles);
                        memcpy(&bits, &ms[BATCHES / 2], sizeof(bits));
                        if (rank == 0)
                                atomic_store(&r->shared->value[at], bits);
                        at++;
                        free(a);
                        free(b);
                }
        c = comm_free(c);
        m = comm_mesh_free(m);
        (void)pthread_barrier_wait(&r->shared->met);
}

static int measure_here(struct bench *b, int n) {
        struct ranks r = { .n = n, .fn = measure, .arg = b };
        struct ranks_shared *shared;

        ranks_start(&r);
        shared = r.shared;
        /* The figures lie in memory that ranks_wait unmaps: read once the children are done, before they are reaped. */
        for (int i = 0; i < n; i++) {
                siginfo_t info;

                (void)waitid(P_PID, (id_t)r.pids[i], &info, WEXITED | WNOWAIT);
        }
        for (int i = 0; i < 9; i++) {
                struct row *row = &b->rows[b->n_rows + i];
                uint64_t bits = atomic_load(&shared->value[i]);

                memcpy(&row->ms, &bits, sizeof(bits));
                row->bytes = (size_t)b->sizes[i % 3];
                (void)snprintf(row->name, sizeof(row->name), "%s_%d_ranks_%zu_ms", op_names[i / 3], n, row->bytes);
        }
        return ranks_wait(&r, -1);
}

/* bench/peers/gloo.py prints one "ms" a line in the same order. */
static void measure_peer(struct bench *b, int n, const char *script) {
        _cleanup_free_ char *command = NULL;
        FILE *f;

        if (access(script, R_OK) < 0 || asprintf(&command, "/usr/bin/python3 '%s' %d %lld %lld %lld 2>/dev/null", script, n, (long long)b->sizes[0],
                                                 (long long)b->sizes[1], (long long)b->sizes[2]) < 0)
                return;
        f = popen(command, "r"); // NOLINT(cert-env33-c): a fixed program of this repository
        if (!f)
                return;
        for (int i = 0; i < 9; i++)
                if (fscanf(f, "%lf", &b->rows[b->n_rows + i].peer_ms) != 1) // NOLINT(cert-err34-c): a figure for a table
                        break;
        (void)pclose(f);
}

static void print_table(const struct bench *b) {
        (void)printf("%-40s %10s %8s %10s %7s\n", "", "ms", "GB/s", "gloo ms", "ratio");
        for (int i = 0; i < b->n_rows; i++) {
                const struct row *r = &b->rows[i];

                (void)printf("%-40s %10.3f %8.3f ", r->name, r->ms, (double)r->bytes / r->ms / 1e6);
                if (r->peer_ms > 0)
                        (void)printf("%10.3f %7.2f\n", r->peer_ms, r->ms / r->peer_ms);
                else
                        (void)printf("%10s %7s\n", "-", "-");
        }
}

static int print_json(const struct bench *b) {
        json_t *rows = json_array();

        for (int i = 0; i < b->n_rows; i++)
                report_add(rows, b->rows[i].name, b->rows[i].ms, "ms", b->rows[i].peer_ms);
        return report_print(rows, 6);
}

int main(int argc, char **argv) {
        static const char *const outputs[] = { "table", "json", NULL };
        struct bench b = { .sizes = { 1 << 10, 1 << 20, 64 << 20 } };
        const char *output = "table", *peer = BENCH_SOURCE_DIR "/peers/gloo.py";
        char *args[16];
        struct error e = { 0 };
        bool help = false;
        int n = 0;
        const struct opt table[] = {
                { .name = "output", .letter = 'o', .type = OPT_CHOICE, .value = "FORM", .help = "table or json", .target = &output, .choices = outputs },
                { .name = "peer", .type = OPT_STRING, .value = "FILE", .help = "program that measures gloo", .target = &peer },
                { .name = "help", .letter = 'h', .type = OPT_FLAG, .help = "this text", .target = &help },
        };

        if (argc > (int)ARRAY_SIZE(args) || opt_parse(table, ARRAY_SIZE(table), argc, argv, args, &n, &e) < 0 || n > 0) {
                (void)fprintf(stderr, "collectives: %s\n", e.code ? e.text : "found arguments, expected options only");
                return 2;
        }
        if (help) {
                opt_print_help(table, ARRAY_SIZE(table));
                return 0;
        }
        for (int ranks = 4; ranks <= 8; ranks += 4) {
                if (measure_here(&b, ranks) != 0)
                        return 1;
                measure_peer(&b, ranks, peer);
                b.n_rows += 9;
        }
        if (strcmp(output, "json") == 0)
                return print_json(&b);
        print_table(&b);
        return 0;
}
