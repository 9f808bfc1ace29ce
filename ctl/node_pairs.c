/* SPDX-License-Identifier: Apache-2.0 */
/* node test --pairwise: the network between nodes, and who is slow. */
#include <inttypes.h>
#include <math.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "ctl/client.h"
#include "ctl/node_health.h"
#include "ctl/print.h"

#define TEST_TIMEOUT_MS 26000000 /* the longest: 25 s for each of 1,023 rounds */

static void print_pairs(const Fp8ctl__V1__PairTest *t) {
        static const struct sheet_column columns[] = {
                { "ROUND", true, false, false }, { "NODE", false, false, false }, { "NODE", false, false, false }, { "GB/s", true, false, false }, { "LATENCY", true, false, false }, { "BY", false, false, false }, { "VERDICT", false, false, true }, { "TEXT", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));

        for (size_t i = 0; i < t->n_pairs; i++) {
                const Fp8ctl__V1__PairFigure *f = t->pairs[i];
                bool had = !isnan(f->gbs);

                sheet_add(s, "%u", f->round + 1);
                sheet_add(s, "%s", f->a);
                sheet_add(s, "%s", f->b);
                sheet_add(s, had ? "%.3g" : "-", f->gbs);
                sheet_add(s, had ? "%.0f us" : "-", f->latency_us);
                sheet_add(s, "%s", !had ? "-" : *f->by ? f->by : f->rdma ? "rdma" : "tcp");
                sheet_add(s, "%s", f->wrong ? "wrong" : !had ? "failed" : f->slow ? "slow" : "ok");
                sheet_add(s, "%s", f->error);
        }
        sheet_print(s, false, stdout);
        printf("%" PRIu32 " round%s in %.1f s; %.3g GB/s is usual\n", t->rounds, text_s(t->rounds), t->ms / 1e3, t->usual_gbs);
        for (size_t i = 0; i < t->n_wrong_nodes; i++) {
                print_text(stdout, t->wrong_nodes[i]);
                printf(" makes wrong sums with more than half of the others; it gets no ranks until `fp8ctl node uncordon`\n");
        }
        for (size_t i = 0; i < t->n_slow_nodes; i++) {
                print_text(stdout, t->slow_nodes[i]);
                printf(" is slow with more than half of the others\n");
        }
        if (t->slow_links)
                printf("%" PRIu32 " link%s slow between nodes that are not\n", t->slow_links, t->slow_links == 1 ? " is" : "s are");
}

int node_pairs(struct ctl *c, int n, char **args, bool all, bool all_reduce, double at_least) {
        Fp8ctl__V1__TestPairsRequest rq = FP8CTL__V1__TEST_PAIRS_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__PairTest *t = NULL;
        _cleanup_json_ json_t *o = NULL;
        struct error e;

        rq.names = args;
        rq.n_names = (size_t)n;
        rq.all = all;
        rq.all_reduce = all_reduce;
        rq.at_least = at_least;
        if (client_new(c, &cl, &e) < 0 || client_call_once(cl, "TestPairs", &rq.base, &fp8ctl__v1__pair_test__descriptor, TEST_TIMEOUT_MS, (ProtobufCMessage **)&t, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_TABLE) {
                print_pairs(t);
        } else {
                o = pb_to_json_v(&t->base);
                print_object(c, o);
        }
        return t->n_slow_nodes || t->slow_links ? EXIT_FAILED : EXIT_DONE;
}
