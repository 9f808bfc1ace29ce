/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metrics JOB: the rows of metrics.jsonl (PROTOCOL.md), fetched through the controller in pieces.  A step that was done again after a failure is
 * in the file once an epoch; the row of the highest epoch is the one printed.  With --fp8 the same of the rows of FP8 tensors.  Lines are a worker's text: what is no JSON object with a step is skipped.
 */
#include "ctl/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "ctl/history.h"
#include "ctl/print.h"

#define READ_MAX (1024u * 1024)
#define POLL_MS 250

static struct {
        bool follow, fp8;
} given;

const struct opt metrics_opts[] = {
        { "follow", 'f', OPT_FLAG, NULL, "go on with new rows until the job is over (json: one object a line)", &given.follow, 0, 0, NULL },
        { "fp8", 0, OPT_FLAG, NULL, "what quantising did to each FP8 tensor, in the steps of the job key metrics.fp8_every", &given.fp8, 0, 0, NULL },
        { 0 },
};

static void print_csv_value(const json_t *v) {
        if (json_is_string(v))
                print_text(stdout, json_string_value(v)); /* hexadecimal digits: nothing to quote; a comma could only break the row's own worker's row */
        else if (json_is_integer(v))
                printf("%" JSON_INTEGER_FORMAT, json_integer_value(v));
        else if (json_is_real(v))
                printf("%.17g", json_real_value(v));
        else if (json_is_boolean(v))
                putchar(json_is_true(v) ? '1' : '0');
}

static void print_csv(const json_t *row) {
        for (const char *const *key = metrics_keys; *key; key++) {
                if (key != metrics_keys)
                        putchar(',');
                print_csv_value(json_object_get(row, *key));
        }
        putchar('\n');
}

static void print_csv_head(void) {
        for (const char *const *key = metrics_keys; *key; key++)
                printf("%s%s", key == metrics_keys ? "" : ",", *key);
        putchar('\n');
}

static double number(const json_t *row, const char *key) {
        const json_t *v = json_object_get(row, key);

        return json_is_number(v) ? json_number_value(v) : NAN;
}

static const char *string(const json_t *row, const char *key) {
        const json_t *v = json_object_get(row, key);

        return json_is_string(v) ? json_string_value(v) : "-";
}

/* Fixed columns: rows of a long run need not be held to be aligned, and --follow can print them one by one. */
static void print_table_head(void) {
        printf("%s%7s %5s %11s  %-8s %10s %10s %9s %4s %9s %8s %9s  %s%s\n", colour_begin(stdout, COLOUR_BOLD), "STEP", "EPOCH", "LOSS", "BITS", "GRADNORM", "LR",
               "SCALE", "SKIP", "TOKENS/S", "MS", "MEMORY", "DIGEST", colour_end(stdout, COLOUR_BOLD));
}

static void print_table_row(const struct metrics_row *r) {
        char b[8][TEXT_BUF];
        double memory = number(r->row, "memory");

        printf("%7" PRIu64 " %5" PRIu64 " %11s  ", r->step, r->epoch, text_number(b[0], "%.6f", number(r->row, "loss")));
        print_text(stdout, string(r->row, "loss_hex"));
        printf(" %10s %10s %9s %4s %9s %8s %9s  ", text_number(b[1], "%.5g", number(r->row, "grad_norm")), text_number(b[2], "%.4g", number(r->row, "lr")),
               text_number(b[3], "%g", number(r->row, "loss_scale")), json_is_true(json_object_get(r->row, "skipped")) ? "yes" : "-",
               text_number(b[4], "%.0f", number(r->row, "tokens_per_s")), text_number(b[5], "%.1f", number(r->row, "ms")),
               memory >= 0 && memory < 1e18 ? text_bytes(b[6], (uint64_t)memory) : "-");
        print_text(stdout, string(r->row, "digest"));
        putchar('\n');
}

/* ------------------------------------------------------------------ --fp8 */

static const char *const fp8_keys[] = { "amax", "saturated", "flushed" };

static void print_fp8_head(const struct ctl *c) {
        if (c->format == FORMAT_CSV)
                printf("step,epoch,layer,tensor,amax,saturated,flushed\n");
        else if (c->format == FORMAT_TABLE)
                printf("%s%7s %5s %5s %12s %10s %10s  %s%s\n", colour_begin(stdout, COLOUR_BOLD), "STEP", "EPOCH", "LAYER", "AMAX", "SATURATED", "FLUSHED", "TENSOR", colour_end(stdout, COLOUR_BOLD));
}

