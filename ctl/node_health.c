/* SPDX-License-Identifier: Apache-2.0 */
/* node test, and the health of a node for `node describe`. */
#include "ctl/node_health.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>

#include "base/cleanup.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "ctl/print.h"

#define TEST_TIMEOUT_MS 125000 /* longer than the controller waits for the node */

static void print_checks(const Fp8ctl__V1__Node *nd) {
        static const struct sheet_column columns[] = {
                { "CHECK", false, false, false }, { "OF", false, false, false }, { "VERDICT", false, false, true }, { "SINCE", true, false, false }, { "EVIDENCE", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        if (nd->n_checks == 0)
                return;
        for (size_t i = 0; i < nd->n_checks; i++) {
                const Fp8ctl__V1__NodeCheck *k = nd->checks[i];

                sheet_add(s, "%s", k->check);
                sheet_add(s, "%s", *k->subject ? k->subject : "-");
                sheet_add(s, "%s", k->verdict);
                sheet_add(s, "%s", text_age(buf, k->since_unix_ms));
                sheet_add(s, "%s", k->evidence);
        }
        putchar('\n');
        sheet_print(s, false, stdout);
}

static void print_findings(const Fp8ctl__V1__Node *nd) {
        static const struct sheet_column columns[] = {
                { "FOUND", false, false, false }, { "CHECK", false, false, false }, { "OF", false, false, false }, { "TIMES", true, false, false }, { "DONE", false, false, false }, { "TEXT", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        if (nd->n_findings == 0)
                return;
        for (size_t i = 0; i < nd->n_findings; i++) {
                const Fp8ctl__V1__NodeFinding *f = nd->findings[i];

                sheet_add(s, "%s", text_time(buf, f->unix_ms));
                sheet_add(s, f->code ? "%s %u" : "%s", f->check, f->code);
                sheet_add(s, "%s", *f->subject ? f->subject : "-");
                sheet_add(s, "%u", f->count);
                sheet_add(s, "%s", f->action);
                sheet_add(s, "%s", f->text);
        }
        putchar('\n');
        sheet_print(s, false, stdout);
}

static void print_facts(const Fp8ctl__V1__Node *nd) {
        static const struct sheet_column columns[] = { { "FACT", false, false, false }, { "VALUE", false, false, false } };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));

        if (nd->n_facts == 0)
                return;
        for (size_t i = 0; i < nd->n_facts; i++) {
                sheet_add(s, "%s", nd->facts[i]->key);
                sheet_add(s, "%s", nd->facts[i]->value);
        }
        printf("\nfingerprint %s\n", nd->fingerprint);
        sheet_print(s, false, stdout);
}

static void print_test(const Fp8ctl__V1__NodeTest *t) {
        static const struct sheet_column columns[] = {
                { "PART", false, false, false }, { "DEVICE", true, false, false }, { "VERDICT", false, false, true }, { "VALUE", true, false, false }, { "TEXT", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        printf("test of %s: %s in %.1f s%s%s\n", text_time(buf, t->unix_ms), t->passed ? "passed" : "not passed", t->ms / 1e3, *t->error ? ": " : "", t->error);
        for (size_t i = 0; i < t->n_parts; i++) {
                const Fp8ctl__V1__NodeTestPart *p = t->parts[i];

                sheet_add(s, "%s", p->name);
                sheet_add(s, p->device < 0 ? "-" : "%d", p->device);
                sheet_add(s, "%s", p->verdict);
                sheet_add(s, isnan(p->value) ? "-" : "%.4g %s", p->value, p->unit);
                sheet_add(s, "%s", p->text);
        }
        if (t->n_parts)
                sheet_print(s, false, stdout);
}

void node_health_print(const Fp8ctl__V1__Node *nd) {
        if (*nd->rma)
                printf("\nto be replaced: %s\n", nd->rma);
        print_checks(nd);
        print_findings(nd);
        if (nd->n_tests) {
                putchar('\n');
                print_test(nd->tests[nd->n_tests - 1]);
        }
        print_facts(nd);
}

static struct {
        bool pairwise, all, all_reduce;
        double at_least;
} given;

const struct opt node_test_opts[] = {
        { "pairwise", 0, OPT_FLAG, NULL, "measure the network between the nodes, in pairs", &given.pairwise, 0, 0, NULL },
        { "all-pairs", 0, OPT_FLAG, NULL, "with --pairwise: every pair, not only as many as tell a node from a link", &given.all, 0, 0, NULL },
        { "all-reduce", 0, OPT_FLAG, NULL, "with --pairwise: sums as ranks make them instead of transfers", &given.all_reduce, 0, 0, NULL },
        { "at-least", 0, OPT_DOUBLE, "GB/S", "with --pairwise: what has less is slow, whatever is usual", &given.at_least, 0, 0, NULL },
        { 0 },
};

int node_test_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__TestNodeRequest rq = FP8CTL__V1__TEST_NODE_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__NodeTest *t = NULL;
        _cleanup_json_ json_t *o = NULL;
        struct error e;

        if (given.pairwise)
                return node_pairs(c, n, args, given.all, given.all_reduce, given.at_least);
        if (n > 1 || given.all || given.all_reduce || given.at_least > 0) {
                error_set(&e, -EINVAL, n > 1 ? "node test: found %d nodes, expected one, or --pairwise" : "node test: found --all-pairs, --all-reduce or --at-least, expected --pairwise with it", n);
                return ctl_usage(&e);
        }
        rq.name = args[0];
        if (client_new(c, &cl, &e) < 0 || client_call_once(cl, "TestNode", &rq.base, &fp8ctl__v1__node_test__descriptor, TEST_TIMEOUT_MS, (ProtobufCMessage **)&t, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_TABLE) {
                print_test(t);
        } else {
                o = pb_to_json_v(&t->base);
                print_object(c, o);
        }
        return t->passed ? EXIT_DONE : EXIT_FAILED;
}
