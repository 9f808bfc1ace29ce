/* SPDX-License-Identifier: Apache-2.0 */
/*
 * why JOB: what went wrong, one incident after the other: what was seen, what was decided, what was done, and what each phase cost.  It is read out of the events: an
 * incident begins with the first word of trouble and ends with the first new step (`recovered`), or with the job.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/handlers.h"
#include "ctl/history.h"
#include "ctl/job_view.h"

enum part { PART_NONE, PART_SEEN, PART_DECIDED, PART_DONE, PART_END };

static enum part part_of(const Fp8ctl__V1__Event *ev) {
        static const struct {
                const char *kind;
                enum part part;
        } kinds[] = {
                { "rank_lost", PART_SEEN },       { "rank_fault", PART_SEEN },     { "rank_exited", PART_SEEN },  { "node_lost", PART_SEEN },  { "rollback", PART_DECIDED },
                { "recovery_started", PART_DECIDED }, { "resized", PART_DECIDED }, { "requeued", PART_DECIDED }, { "inventory_late", PART_SEEN }, { "diagnosis", PART_SEEN },    { "checksums_differ", PART_SEEN }, { "plan", PART_DONE },
                { "placed", PART_DONE },          { "resumed", PART_DONE },        { "running", PART_DONE },      { "recovered", PART_END },   { "failed", PART_END },
                { "cancelled", PART_END },
        };

        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
                if (strcmp(ev->kind, kinds[i].kind) == 0)
                        return kinds[i].part;
        return PART_NONE;
}

/* An incident while it is put together. */
struct incident {
        json_t *o, *seen, *decided, *done;
        double gather_ms, restore_ms;
};

static bool begins(const Fp8ctl__V1__Event *ev) {
        return part_of(ev) == PART_SEEN || strcmp(ev->kind, "recovery_started") == 0 || strcmp(ev->kind, "rollback") == 0 || strcmp(ev->kind, "requeued") == 0 ||
               strcmp(ev->kind, "failed") == 0;
}

/* The text up to the first of the words that follow a cause. */
static json_t *cause_of(const char *text) {
        static const char *const after[] = { "; epoch ", " survivors parked in " };
        size_t len = strlen(text);

        for (size_t i = 0; i < ARRAY_SIZE(after); i++) {
                const char *p = strstr(text, after[i]);

                while (p && i == 1 && p > text && *p != ';')
                        p--;
                if (p && p > text)
                        len = (size_t)(p - text);
        }
        return json_stringn(text, len);
}

static void open_incident(struct incident *in, json_t *all, const Fp8ctl__V1__Event *ev) {
        *in = (struct incident){ .seen = json_array(), .decided = json_array(), .done = json_array(), .gather_ms = NAN, .restore_ms = NAN };
        in->o = json_pack("{s:I, s:I, s:I, s:o, s:s, s:n, s:I, s:o, s:o, s:o, s:n}", "number", (json_int_t)json_array_size(all) + 1, "unix_ms", (json_int_t)ev->unix_ms, "epoch",
                          (json_int_t)ev->epoch, "cause", cause_of(ev->text), "state", "open", "node", "rank", (json_int_t)ev->rank, "seen", in->seen, "decided", in->decided, "done",
                          in->done, "cost_ms");
        if (in->o && ev->node && *ev->node)
                json_object_set_new(in->o, "node", json_string(ev->node));
        json_array_append_new(all, in->o);
}

static json_t *number_or_null(double v) {
        return isfinite(v) ? json_real(v) : json_null();
}

static void close_incident(struct incident *in, const Fp8ctl__V1__Event *ev) {
        bool recovered = strcmp(ev->kind, "recovered") == 0;

        json_object_set_new(in->o, "cause", cause_of(ev->text));
        json_object_set_new(in->o, "state", json_string(ev->kind));
        if (recovered)
                json_object_set_new(in->o, "cost_ms", json_pack("{s:o, s:o, s:o, s:o}", "gather", number_or_null(in->gather_ms), "restore", number_or_null(in->restore_ms), "first_step",
                                                                number_or_null(ev->ms - in->gather_ms - in->restore_ms), "total", number_or_null(ev->ms)));
        *in = (struct incident){ 0 };
}

