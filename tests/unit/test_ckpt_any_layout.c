/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model's state written under one layout is loaded under every other, bit for bit.  The slicing is the engine's: column-parallel weights cut by rows over tp, row-parallel
 * ones by columns, norms replicated; of each such part a dp rank owns a band of rows (ZeRO-1); pp cuts by layer.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "tests/test.h"
#include "worker/ckpt/checkpoint.h"

enum cut { CUT_ROWS, CUT_COLS, CUT_NONE };

static const struct kind {
        const char *name;
        int64_t rows, cols;
        enum cut cut;
} kinds[] = {
        { "q.weight", 48, 20, CUT_ROWS },
        { "o.weight", 20, 48, CUT_COLS },
        { "norm.weight", 1, 20, CUT_NONE },
        { "down.weight", 13, 36, CUT_COLS }, /* rows that do not come out even over dp */
};
#define LAYERS 4
#define PREFIXES 2
#define PER_RANK_MOST (LAYERS * (int)ARRAY_SIZE(kinds) * PREFIXES)

struct layout {
        int tp, pp, dp;
};

static uint32_t value_bits(int layer, size_t kind, int prefix, int64_t r, int64_t c) {
        uint64_t x = ((uint64_t)layer * 131 + kind) * 137 + (uint64_t)prefix;

        x = (x * 1000003 + (uint64_t)r) * 1000003 + (uint64_t)c;
        x *= 0x9e3779b97f4a7c15u;
        return (uint32_t)(x >> 32); /* any bits, NaNs included: they are moved, not computed with */
}

static void span(int64_t n, int parts, int i, int64_t *start, int64_t *len) {
        *start = n * i / parts;
        *len = n * (i + 1) / parts - *start;
}

/* The tensors of one rank, their data allocated; returns how many. */
static size_t rank_tensors(struct layout l, int rank, struct shard_tensor *t) {
        int tp = rank % l.tp, dp = rank / l.tp % l.dp, pp = rank / l.tp / l.dp;
        size_t n = 0;

        for (int layer = pp * LAYERS / l.pp; layer < (pp + 1) * LAYERS / l.pp; layer++)
                for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
                        for (int prefix = 0; prefix < PREFIXES; prefix++) {
                                struct shard_tensor x = { .dtype = DT_I32, .global_rows = kinds[k].rows, .global_cols = kinds[k].cols, .rows = kinds[k].rows, .cols = kinds[k].cols };
                                int64_t start, len;

                                (void)snprintf(x.name, sizeof(x.name), "%slayers.%d.%s", prefix ? "exp_avg:" : "", layer, kinds[k].name);
                                if (kinds[k].cut == CUT_ROWS)
                                        span(kinds[k].rows, l.tp, tp, &x.row0, &x.rows);
                                else if (kinds[k].cut == CUT_COLS)
                                        span(kinds[k].cols, l.tp, tp, &x.col0, &x.cols);
                                /* the dp rank's band: of rows, of a vector its elements */
                                span(x.global_rows == 1 ? x.cols : x.rows, l.dp, dp, &start, &len);
                                if (x.global_rows == 1) {
                                        x.col0 += start;
                                        x.cols = len;
                                } else {
                                        x.row0 += start;
                                        x.rows = len;
                                }
                                x.data = calloc((size_t)(x.rows * x.cols) + 1, 4);
                                CU_ASSERT_PTR_NOT_NULL_FATAL(x.data);
                                t[n++] = x;
                        }
        return n;
}

static void free_tensors(struct shard_tensor *t, size_t n) {
        for (size_t i = 0; i < n; i++)
                free(t[i].data);
}

static uint32_t expected(const struct shard_tensor *t, int64_t r, int64_t c) {
        int prefix = strncmp(t->name, "exp_avg:", 8) == 0, layer = 0;
        char name[64];

        (void)sscanf(t->name + (prefix ? 8 : 0), "layers.%d.%63s", &layer, name);
        for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
                if (strcmp(kinds[k].name, name) == 0)
                        return value_bits(layer, k, prefix, t->row0 + r, t->col0 + c);
        return 0;
}

struct prepared {
        struct digest digest;
        char file[64];
        uint64_t bytes;
        int rc;
};

static void done(void *arg, int rc, const char *text, struct digest d, const char *file) {
        struct prepared *p = arg;

        p->rc = rc;
        p->digest = d;
        (void)snprintf(p->file, sizeof(p->file), "%s", file ? file : text);
}

static void write_rank(const char *folder, struct layout l, int rank, struct prepared *p) {
        struct shard_tensor t[PER_RANK_MOST];
        size_t n = rank_tensors(l, rank, t);
        struct checkpoint_write *w = NULL;
        struct shard_layout *sl = NULL;
        struct error e = { 0 };
        void *image;

        for (size_t i = 0; i < n; i++)
                for (int64_t r = 0; r < t[i].rows; r++)
                        for (int64_t c = 0; c < t[i].cols; c++)
                                ((uint32_t *)t[i].data)[r * t[i].cols + c] = expected(&t[i], r, c);
        ASSERT_OK(shard_layout_new(t, n, 64, &sl, &e), e);
        p->bytes = shard_layout_bytes(sl);
        image = malloc(p->bytes);
        CU_ASSERT_PTR_NOT_NULL_FATAL(image);
        ASSERT_OK(shard_write(sl, NULL, NULL, "{}", image, &e), e);
        ASSERT_OK(checkpoint_write_start(&(struct checkpoint_write_order){ .folder = folder, .rank = rank, .n_ranks = l.tp * l.pp * l.dp, .image = image, .len = p->bytes,
                                                                           .done = done, .arg = p }, &w, &e), e);
        w = checkpoint_write_free(w);
        CU_ASSERT_EQUAL_FATAL(p->rc, 0);
        shard_layout_free(sl);
        free(image);
        free_tensors(t, n);
}

