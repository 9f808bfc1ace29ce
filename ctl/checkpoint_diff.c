/* SPDX-License-Identifier: Apache-2.0 */
/* ckpt diff: two checkpoints of any layouts, tensor by tensor, in blocks of rows. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/checkpoint.h"
#include "ctl/handlers.h"
#include "ctl/print.h"
#include "format/values.h"

#define BLOCK_ELEMENTS (1 << 18) /* of each side at a time, or one row */

static struct {
        bool all;
} given;

const struct opt checkpoint_diff_opts[] = {
        { "all", 'a', OPT_FLAG, NULL, "list tensors that are equal, too", &given.all, 0, 0, NULL },
        { 0 },
};

struct difference {
        const struct shard_tensor *a, *b; /* NULL: not on that side */
        bool equal;                       /* the same bits, type and shape */
        bool compared;                    /* value by value */
        double max_abs, max_rel;
        uint64_t n;                       /* values that differ */
};

struct diff {
        struct checkpoint_files a, b;
        struct difference *list;
        size_t n, n_different;
        json_t *state; /* keys of the small state that differ */
};

static void diff_clear(struct diff *d) {
        checkpoint_files_close(&d->a);
        checkpoint_files_close(&d->b);
        free(d->list);
        json_decref(d->state);
}

static void compare_values(struct difference *d, const double *x, const double *y, size_t n) {
        for (size_t i = 0; i < n; i++) {
                double gap = fabs(x[i] - y[i]), size = fmax(fabs(x[i]), fabs(y[i]));

                if (x[i] == y[i] && signbit(x[i]) == signbit(y[i]))
                        continue;
                if (isnan(x[i]) && isnan(y[i]))
                        continue;
                d->n++;
                if (isnan(gap) || isinf(gap)) { /* one of them is no number */
                        d->max_abs = d->max_rel = (double)INFINITY;
                        continue;
                }
                d->max_abs = fmax(d->max_abs, gap);
                d->max_rel = fmax(d->max_rel, size > 0 ? gap / size : 0);
        }
}

struct block {
        void *bytes[2];
        double *values[2];
};

static void block_clear(struct block *b) {
        for (int i = 0; i < 2; i++) {
                free(b->bytes[i]);
                free(b->values[i]);
        }
}

static int fill_block(struct diff *d, const struct shard_tensor *t, int side, int64_t row, int64_t rows, int64_t col, int64_t cols, struct block *k, struct byte_progress *p,
                      struct error *e) {
        struct shard_tensor want = *t;
        size_t bytes = (size_t)(rows * cols) * dtype_size(t->dtype);
        int r;

        want.row0 = row;
        want.rows = rows;
        want.col0 = col;
        want.cols = cols;
        want.data = k->bytes[side];
        r = checkpoint_reader_fill(side ? d->b.reader : d->a.reader, &want, NULL, NULL, e);
        if (r == 0)
                byte_progress_add(p, bytes);
        return r;
}

static int compare_block(struct diff *d, struct difference *x, int64_t row, int64_t rows, int64_t col, int64_t cols, struct block *k, struct byte_progress *p, struct error *e) {
        size_t n = (size_t)(rows * cols);
        int r = fill_block(d, x->a, 0, row, rows, col, cols, k, p, e);

        if (r == 0)
                r = fill_block(d, x->b, 1, row, rows, col, cols, k, p, e);
        if (r < 0)
                return r;
        if (x->a->dtype == x->b->dtype && memcmp(k->bytes[0], k->bytes[1], n * dtype_size(x->a->dtype)) == 0)
                return 0;
        x->equal = false;
        if (!x->compared)
                return 0;
        values_read(x->a->dtype, k->bytes[0], k->values[0], n);
        values_read(x->b->dtype, k->bytes[1], k->values[1], n);
        compare_values(x, k->values[0], k->values[1], n);
        return 0;
}