static void feed(struct incident *in, json_t *all, json_t *notes, const Fp8ctl__V1__Event *ev) {
        enum part part = part_of(ev);

        if (!in->o && begins(ev))
                open_incident(in, all, ev);
        if (!in->o || part == PART_NONE) {
                if (strcmp(ev->severity ? ev->severity : "", "warning") == 0 || strcmp(ev->severity ? ev->severity : "", "error") == 0)
                        json_array_append_new(notes, pb_to_json(&ev->base));
                return;
        }
        if (part == PART_DONE && strcmp(ev->kind, "plan") == 0 && ev->ms > 0)
                in->gather_ms = ev->ms;
        if (part == PART_DONE && strcmp(ev->kind, "resumed") == 0)
                in->restore_ms = ev->ms;
        if (part == PART_DECIDED)
                json_object_set_new(in->o, "epoch", json_integer((json_int_t)ev->epoch));
        json_array_append_new(part == PART_SEEN ? in->seen : part == PART_DECIDED ? in->decided : in->done, pb_to_json(&ev->base));
        if (part == PART_END)
                close_incident(in, ev);
}

static void print_part(const char *title, const json_t *events) {
        size_t i;
        json_t *ev;
        char buf[TEXT_BUF];

        json_array_foreach(events, i, ev) {
                uint64_t ms = (uint64_t)json_integer_value(json_object_get(ev, "unix_ms"));

                text_time(buf, ms);
                printf("  %-8s %s.%03u ", i == 0 ? title : "", strlen(buf) > 11 ? buf + 11 : buf, (unsigned)(ms % 1000));
                print_text(stdout, json_string_value(json_object_get(ev, "text")));
                putchar('\n');
        }
}

static void print_cost(const json_t *cost) {
        static const char *const keys[] = { "gather", "restore", "first_step", "total" };
        static const char *const says[] = { "until all ranks were there", "to load and meet", "to the first new step", "in all" };
        char buf[TEXT_BUF];

        if (!json_is_object(cost))
                return;
        printf("  %-8s", "cost");
        for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
                const json_t *v = json_object_get(cost, keys[i]);

                printf("%s %s ms %s", i ? "," : "", text_number(buf, "%.0f", json_is_number(v) ? json_number_value(v) : NAN), says[i]);
        }
        putchar('\n');
}

static void print_people(const json_t *all, const json_t *notes) {
        size_t i;
        json_t *o;

        json_array_foreach(all, i, o) {
                const char *state = json_string_value(json_object_get(o, "state"));

                printf("%sincident %zu%s (%s): ", colour_begin(stdout, COLOUR_BOLD), i + 1, colour_end(stdout, COLOUR_BOLD), state ? state : "open");
                print_text(stdout, json_string_value(json_object_get(o, "cause")));
                putchar('\n');
                print_part("seen", json_object_get(o, "seen"));
                print_part("decided", json_object_get(o, "decided"));
                print_part("done", json_object_get(o, "done"));
                print_cost(json_object_get(o, "cost_ms"));
        }
        if (json_array_size(notes)) {
                printf("%sother warnings%s\n", colour_begin(stdout, COLOUR_BOLD), colour_end(stdout, COLOUR_BOLD));
                print_part("", notes);
        }
        if (json_array_size(all) == 0 && json_array_size(notes) == 0)
                puts("nothing went wrong");
}

int why_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_(history_free) struct history h = { 0 };
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        _cleanup_json_ json_t *all = json_array(), *notes = json_array();
        struct incident in = { 0 };
        struct error e;
        uint64_t job;

        (void)n;
        if (parse_job_id(args[0], &job, &e) < 0)
                return ctl_usage(&e);
        if (client_new(c, &cl, &e) < 0 || client_get_job(cl, job, &j, &e) < 0 || history_events(cl, job, &h, &e) < 0)
                return ctl_fail(&e);
        for (size_t i = 0; i < h.n; i++)
                feed(&in, all, notes, h.events[i]);
        if (c->format == FORMAT_TABLE) {
                printf("job %" PRIu64 " is %s", j->id, job_state_name(j->state));
                if (j->reason && *j->reason) {
                        fputs(": ", stdout);
                        print_text(stdout, j->failure && *j->failure ? j->failure : j->reason);
                }
                putchar('\n');
                print_people(all, notes);
        } else {
                _cleanup_json_ json_t *o = json_pack("{s:i, s:I, s:s, s:s, s:O, s:O}", "v", CTL_JSON_VERSION, "job", (json_int_t)job, "state", job_state_name(j->state), "reason",
                                                     j->reason ? j->reason : "", "incidents", all, "warnings", notes);

                print_object(c, o);
        }
        return EXIT_DONE;
}
