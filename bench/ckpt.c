/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a checkpoint costs: a rank's state (master weights and two moments) goes into a shard image with its digest, and is written durably from there; both by
 * threads beside the next step (bench/ckpt_live measures on a job what training still waits for).  Beside it, in the same run: dd conv=fsync of as many random bytes into the same folder, in turn with each save, and torch.save of as much state, when /usr/bin/python3 has torch.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/opt.h"
#include "bench/report.h"
#include "worker/ckpt/checkpoint.h"

#define TENSORS 48
#define REPEATS_MOST 50

enum figure { SNAPSHOT, ORDER, WRITE, DD, DURABLE, LOAD, FIGURES };

static const char *const names[FIGURES] = { "ckpt_snapshot_ms", "ckpt_order_ms", "ckpt_write_ms", "dd_fsync_ms", "ckpt_durable_ms", "ckpt_load_ms" };
static const char *const what[FIGURES] = { "state -> image, digest", "orders to the writer", "image durable", "as much by dd", "state durable", "digest + load" };

struct bench {
        const char *dir;
        int64_t parameters, repeats;
        size_t bytes;
        double ms[FIGURES][REPEATS_MOST], peer[FIGURES]; /* peer 0: none */
        struct checkpoint_write *write;                  /* as a rank keeps it */
        int random;                                      /* memory with as many random bytes */
};

static int compare_doubles(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return x < y ? -1 : x > y;
}

static double median(const struct bench *b, enum figure f) {
        double sorted[REPEATS_MOST];

        memcpy(sorted, b->ms[f], sizeof(sorted));
        qsort(sorted, (size_t)b->repeats, sizeof(double), compare_doubles);
        return sorted[b->repeats / 2];
}

struct outcome {
        int rc;
        char text[1024], file[128];
        struct digest digest;
};

static void done(void *arg, int rc, const char *text, struct digest d, const char *file) {
        struct outcome *o = arg;

        o->rc = rc;
        o->digest = d;
        (void)snprintf(o->text, sizeof(o->text), "%s", text);
        (void)snprintf(o->file, sizeof(o->file), "%s", file ? file : "");
}

static int load(struct bench *b, const struct shard_tensor *t, const struct outcome *o, struct error *e) {
        char hex[DIGEST_HEX_SIZE];
        _cleanup_free_ char *text = NULL;
        struct checkpoint_manifest *m = NULL;
        int r;

        digest_hex(o->digest, hex);
        text = file_path("{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":1,\"name\":\"bench\",\"step\":1,\"epoch\":1,\"attempt\":1,\"layout\":\"\",\"state\":{},"
                         "\"shards\":[{\"file\":\"%s\",\"bytes\":%zu,\"digest\":\"%s\",\"rank\":0}]}", o->file, b->bytes, hex);
        if (!text)
                return error_set(e, -1, "out of memory");
        r = checkpoint_manifest_parse(text, strlen(text), &m, e);
        if (r == 0)
                r = checkpoint_load(b->dir, m, t, TENSORS, NULL, NULL, e);
        checkpoint_manifest_free(m);
        return r;
}

static double since(uint64_t start) {
        return (double)(clock_mono_ns() - start) / 1e6;
}

/* Other bytes each time, and a file that was not there. */
static int copy_by_dd(struct bench *b, int i, struct error *e) {
        _cleanup_free_ char *command = NULL;
        uint64_t x = clock_mono_ns() | 1, start;
        uint64_t *p = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, b->random, 0);
        int r;

        if (p == MAP_FAILED)
                return error_set(e, -1, "out of memory");
        for (size_t k = 0; k < b->bytes / 8; k++) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                p[k] = x;
        }
        (void)munmap(p, b->bytes);
        if (asprintf(&command, "exec dd if=/proc/%d/fd/%d of='%s/dd' bs=8M conv=fsync 2>/dev/null", (int)getpid(), b->random, b->dir) < 0)
                return error_set(e, -1, "out of memory");
        sync();
        start = clock_mono_ns();
        r = system(command); // NOLINT(cert-env33-c): dd is what is compared with
        b->ms[DD][i] = since(start);
        free(command);
        command = file_path("%s/dd", b->dir);
        if (command)
                (void)unlink(command);
        return r == 0 ? 0 : error_set(e, -1, "dd: exit %d", r);
}

