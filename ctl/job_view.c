/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/job_view.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/cleanup.h"

const char *job_state_name(Fp8ctl__V1__JobState s) {
        const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(&fp8ctl__v1__job_state__descriptor, (int)s);

        return v ? v->name : "UNKNOWN";
}

bool job_state_is_end(Fp8ctl__V1__JobState s) {
        return s == FP8CTL__V1__JOB_STATE__COMPLETED || s == FP8CTL__V1__JOB_STATE__FAILED || s == FP8CTL__V1__JOB_STATE__CANCELLED;
}

enum ctl_exit job_exit(const Fp8ctl__V1__Job *j) {
        return j->state == FP8CTL__V1__JOB_STATE__FAILED ? EXIT_FAILED : j->state == FP8CTL__V1__JOB_STATE__CANCELLED ? EXIT_CANCELLED : EXIT_DONE;
}

json_t *job_to_json(const Fp8ctl__V1__Job *j) {
        json_t *o = pb_to_json_v(&j->base);

        json_object_del(o, "plan");
        json_object_del(o, "job_file");
        if (j->state == FP8CTL__V1__JOB_STATE__JOB_STATE_UNSPECIFIED) /* of a dry run: it is no job yet */
                json_object_set_new(o, "state", json_null());
        return o;
}

void jobs_print_sheet(const struct ctl *c, Fp8ctl__V1__Job *const *jobs, size_t n) {
        static const struct sheet_column columns[] = {
                { "JOB", true, false, false },     { "NAME", false, false, false },    { "USER", false, false, false },    { "STATE", false, false, true },
                { "STEP", true, false, false },    { "LOSS", true, false, false },     { "TOKENS/S", true, false, false }, { "TIME", true, false, false },
                { "LAYOUT", false, false, false }, { "RESTARTS", true, false, false }, { "EPOCH", true, true, false },     { "LOST", true, true, false },
                { "SKIPPED", true, true, false },  { "VAL", true, true, false },       { "RECIPE", false, true, false },   { "CHECKPOINT", false, true, false },
                { "REASON", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        for (size_t i = 0; i < n; i++) {
                const Fp8ctl__V1__Job *j = jobs[i];

                sheet_add(s, "%" PRIu64, j->id);
                sheet_add(s, "%s", j->name);
                sheet_add(s, "%s", j->user);
                sheet_add(s, "%s", job_state_name(j->state));
                sheet_add(s, "%" PRIu64 "/%" PRIu64, j->step, j->steps);
                sheet_add(s, "%s", text_number(buf, "%.4f", j->loss_last));
                sheet_add(s, "%s", text_number(buf, "%.0f", j->tokens_per_s));
                sheet_add(s, "%s", text_duration(buf, j->wall_s));
                sheet_add(s, "tp%u pp%u dp%u", j->tp, j->pp, j->dp);
                sheet_add(s, "%u", j->restarts);
                sheet_add(s, "%" PRIu64, j->epoch);
                sheet_add(s, "%" PRIu64 " steps, %.1f s", j->lost_steps, isfinite(j->lost_s) ? j->lost_s : 0.0);
                sheet_add(s, "%" PRIu64, j->skipped_steps);
                sheet_add(s, "%s", text_number(buf, "%.4f", j->val_loss));
                sheet_add(s, "%s", j->recipe);
                sheet_add(s, "%s", j->checkpoint);
                sheet_add(s, "%s", j->failure && *j->failure ? j->failure : j->reason);
        }
        sheet_print(s, c->format == FORMAT_WIDE, stdout);
}

void job_print(const struct ctl *c, const Fp8ctl__V1__Job *j) {
        Fp8ctl__V1__Job *one = (Fp8ctl__V1__Job *)j;
        _cleanup_json_ json_t *o = NULL;

        switch (c->format) {
        case FORMAT_NAME:
                printf("%" PRIu64 "\n", j->id);
                return;
        case FORMAT_JSON:
        case FORMAT_YAML:
                o = job_to_json(j);
                print_object(c, o);
                return;
        default:
                jobs_print_sheet(c, &one, 1);
        }
}

void plan_print(const Fp8ctl__V1__Plan *p, FILE *f) {
        static const struct sheet_column columns[] = {
                { "RANK", true, false, false }, { "PP", true, false, false }, { "DP", true, false, false },     { "TP", true, false, false },
                { "NODE", false, false, false }, { "DEVICE", true, false, false }, { "STATE", false, false, true }, { "PID", true, false, false },
                { "INCARNATION", true, false, false }, { "RAIL", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        for (size_t i = 0; i < p->n_ranks; i++) {
                const Fp8ctl__V1__PlanRank *r = p->ranks[i];

                sheet_add(s, "%u", r->rank);
                sheet_add(s, "%u", r->pp_index);
                sheet_add(s, "%u", r->dp_index);
                sheet_add(s, "%u", r->tp_index);
                sheet_add(s, "%s", r->node);
                sheet_add(s, "%u", r->device);
                sheet_add(s, "%s", r->state && *r->state ? r->state : "-");
                sheet_add(s, r->pid ? "%u" : "-", r->pid);
                sheet_add(s, r->incarnation ? "%" PRIu64 : "-", r->incarnation);
                sheet_add(s, "%s", r->rail && *r->rail ? r->rail : "-");
        }
        fprintf(f, "%zu %s: tp %u, pp %u, dp %u; at most %s of memory each\n", p->n_ranks, p->n_ranks == 1 ? "rank" : "ranks", p->tp, p->pp, p->dp, text_bytes(buf, p->bytes_per_rank));
        sheet_print(s, false, f);
        if (p->split_groups)
                fprintf(f, "%u of %u tensor-parallel groups are not within one NVLink domain\n", p->split_groups, p->pp * p->dp);
        if (p->ring_hops)
                fprintf(f, "of %u hops between nodes in data-parallel rings %u stay on their rail\n", p->ring_hops, p->ring_hops - p->ring_crossings);
}

void event_print(const Fp8ctl__V1__Event *ev, FILE *f) {
        enum colour colour = colour_of_state(ev->severity);
        char buf[TEXT_BUF];

        text_time(buf, ev->unix_ms);
        fprintf(f, "%s%s.%03u%s ", colour_begin(f, COLOUR_DIM), strlen(buf) > 11 ? buf + 11 : buf, (unsigned)(ev->unix_ms % 1000), colour_end(f, COLOUR_DIM));
        if (ev->job_id)
                fprintf(f, "job %" PRIu64 " ", ev->job_id);
        fputs(colour_begin(f, colour), f);
        print_text(f, ev->kind);
        fputs(colour_end(f, colour), f);
        if (ev->node && *ev->node) {
                fputs(" on ", f);
                print_text(f, ev->node);
        }
        fputs(": ", f);
        print_text(f, ev->text);
        if (ev->ms > 0 && isfinite(ev->ms))
                fprintf(f, " (%.0f ms)", ev->ms);
        fputc('\n', f);
}
