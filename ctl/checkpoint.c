/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>

#include "base/cleanup.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "ctl/print.h"

static void print_sheet(const struct ctl *c, const Fp8ctl__V1__ListCheckpointsReply *reply) {
        static const struct sheet_column columns[] = {
                { "STEP", true, false, false }, { "EPOCH", true, false, false }, { "ATTEMPT", true, true, false },
                { "SIZE", true, false, false }, { "COMMITTED", false, false, false }, { "PATH", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        for (size_t i = 0; i < reply->n_checkpoints; i++) {
                const Fp8ctl__V1__Checkpoint *k = reply->checkpoints[i];

                sheet_add(s, "%" PRIu64, k->step);
                sheet_add(s, "%" PRIu64, k->epoch);
                sheet_add(s, "%u", k->attempt);
                sheet_add(s, "%s", text_bytes(buf, k->bytes));
                sheet_add(s, "%s", text_time(buf, k->committed_unix_ms));
                sheet_add(s, "%s", k->path);
        }
        sheet_print(s, c->format == FORMAT_WIDE, stdout);
}

int checkpoint_list_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__ListCheckpointsRequest rq = FP8CTL__V1__LIST_CHECKPOINTS_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__ListCheckpointsReply *reply = NULL;
        _cleanup_json_ json_t *o = NULL;
        struct error e;

        if (parse_job_id(args[0], &rq.job_id, &e) < 0)
                return ctl_usage(&e);
        if (client_new(c, &cl, &e) < 0 || client_call(cl, "ListCheckpoints", &rq.base, &fp8ctl__v1__list_checkpoints_reply__descriptor, CALL_TIMEOUT_MS,
                                                      (ProtobufCMessage **)&reply, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_NAME) {
                for (size_t i = 0; i < reply->n_checkpoints; i++) {
                        print_text(stdout, reply->checkpoints[i]->path);
                        putchar('\n');
                }
        } else if (c->format == FORMAT_JSON || c->format == FORMAT_YAML) {
                o = pb_to_json_v(&reply->base);
                json_object_set_new(o, "job", json_integer((json_int_t)rq.job_id));
                print_object(c, o);
        } else if (reply->n_checkpoints == 0)
                fprintf(stderr, "job %" PRIu64 " has no committed checkpoint\n", rq.job_id);
        else
                print_sheet(c, reply);
        return EXIT_DONE;
}