static int compare_tensor(struct diff *d, struct difference *x, struct block *k, struct byte_progress *p, struct error *e) {
        const struct shard_tensor *t = x->a;
        int64_t cols = t->cols < BLOCK_ELEMENTS ? t->cols : BLOCK_ELEMENTS, rows = cols > 0 ? BLOCK_ELEMENTS / cols : 1;
        int r = 0;

        x->equal = x->a->dtype == x->b->dtype && x->a->rows == x->b->rows && x->a->cols == x->b->cols;
        if (x->a->rows != x->b->rows || x->a->cols != x->b->cols)
                return 0;
        x->compared = values_are_real(x->a->dtype) && values_are_real(x->b->dtype);
        for (int64_t row = 0; row < t->rows && r == 0; row += rows)
                for (int64_t col = 0; col < t->cols && r == 0; col += cols)
                        r = compare_block(d, x, row, t->rows - row < rows ? t->rows - row : rows, col, t->cols - col < cols ? t->cols - col : cols, k, p, e);
        return r;
}

/* Both lists are sorted by name. */
static int pair_tensors(struct diff *d, struct error *e) {
        size_t i = 0, k = 0;

        d->list = calloc(d->a.n_tensors + d->b.n_tensors + 1, sizeof(*d->list));
        if (!d->list)
                return error_set(e, -ENOMEM, "no memory");
        while (i < d->a.n_tensors || k < d->b.n_tensors) {
                int c = i == d->a.n_tensors ? 1 : k == d->b.n_tensors ? -1 : strcmp(d->a.tensors[i].name, d->b.tensors[k].name);

                d->list[d->n++] = (struct difference){ .a = c <= 0 ? &d->a.tensors[i] : NULL, .b = c >= 0 ? &d->b.tensors[k] : NULL };
                i += c <= 0;
                k += c >= 0;
        }
        return 0;
}

static int compare_all(struct diff *d, struct error *e) {
        _cleanup_(block_clear) struct block k = { 0 };
        struct byte_progress p;
        int r = pair_tensors(d, e);

        for (int i = 0; i < 2; i++) {
                k.bytes[i] = malloc((size_t)BLOCK_ELEMENTS * 8);
                k.values[i] = malloc((size_t)BLOCK_ELEMENTS * sizeof(double));
                if (!k.bytes[i] || !k.values[i])
                        return error_set(e, -ENOMEM, "no memory");
        }
        byte_progress_begin(&p, "diff", d->a.bytes + d->b.bytes);
        for (size_t i = 0; i < d->n && r == 0; i++) {
                if (d->list[i].a && d->list[i].b)
                        r = compare_tensor(d, &d->list[i], &k, &p, e);
                d->n_different += !d->list[i].equal;
        }
        byte_progress_end(&p);
        return r;
}

static int compare_state(struct diff *d, struct error *e) {
        _cleanup_json_ json_t *a = json_loads(checkpoint_manifest_state(d->a.manifest), JSON_REJECT_DUPLICATES, NULL);
        _cleanup_json_ json_t *b = json_loads(checkpoint_manifest_state(d->b.manifest), JSON_REJECT_DUPLICATES, NULL);
        const char *key;
        json_t *value;

        d->state = json_array();
        if (!d->state || !a || !b)
                return error_set(e, -ENOMEM, "no memory");
        json_object_foreach(a, key, value)
                if (!json_equal(value, json_object_get(b, key)))
                        json_array_append_new(d->state, json_string(key));
        json_object_foreach(b, key, value)
                if (!json_object_get(a, key))
                        json_array_append_new(d->state, json_string(key));
        return 0;
}

static json_t *number(bool known, double v) {
        return known && isfinite(v) ? json_real(v) : json_null();
}