static void write_all(const char *folder, struct layout l) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, CHECKPOINT_MANIFEST), *text = NULL;
        struct error e = { 0 };
        size_t len;
        FILE *f = open_memstream(&text, &len);

        CU_ASSERT_PTR_NOT_NULL_FATAL(f);
        fprintf(f, "{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":1,\"name\":\"n\",\"step\":5,\"epoch\":1,\"attempt\":1,\"layout\":\"l\",\"state\":{},\"shards\":[");
        for (int rank = 0; rank < l.tp * l.pp * l.dp; rank++) {
                char hex[DIGEST_HEX_SIZE];
                struct prepared p;

                write_rank(folder, l, rank, &p);
                digest_hex(p.digest, hex);
                fprintf(f, "%s{\"file\":\"%s\",\"bytes\":%" PRIu64 ",\"digest\":\"%s\",\"rank\":%d}", rank ? "," : "", p.file, p.bytes, hex, rank);
        }
        fprintf(f, "]}");
        fclose(f);
        ASSERT_OK(file_write_atomic(path, text, len, 0644, &e), e);
}

static uint64_t load_rank(const char *folder, const struct checkpoint_manifest *m, struct layout l, int rank) {
        struct shard_tensor t[PER_RANK_MOST];
        size_t n = rank_tensors(l, rank, t);
        struct error e = { 0 };
        uint64_t wrong = 0, all = 0;

        ASSERT_OK(checkpoint_load(folder, m, t, n, NULL, NULL, &e), e);
        for (size_t i = 0; i < n; i++)
                for (int64_t r = 0; r < t[i].rows; r++)
                        for (int64_t c = 0; c < t[i].cols; c++, all++)
                                wrong += ((uint32_t *)t[i].data)[r * t[i].cols + c] != expected(&t[i], r, c);
        CU_ASSERT_EQUAL(wrong, 0);
        free_tensors(t, n);
        return all;
}

TEST(any_layout_loads_what_any_other_wrote) {
        static const struct layout writers[] = { { 2, 1, 2 }, { 1, 1, 1 }, { 1, 2, 3 }, { 4, 2, 1 } };
        static const struct layout readers[] = { { 1, 1, 1 }, { 2, 1, 2 }, { 2, 2, 2 }, { 3, 1, 1 }, { 1, 4, 5 }, { 4, 1, 3 } };

        for (size_t i = 0; i < ARRAY_SIZE(writers); i++) {
                char dir[] = "/tmp/fp8ctl-ckpt-XXXXXX";
                struct checkpoint_manifest *m = NULL;
                struct error e = { 0 };

                CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
                write_all(dir, writers[i]);
                ASSERT_OK(checkpoint_manifest_read(dir, &m, &e), e);
                for (size_t k = 0; k < ARRAY_SIZE(readers); k++) {
                        uint64_t all = 0;

                        for (int rank = 0; rank < readers[k].tp * readers[k].pp * readers[k].dp; rank++)
                                all += load_rank(dir, m, readers[k], rank);
                        /* every element at least once: the norms of the tp ranks are replicas */
                        CU_ASSERT(all >= LAYERS * PREFIXES * (48 * 20 + 20 * 48 + 20 + 13 * 36));
                }
                m = checkpoint_manifest_free(m);
                (void)file_remove_tree(dir, NULL);
        }
}

TEST(a_lost_shard_is_a_hole_that_is_named) {
        char dir[] = "/tmp/fp8ctl-ckpt-XXXXXX";
        struct layout two = { 2, 1, 1 };
        struct shard_tensor t[PER_RANK_MOST];
        size_t n = rank_tensors((struct layout){ 1, 1, 1 }, 0, t);
        _cleanup_free_ char *text = NULL;
        struct checkpoint_manifest *m = NULL;
        struct error e = { 0 };
        struct prepared p;
        char hex[DIGEST_HEX_SIZE];

        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
        write_rank(dir, two, 0, &p); /* and nobody writes rank 1's */
        digest_hex(p.digest, hex);
        text = file_path("{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":1,\"name\":\"n\",\"step\":5,\"epoch\":1,\"attempt\":1,\"layout\":\"l\",\"state\":{},"
                         "\"shards\":[{\"file\":\"%s\",\"bytes\":%" PRIu64 ",\"digest\":\"%s\",\"rank\":0}]}", p.file, p.bytes, hex);
        ASSERT_OK(checkpoint_manifest_parse(text, strlen(text), &m, &e), e);
        ASSERT_ERROR(checkpoint_load(dir, m, t, n, NULL, NULL, &e), -ENODATA, e, "no shard holds rows [24,48) of 48, columns [0,20) of 20 of layers.0.q.weight");
        m = checkpoint_manifest_free(m);
        free_tensors(t, n);
        (void)file_remove_tree(dir, NULL);
}

TEST_MAIN("ckpt-any-layout")
