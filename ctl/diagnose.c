/* SPDX-License-Identifier: Apache-2.0 */
/* diagnose JOB: where every rank is, who holds the others up, and what the threads of each do. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/handlers.h"
#include "ctl/job_view.h"

#define DIAGNOSE_TIMEOUT_MS 20000

static struct {
        bool quick;
} given;

const struct opt diagnose_opts[] = {
        { "quick", 'q', OPT_FLAG, NULL, "flight recorders only: no rank is touched", &given.quick, 0, 0, NULL },
        { 0 },
};

/* "0-2 5 7" */
static void ranks_text(const uint32_t *ranks, size_t n, char *buf, size_t size) {
        size_t at = 0;

        buf[0] = '\0';
        for (size_t i = 0, last; i < n && at < size; i = last + 1) {
                for (last = i; last + 1 < n && ranks[last + 1] == ranks[last] + 1; last++)
                        ;
                at += (size_t)snprintf(buf + at, size - at, last > i ? "%s%" PRIu32 "-%" PRIu32 : "%s%" PRIu32, at ? " " : "", ranks[i], ranks[last]);
        }
        if (n == 0)
                snprintf(buf, size, "-");
}

static void print_open(const Fp8ctl__V1__Diagnosis *d) {
        static const struct sheet_column columns[] = { { "COLLECTIVE", .right = false }, { "GROUP", .right = false },   { "NUMBER", .right = true }, { "FOR S", .right = true },
                                                       { "INSIDE", .right = false },     { "NOT ENTERED", .right = false }, { "LEFT", .right = false } };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));

        if (!s || d->n_open == 0)
                return;
        for (size_t i = 0; i < d->n_open; i++) {
                const Fp8ctl__V1__OpenCollective *o = d->open[i];
                char text[256];

                sheet_add(s, "%s", o->op);
                sheet_add(s, "%s", o->group);
                if (o->number)
                        sheet_add(s, "%" PRIu64, o->number);
                else
                        sheet_add(s, "-");
                sheet_add(s, "%.2f", o->since_ms / 1e3);
                ranks_text(o->inside, o->n_inside, text, sizeof(text));
                sheet_add(s, "%s", text);
                ranks_text(o->missing, o->n_missing, text, sizeof(text));
                sheet_add(s, "%s", text);
                ranks_text(o->left, o->n_left, text, sizeof(text));
                sheet_add(s, "%s", text);
        }
        putchar('\n');
        sheet_print(s, false, stdout);
}

static void print_ranks(const Fp8ctl__V1__Diagnosis *d) {
        static const struct sheet_column columns[] = { { "RANK", .right = true }, { "NODE", .right = false }, { "PID", .right = true },  { "STATE", .right = false },
                                                       { "STEP", .right = true }, { "PHASE", .right = false }, { "FOR S", .right = true }, { "NOTE", .right = false } };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));

        for (size_t i = 0; s && i < d->n_ranks; i++) {
                const Fp8ctl__V1__RankDiagnosis *r = d->ranks[i];

                sheet_add(s, "%" PRIu32, r->rank);
                sheet_add(s, "%s", r->node);
                sheet_add(s, "%" PRIu32, r->pid);
                sheet_add(s, "%s", r->state);
                sheet_add(s, "%" PRIu64, r->step);
                sheet_add(s, "%s", *r->phase ? r->phase : "-");
                sheet_add(s, "%.2f", r->phase_ms / 1e3);
                sheet_add(s, "%s", *r->note ? r->note : "-");
        }
        putchar('\n');
        if (s)
                sheet_print(s, false, stdout);
}

static void print_stack(const Fp8ctl__V1__RankDiagnosis *r) {
        if (r->n_threads == 0)
                return;
        printf("\n%srank %" PRIu32 "%s (pid %" PRIu32 " on ", colour_begin(stdout, COLOUR_BOLD), r->rank, colour_end(stdout, COLOUR_BOLD), r->pid);
        print_text(stdout, r->node);
        if (r->stacks_ms > 0)
                printf(", %.1f s ago", r->stacks_ms / 1e3);
        puts(")");
        for (size_t i = 0; i < r->n_threads; i++) {
                const Fp8ctl__V1__ThreadState *t = r->threads[i];

                printf("  thread %" PRIu32 " ", t->tid);
                print_text(stdout, t->name);
                printf(" %s", t->state);
                if (*t->kernel) {
                        fputs(" in ", stdout);
                        print_text(stdout, t->kernel);
                }
                putchar('\n');
                for (size_t k = 0; k < t->n_frames; k++) {
                        printf("    #%-2zu ", k);
                        print_text(stdout, t->frames[k]);
                        putchar('\n');
                }
        }
}

static void print_diagnosis(const Fp8ctl__V1__Diagnosis *d) {
        fputs(colour_begin(stdout, d->stuck ? COLOUR_RED : COLOUR_BOLD), stdout);
        print_text(stdout, d->verdict);
        puts(colour_end(stdout, COLOUR_BOLD));
        print_open(d);
        print_ranks(d);
        if (d->culprit >= 0 && (size_t)d->culprit < d->n_ranks)
                print_stack(d->ranks[d->culprit]);
        for (size_t i = 0; i < d->n_ranks; i++)
                if ((int64_t)i != d->culprit)
                        print_stack(d->ranks[i]);
}

int diagnose_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__DiagnoseJobRequest rq = FP8CTL__V1__DIAGNOSE_JOB_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__Diagnosis *d = NULL;
        _cleanup_json_ json_t *o = NULL;
        struct error e;

        (void)n;
        if (parse_job_id(args[0], &rq.id, &e) < 0)
                return ctl_usage(&e);
        rq.stacks = !given.quick;
        if (client_new(c, &cl, &e) < 0 || client_call(cl, "DiagnoseJob", &rq.base, &fp8ctl__v1__diagnosis__descriptor, DIAGNOSE_TIMEOUT_MS, (ProtobufCMessage **)&d, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_TABLE) {
                print_diagnosis(d);
        } else {
                o = pb_to_json_v(&d->base);
                print_object(c, o);
        }
        return EXIT_DONE;
}