static json_t *tensor_json(const struct difference *x) {
        const struct shard_tensor *t = x->a ? x->a : x->b;
        json_t *shape = t->rows == 1 ? json_pack("[I]", (json_int_t)t->cols) : json_pack("[I, I]", (json_int_t)t->rows, (json_int_t)t->cols);

        return json_pack("{s:s, s:s?, s:s?, s:o, s:b, s:o, s:o, s:o}", "name", t->name, "dtype_a", x->a ? shard_dtype_text(x->a->dtype) : NULL, "dtype_b",
                         x->b ? shard_dtype_text(x->b->dtype) : NULL, "shape", shape, "equal", x->equal, "differing", x->compared ? json_integer((json_int_t)x->n) : json_null(), "max_abs",
                         number(x->compared, x->max_abs), "max_rel", number(x->compared, x->max_rel));
}

static void print_json(const struct ctl *c, const struct diff *d) {
        _cleanup_json_ json_t *o = NULL;
        json_t *list = json_array();

        for (size_t i = 0; i < d->n; i++)
                if (given.all || !d->list[i].equal)
                        json_array_append_new(list, tensor_json(&d->list[i]));
        o = json_pack("{s:i, s:s, s:s, s:b, s:I, s:I, s:O, s:o}", "v", CTL_JSON_VERSION, "a", d->a.folder, "b", d->b.folder, "equal", d->n_different == 0, "compared", (json_int_t)d->n,
                      "different", (json_int_t)d->n_different, "state", d->state, "tensors", list);
        print_object(c, o);
}

static void print_sheet(const struct ctl *c, const struct diff *d) {
        static const struct sheet_column columns[] = {
                { "TENSOR", false, false, false },    { "TYPE", false, false, false },     { "SHAPE", false, false, false },
                { "DIFFERING", true, false, false }, { "MAX ABS", true, false, false }, { "MAX REL", true, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char shape[SHAPE_BUF], buf[TEXT_BUF];

        for (size_t i = 0; i < d->n; i++) {
                const struct difference *x = &d->list[i];
                const struct shard_tensor *t = x->a ? x->a : x->b;

                if (x->equal && !given.all)
                        continue;
                sheet_add(s, "%s", t->name);
                sheet_add(s, x->a && x->b && x->a->dtype != x->b->dtype ? "%s, %s" : "%s", shard_dtype_text(t->dtype), x->b ? shard_dtype_text(x->b->dtype) : "");
                sheet_add(s, "%s", text_shape(shape, t->rows, t->cols));
                if (!x->a || !x->b)
                        sheet_add(s, "only in %s", x->a ? "the first" : "the second");
                else if (!x->compared)
                        sheet_add(s, "%s", x->equal ? "0" : x->a->rows != x->b->rows || x->a->cols != x->b->cols ? "other shape" : "bytes");
                else
                        sheet_add(s, "%" PRIu64, x->n);
                sheet_add(s, "%s", x->compared ? text_number(buf, "%.3g", x->max_abs) : "");
                sheet_add(s, "%s", x->compared ? text_number(buf, "%.3g", x->max_rel) : "");
        }
        if (d->n_different || given.all)
                sheet_print(s, c->format == FORMAT_WIDE, stdout);
        printf("%zu of %zu tensors differ\n", d->n_different, d->n);
        if (json_array_size(d->state)) {
                printf("state differs:");
                for (size_t i = 0; i < json_array_size(d->state); i++)
                        printf("%s %s", i ? "," : "", json_string_value(json_array_get(d->state, i)));
                putchar('\n');
        }
}

int checkpoint_diff_run(struct ctl *c, int n, char **args) {
        _cleanup_(diff_clear) struct diff d = { 0 };
        struct error e;

        if (checkpoint_files_open(c, args[0], &d.a, &e) < 0 || checkpoint_files_open(c, args[1], &d.b, &e) < 0 || compare_all(&d, &e) < 0 || compare_state(&d, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_JSON || c->format == FORMAT_YAML)
                print_json(c, &d);
        else
                print_sheet(c, &d);
        return d.n_different ? EXIT_FAILED : EXIT_DONE;
}
