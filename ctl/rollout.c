/* SPDX-License-Identifier: Apache-2.0 */
/* rollout start, list, status, stop, resume, abort. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "ctl/print.h"
#include "ctl/rollout_args.h"

#define DAYS(n) (INT64_C(n) * 86400000)

static struct {
        const char *fact, *stages, *name, *reason;
        int64_t soak_ms, change_ms, max_failed, max_unavailable;
        struct opt_list nodes;
        double alpha;
} given = { .stages = "5,20,50,100", .soak_ms = 600000, .change_ms = 1800000, .max_unavailable = 1, .alpha = 0.05 };

const struct opt rollout_start_opts[] = {
        { "fact", 0, OPT_STRING, "KEY=VALUE", "the fact that the change shows in, and what it is to be", &given.fact, 0, 0, NULL },
        { "stages", 0, OPT_STRING, "PERCENT,...", "shares of the nodes, one after the other (5,20,50,100)", &given.stages, 0, 0, NULL },
        { "soak", 0, OPT_DURATION_MS, "TIME", "watch each changed node for so long (10m)", &given.soak_ms, 0, DAYS(30), NULL },
        { "nodes", 0, OPT_LIST, "PATTERN", "these nodes only (gpu-0*); may be given again", &given.nodes, 0, 0, NULL },
        { "name", 0, OPT_STRING, "NAME", "its name", &given.name, 0, 0, NULL },
        { "alpha", 0, OPT_DOUBLE, "P", "stop when changed nodes would fail so much more often by chance with at most this probability (0.05)", &given.alpha, 0, 0, NULL },
        { "max-failed", 0, OPT_INT, "N", "stop when more nodes than this cannot be changed or are not well afterwards (0)", &given.max_failed, 0, 65536, NULL },
        { "max-unavailable", 0, OPT_INT, "N", "change so many nodes at a time (1)", &given.max_unavailable, 1, 65536, NULL },
        { "change-timeout", 0, OPT_DURATION_MS, "TIME", "a node is changed within this, and tested within this (30m)", &given.change_ms, 1, DAYS(30), NULL },
        { 0 },
};

const struct opt rollout_set_opts[] = {
        { "reason", 0, OPT_STRING, "TEXT", "kept with the rollout", &given.reason, 0, 0, NULL },
        { 0 },
};

static void print_sheet(const struct ctl *c, Fp8ctl__V1__Rollout *const *list, size_t n) {
        static const struct sheet_column columns[] = {
                { "ROLLOUT", false, false, false }, { "STATE", false, false, true },  { "FACT", false, false, false },  { "VALUE", false, false, false },     { "STAGE", true, false, false }, { "CHANGED", true, false, false },
                { "FAILED", true, false, false },   { "AGE", true, false, false },    { "ID", true, true, false },      { "BY", false, true, false },         { "REASON", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        for (size_t i = 0; i < n; i++) {
                const Fp8ctl__V1__Rollout *r = list[i];

                sheet_add(s, "%s", r->name);
                sheet_add(s, "%s", r->state);
                sheet_add(s, "%s", r->fact);
                sheet_add(s, "%s", r->value);
                if (r->stage < r->n_stages)
                        sheet_add(s, "%u%%", r->stages[r->stage]);
                else
                        sheet_add(s, "-");
                sheet_add(s, "%u/%u", r->nodes_changed, r->nodes_total);
                sheet_add(s, "%u", r->nodes_failed);
                sheet_add(s, "%s", text_age(buf, r->started_unix_ms));
                sheet_add(s, "%" PRIu64, r->id);
                sheet_add(s, "%s", *r->user ? r->user : "-");
                sheet_add(s, "%s%s", r->waits && *r->waits ? "waits for " : "", r->waits && *r->waits ? r->waits : r->reason);
        }
        sheet_print(s, c->format == FORMAT_WIDE, stdout);
}

static void print_nodes(const Fp8ctl__V1__Rollout *r) {
        static const struct sheet_column columns[] = {
                { "NODE", false, false, false }, { "STATE", false, false, true }, { "SINCE", true, false, false }, { "FAILURES", true, false, false }, { "BEFORE", true, false, false }, { "REASON", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        for (size_t i = 0; i < r->n_nodes; i++) {
                const Fp8ctl__V1__RolloutNode *k = r->nodes[i];

                sheet_add(s, "%s", k->name);
                sheet_add(s, "%s", k->state);
                sheet_add(s, "%s", text_age(buf, k->since_unix_ms));
                sheet_add(s, "%u", k->changed_failures);
                sheet_add(s, "%u", k->other_failures);
                sheet_add(s, "%s", k->reason);
        }
        sheet_print(s, false, stdout);
}

/* whole: with its nodes and what was compared. */
static void print_rollout(struct ctl *c, Fp8ctl__V1__Rollout *r, bool whole) {
        _cleanup_json_ json_t *o = NULL;

        if (c->format == FORMAT_NAME) {
                print_text(stdout, r->name);
                putchar('\n');
        } else if (c->format == FORMAT_JSON || c->format == FORMAT_YAML) {
                o = pb_to_json_v(&r->base);
                print_object(c, o);
        } else {
                print_sheet(c, &r, 1);
                if (!whole)
                        return;
                printf("\nchanged nodes failed %u time%s in %.2f node hours, the others %u in %.2f (p = %.2g; stopped at %g)\n\n", r->changed_failures, text_s(r->changed_failures), r->changed_hours,
                       r->other_failures, r->other_hours, r->p, r->alpha);
                print_nodes(r);
        }
}