static int one_round(struct bench *b, const struct shard_layout *l, const struct shard_tensor *t, void *image, int i, struct error *e) {
        struct outcome o = { 0 };
        uint64_t begin, start;
        struct digest d;
        int r;

        sync();
        begin = clock_mono_ns();
        r = shard_write_digest(l, NULL, NULL, "{}", image, &d, e);
        if (r < 0)
                return r;
        b->ms[SNAPSHOT][i] = since(begin);
        start = clock_mono_ns();
        r = checkpoint_write_start(&(struct checkpoint_write_order){ .folder = b->dir, .n_ranks = 1, .image = image, .len = b->bytes, .done = done, .arg = &o }, &b->write, e);
        if (r < 0)
                return r;
        b->ms[ORDER][i] = since(start);
        checkpoint_write_wait(b->write);
        b->ms[WRITE][i] = since(start);
        b->ms[DURABLE][i] = b->ms[SNAPSHOT][i] + b->ms[WRITE][i];
        if (o.rc < 0)
                return error_set(e, o.rc, "%s", o.text);
        start = clock_mono_ns();
        r = load(b, t, &o, e);
        b->ms[LOAD][i] = since(start);
        return r < 0 ? r : copy_by_dd(b, i, e);
}

static int run(struct bench *b, struct error *e) {
        struct shard_tensor t[TENSORS] = { 0 };
        struct shard_layout *l = NULL;
        int64_t each = b->parameters * 3 / TENSORS;
        void *image;
        int r;

        for (int i = 0; i < TENSORS; i++) {
                (void)snprintf(t[i].name, sizeof(t[i].name), "layers.%d.weight", i);
                t[i].dtype = DT_F32;
                t[i].global_rows = t[i].rows = 1;
                t[i].global_cols = t[i].cols = each;
                t[i].data = malloc((size_t)each * sizeof(dev_real));
                if (!t[i].data)
                        return error_set(e, -1, "out of memory");
                for (int64_t k = 0; k < each; k++)
                        ((dev_real *)t[i].data)[k] = (dev_real)(k * (i + 1));
        }
        r = shard_layout_new(t, TENSORS, 4096, &l, e);
        if (r < 0)
                return r;
        b->bytes = shard_layout_bytes(l);
        /* as in the replica memory of a running rank: allocated and touched before */
        image = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (image == MAP_FAILED)
                return error_set(e, -1, "out of memory");
        b->random = memfd_create("random", MFD_CLOEXEC);
        r = b->random < 0 || ftruncate(b->random, (off_t)b->bytes) < 0 ? error_set(e, -1, "out of memory") : 0;
        for (int i = 0; i < b->repeats && r == 0; i++)
                r = one_round(b, l, t, image, i, e);
        b->write = checkpoint_write_free(b->write);
        if (b->random >= 0)
                close(b->random);
        (void)munmap(image, b->bytes);
        shard_layout_free(l);
        for (int i = 0; i < TENSORS; i++)
                free(t[i].data);
        return r;
}

static void measure_peer(struct bench *b, const char *script) {
        _cleanup_free_ char *command = NULL;
        double call;
        FILE *f;

        if (access(script, R_OK) < 0 || asprintf(&command, "/usr/bin/python3 '%s' '%s' %lld %lld 2>/dev/null", script, b->dir, (long long)b->parameters,
                                                 (long long)b->repeats) < 0)
                return;
        f = popen(command, "r"); // NOLINT(cert-env33-c): a fixed program of this repository
        if (!f)
                return;
        if (fscanf(f, "%lf %lf", &call, &b->peer[DURABLE]) != 2) // NOLINT(cert-err34-c): figures for a table
                b->peer[DURABLE] = 0;
        (void)pclose(f);
}

struct ratio {
        const char *name, *what;
        double value; /* 0: no peer */
};

/* The median of the pairs' ratios: single runs vary too much for a ratio of medians. */
static double save_vs_dd(const struct bench *b) {
        double pairs[REPEATS_MOST] = { 0 };

        for (int i = 0; i < b->repeats; i++)
                pairs[i] = b->ms[DD][i] / b->ms[WRITE][i];
        qsort(pairs, (size_t)b->repeats, sizeof(double), compare_doubles);
        return pairs[b->repeats / 2];
}