/* A line a tensor. */
static void print_fp8_row(const struct ctl *c, const struct metrics_row *r) {
        const json_t *tensors = json_object_get(r->row, "tensors"), *t;
        size_t i;

        json_array_foreach(tensors, i, t) {
                char b[3][TEXT_BUF];

                if (c->format == FORMAT_CSV) {
                        printf("%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",", r->step, r->epoch, r->layer);
                        print_csv_value(json_object_get(t, "tensor"));
                        for (size_t k = 0; k < sizeof(fp8_keys) / sizeof(fp8_keys[0]); k++) {
                                putchar(',');
                                print_csv_value(json_object_get(t, fp8_keys[k]));
                        }
                        putchar('\n');
                        continue;
                }
                printf("%7" PRIu64 " %5" PRIu64 " %5" PRIu64 " %12s %10s %10s  ", r->step, r->epoch, r->layer, text_number(b[0], "%.5g", number(t, "amax")),
                       text_number(b[1], "%.4f%%", 100 * number(t, "saturated")), text_number(b[2], "%.4f%%", 100 * number(t, "flushed")));
                print_text(stdout, string(t, "tensor"));
                putchar('\n');
        }
}

/* ------------------------------------------------------------------ both */

static void print_row(const struct ctl *c, const struct metrics_row *r) {
        if (given.fp8 && (c->format == FORMAT_CSV || c->format == FORMAT_TABLE))
                print_fp8_row(c, r);
        else if (c->format == FORMAT_CSV)
                print_csv(r->row);
        else if (c->format == FORMAT_TABLE)
                print_table_row(r);
        else {
                json_object_set_new(r->row, "v", json_integer(CTL_JSON_VERSION));
                print_object_line(r->row);
        }
}

static void print_head(const struct ctl *c) {
        if (given.fp8)
                print_fp8_head(c);
        else if (c->format == FORMAT_CSV)
                print_csv_head();
        else if (c->format == FORMAT_TABLE)
                print_table_head();
}

static void print_all(struct ctl *c, struct metrics *m, uint64_t job) {
        _cleanup_json_ json_t *o = NULL;
        size_t n;
        struct metrics_row *all = metrics_rows(m, &n);
        json_t *rows;

        if (c->format == FORMAT_TABLE || c->format == FORMAT_CSV) {
                print_head(c);
                for (size_t i = 0; i < n; i++)
                        print_row(c, &all[i]);
                return;
        }
        rows = json_array();
        for (size_t i = 0; i < n; i++)
                json_array_append(rows, all[i].row);
        o = json_pack("{s:i, s:I, s:o}", "v", CTL_JSON_VERSION, "job", (json_int_t)job, "rows", rows);
        print_object(c, o);
}

/* Rows that are new, or that a higher epoch replaced. */
static void print_new(struct ctl *c, struct metrics *m) {
        size_t n;
        struct metrics_row *rows = metrics_rows(m, &n);

        for (size_t i = 0; i < n; i++)
                if (!rows[i].shown) {
                        print_row(c, &rows[i]);
                        rows[i].shown = true;
                }
        fflush(stdout);
}

static inline void metrics_freep(struct metrics **m) {
        metrics_free(*m);
}

int metrics_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__ReadFileRequest rq = FP8CTL__V1__READ_FILE_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_(metrics_freep) struct metrics *m = metrics_new(given.fp8 ? METRICS_FP8 : METRICS_STEPS);
        struct error e = { 0 };
        bool over = false;

        if (parse_job_id(args[0], &rq.job_id, &e) < 0)
                return ctl_usage(&e);
        rq.kind = FP8CTL__V1__FILE_KIND__METRICS;
        rq.rank = -1;
        rq.max_bytes = READ_MAX;
        if (!m || client_new(c, &cl, &e) < 0)
                return m ? ctl_fail(&e) : EXIT_FAILED;
        if (history_metrics_elsewhere(cl, rq.job_id, m, &e) < 0)
                return ctl_fail(&e);
        if (given.follow)
                print_head(c);
        for (;;) {
                struct timespec pause = { 0, POLL_MS * (long)NSEC_PER_MSEC };
                _cleanup_message_ Fp8ctl__V1__ReadFileReply *reply = NULL;

                if (client_read_or_wait(cl, &rq, &over, &reply, &e) < 0)
                        return ctl_fail(&e);
                if (!reply) { /* not one step yet */
                        if (!given.follow)
                                break;
                        nanosleep(&pause, NULL);
                        continue;
                }
                if (metrics_feed(m, reply->data.data, reply->data.len) < 0) {
                        error_set(&e, -ENOMEM, "no memory for the rows");
                        return ctl_fail(&e);
                }
                /* The rank that reports has moved to a node whose file is shorter: all of that one. */
                rq.offset = reply->next_offset < rq.offset ? 0 : reply->next_offset;
                if (given.follow)
                        print_new(c, m);
                if (reply->data.len == 0 && rq.offset == reply->next_offset) {
                        if (reply->ended || !given.follow)
                                break;
                        nanosleep(&pause, NULL);
                }
        }
        if (!given.follow)
                print_all(c, m, rq.job_id);
        return EXIT_DONE;
}