static int ask(struct ctl *c, const char *method, const ProtobufCMessage *rq, bool once, bool whole) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__Rollout *r = NULL;
        struct error e;

        if (client_new(c, &cl, &e) < 0 || (once ? client_call_once : client_call)(cl, method, rq, &fp8ctl__v1__rollout__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)&r, &e) < 0)
                return ctl_fail(&e);
        print_rollout(c, r, whole);
        return EXIT_DONE;
}

int rollout_start_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__StartRolloutRequest rq = FP8CTL__V1__START_ROLLOUT_REQUEST__INIT;
        uint32_t stages[ROLLOUT_STAGES_MAX];
        const char *value = "";
        char key[64];
        struct error e;

        if (rollout_parse_fact(given.fact, key, sizeof(key), &value, &e) < 0 || rollout_parse_stages(given.stages, stages, &rq.n_stages, &e) < 0)
                return ctl_usage(&e);
        if (!(given.alpha > 0 && given.alpha < 1)) {
                error_set(&e, -EINVAL, "--alpha: found %g, expected more than 0 and less than 1", given.alpha);
                return ctl_usage(&e);
        }
        rq.fact = key;
        rq.value = (char *)value;
        rq.stages = stages;
        rq.name = (char *)(given.name ? given.name : "");
        rq.nodes = (char **)given.nodes.values;
        rq.n_nodes = given.nodes.n;
        rq.soak_ms = (uint64_t)given.soak_ms;
        rq.change_ms = (uint64_t)given.change_ms;
        rq.alpha = given.alpha;
        rq.max_failed = (uint32_t)given.max_failed;
        rq.max_unavailable = (uint32_t)given.max_unavailable;
        return ask(c, "StartRollout", &rq.base, true, false);
}

int rollout_list_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__ListRolloutsRequest rq = FP8CTL__V1__LIST_ROLLOUTS_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__ListRolloutsReply *reply = NULL;
        _cleanup_json_ json_t *o = NULL;
        struct error e;

        if (client_new(c, &cl, &e) < 0 || client_call(cl, "ListRollouts", &rq.base, &fp8ctl__v1__list_rollouts_reply__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)&reply, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_NAME) {
                for (size_t i = 0; i < reply->n_rollouts; i++)
                        print_rollout(c, reply->rollouts[i], false);
        } else if (c->format == FORMAT_JSON || c->format == FORMAT_YAML) {
                o = pb_to_json_v(&reply->base);
                print_object(c, o);
        } else if (reply->n_rollouts == 0)
                fprintf(stderr, "there was no rollout yet\n");
        else
                print_sheet(c, reply->rollouts, reply->n_rollouts);
        return EXIT_DONE;
}

int rollout_status_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__GetRolloutRequest rq = FP8CTL__V1__GET_ROLLOUT_REQUEST__INIT;

        rq.name = n > 0 ? args[0] : (char *)"";
        return ask(c, "GetRollout", &rq.base, false, true);
}

static int set(struct ctl *c, const char *name, Fp8ctl__V1__SetRolloutRequest__Action action) {
        Fp8ctl__V1__SetRolloutRequest rq = FP8CTL__V1__SET_ROLLOUT_REQUEST__INIT;

        rq.name = (char *)(name ? name : "");
        rq.action = action;
        rq.reason = (char *)(given.reason ? given.reason : "");
        return ask(c, "SetRollout", &rq.base, true, false);
}

int rollout_stop_run(struct ctl *c, int n, char **args) {
        return set(c, n > 0 ? args[0] : NULL, FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__STOP);
}

int rollout_resume_run(struct ctl *c, int n, char **args) {
        return set(c, n > 0 ? args[0] : NULL, FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__RESUME);
}

int rollout_abort_run(struct ctl *c, int n, char **args) {
        return set(c, n > 0 ? args[0] : NULL, FP8CTL__V1__SET_ROLLOUT_REQUEST__ACTION__ABORT);
}