static void ratios(const struct bench *b, struct ratio r[2]) {
        r[0] = (struct ratio){ "save_vs_dd", "bytes/s of the write to dd's, median of the pairs", save_vs_dd(b) };
        r[1] = (struct ratio){ "torch_save_ratio", "torch.save's time until durable to ours", b->peer[DURABLE] / median(b, DURABLE) };
}

static void print_table(const struct bench *b) {
        struct ratio r[2];

        (void)printf("%.3f GB of state\n%-24s %-22s %10s %8s %14s %7s\n", (double)b->bytes / 1e9, "", "", "ms", "GB/s", "torch.save ms", "ratio");
        for (int f = 0; f < FIGURES; f++) {
                double ms = median(b, (enum figure)f);

                (void)printf("%-24s %-22s %10.1f %8.2f ", names[f], what[f], ms, (double)b->bytes / ms / 1e6);
                if (b->peer[f] > 0)
                        (void)printf("%14.1f %7.2f\n", b->peer[f], ms / b->peer[f]);
                else
                        (void)printf("%14s %7s\n", "-", "-");
        }
        ratios(b, r);
        for (size_t i = 0; i < ARRAY_SIZE(r); i++)
                if (r[i].value > 0)
                        (void)printf("%-24s %-48s %8.2f\n", r[i].name, r[i].what, r[i].value);
}

static int print_json(const struct bench *b) {
        json_t *rows = json_array();
        struct ratio x[2];

        for (int f = 0; f < FIGURES; f++)
                report_add(rows, names[f], median(b, (enum figure)f), "ms", b->peer[f]);
        ratios(b, x);
        for (size_t i = 0; i < ARRAY_SIZE(x); i++)
                report_add(rows, x[i].name, x[i].value, "ratio", NAN);
        return report_print(rows, 6);
}

int main(int argc, char **argv) {
        static const char *const outputs[] = { "table", "json", NULL };
        static struct bench b = { .parameters = 100000000, .repeats = 5 };
        const char *output = "table", *peer = BENCH_SOURCE_DIR "/peers/torch_save.py", *in = "/tmp";
        _cleanup_free_ char *dir = NULL;
        struct error e = { 0 };
        char *args[16];
        bool help = false;
        int n = 0, r;
        const struct opt table[] = {
                { .name = "output", .letter = 'o', .type = OPT_CHOICE, .value = "FORM", .help = "table or json", .target = &output, .choices = outputs },
                { .name = "dir", .type = OPT_STRING, .value = "DIR", .help = "where to write (a folder is made in it)", .target = &in },
                { .name = "parameters", .type = OPT_INT, .value = "N", .help = "12 bytes of state each", .target = &b.parameters, .min = 1000, .max = 1000000000 },
                { .name = "repeats", .type = OPT_INT, .value = "N", .help = "rounds; the median counts", .target = &b.repeats, .min = 1, .max = REPEATS_MOST },
                { .name = "peer", .type = OPT_STRING, .value = "FILE", .help = "program that measures torch.save", .target = &peer },
                { .name = "help", .letter = 'h', .type = OPT_FLAG, .help = "this text", .target = &help },
        };

        if (argc > (int)ARRAY_SIZE(args) || opt_parse(table, ARRAY_SIZE(table), argc, argv, args, &n, &e) < 0 || n > 0) {
                (void)fprintf(stderr, "ckpt: %s\n", e.code ? e.text : "found arguments, expected options only");
                return 2;
        }
        if (help) {
                opt_print_help(table, ARRAY_SIZE(table));
                return 0;
        }
        dir = file_path("%s/fp8ctl-bench-XXXXXX", in);
        if (!dir || !mkdtemp(dir)) {
                perror(in);
                return 1;
        }
        b.dir = dir;
        r = run(&b, &e);
        if (r == 0)
                measure_peer(&b, peer);
        (void)file_remove_tree(dir, NULL);
        if (r < 0) {
                (void)fprintf(stderr, "ckpt: %s\n", e.text);
                return 1;
        }
        if (strcmp(output, "json") == 0)
                return print_json(&b);
        print_table(&b);
        return 0;
}
