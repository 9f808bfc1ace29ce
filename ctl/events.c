/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "ctl/handlers.h"
#include "ctl/job_view.h"

#define PAGE 500
#define WAIT_MS 5000

static struct {
        bool follow;
        int64_t after;
} given;

const struct opt events_opts[] = {
        { "follow", 'f', OPT_FLAG, NULL, "go on with new ones; until the job is over, when one is given", &given.follow, 0, 0, NULL },
        { "after", 0, OPT_INT, "ID", "only events after this one", &given.after, 0, INT64_MAX, NULL },
        { 0 },
};

static void print_page(struct ctl *c, const Fp8ctl__V1__ListEventsReply *page, json_t *all) {
        for (size_t i = 0; i < page->n_events; i++) {
                const Fp8ctl__V1__Event *ev = page->events[i];

                if (c->format == FORMAT_TABLE || c->format == FORMAT_WIDE) {
                        if (c->format == FORMAT_WIDE)
                                printf("%" PRIu64 " epoch %" PRIu64 " %s ", ev->id, ev->epoch, ev->severity && *ev->severity ? ev->severity : "-");
                        event_print(ev, stdout);
                } else if (c->format == FORMAT_NAME)
                        printf("%" PRIu64 "\n", ev->id);
                else if (all)
                        json_array_append_new(all, pb_to_json(&ev->base));
                else {
                        _cleanup_json_ json_t *o = pb_to_json_v(&ev->base);

                        print_object_line(o);
                }
        }
        fflush(stdout);
}

/* Is there nothing more to come? The state is asked for before the events, so that none can slip between. */
static int job_over(struct client *cl, uint64_t job, bool *ret, struct error *e) {
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        int r;

        *ret = false;
        if (job == 0)
                return 0;
        r = client_get_job(cl, job, &j, e);
        if (r >= 0)
                *ret = job_state_is_end(j->state);
        return r;
}

int events_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_json_ json_t *all = NULL, *o = NULL;
        uint64_t job = 0, after = (uint64_t)given.after;
        struct error e;

        if (n && parse_job_id(args[0], &job, &e) < 0)
                return ctl_usage(&e);
        if ((c->format == FORMAT_JSON || c->format == FORMAT_YAML) && !given.follow)
                all = json_array();
        if (client_new(c, &cl, &e) < 0)
                return ctl_fail(&e);
        for (;;) {
                _cleanup_message_ Fp8ctl__V1__ListEventsReply *page = NULL;
                bool over;

                if (job_over(cl, job, &over, &e) < 0 || client_list_events(cl, job, after, PAGE, given.follow && !over ? WAIT_MS : 0, &page, &e) < 0)
                        return ctl_fail(&e);
                print_page(c, page, all);
                for (size_t i = 0; i < page->n_events; i++)
                        if (page->events[i]->id > after)
                                after = page->events[i]->id;
                if (page->n_events == 0 && (over || !given.follow))
                        break;
        }
        if (all) {
                o = json_pack("{s:i, s:O}", "v", CTL_JSON_VERSION, "events", all);
                print_object(c, o);
        }
        return EXIT_DONE;
}
