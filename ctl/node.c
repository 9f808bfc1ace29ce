/* SPDX-License-Identifier: Apache-2.0 */
/* node list, get, describe, cordon, drain, uncordon. */
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "ctl/client.h"
#include "ctl/handlers.h"
#include "ctl/node_health.h"
#include "ctl/print.h"

static struct {
        const char *reason;
        int64_t after_ms, for_ms;
} given;

const struct opt node_cordon_opts[] = {
        { "reason", 0, OPT_STRING, "TEXT", "kept with the node", &given.reason, 0, 0, NULL },
        { 0 },
};

const struct opt node_drain_opts[] = {
        { "reason", 0, OPT_STRING, "TEXT", "kept with the node", &given.reason, 0, 0, NULL },
        { "in", 0, OPT_DURATION_MS, "TIME", "begin so much later (90s, 2h)", &given.after_ms, 0, INT64_C(366) * 86400000, NULL },
        { "for", 0, OPT_DURATION_MS, "TIME", "and take ranks again after so long", &given.for_ms, 0, INT64_C(366) * 86400000, NULL },
        { 0 },
};

static void print_sheet(const struct ctl *c, Fp8ctl__V1__Node *const *nodes, size_t n) {
        static const struct sheet_column columns[] = {
                { "NODE", false, false, false },  { "STATE", false, false, true },   { "HEALTH", false, false, true },  { "DEVICES", true, false, false }, { "FREE", true, false, false },
                { "JOBS", false, false, false },  { "CPUS", true, false, false },    { "MEMORY", true, false, false },  { "SEEN", true, false, false },
                { "VERSION", false, true, false }, { "KERNEL", false, true, false }, { "ADDRESS", false, true, false }, { "FINGERPRINT", false, true, false }, { "REASON", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        char buf[TEXT_BUF];

        for (size_t i = 0; i < n; i++) {
                const Fp8ctl__V1__Node *nd = nodes[i];
                char jobs[256] = "";
                size_t free_devices = 0, len = 0;
                uint64_t last = 0;

                for (size_t d = 0; d < nd->n_devices; d++) {
                        uint64_t job = nd->devices[d]->job_id;

                        free_devices += job == 0;
                        if (job && job != last && len < sizeof(jobs))
                                len += (size_t)snprintf(jobs + len, sizeof(jobs) - len, "%s%" PRIu64, len ? "," : "", job);
                        last = job;
                }
                sheet_add(s, "%s", nd->name);
                sheet_add(s, nd->duty && *nd->duty && strcmp(nd->duty, "open") != 0 ? "%s,%s" : "%s", nd->state, nd->duty);
                sheet_add(s, *nd->rma ? "%s,rma" : "%s", *nd->health ? nd->health : "-");
                sheet_add(s, "%zu %s", nd->n_devices, nd->n_devices ? nd->devices[0]->kind : "");
                sheet_add(s, "%zu", free_devices);
                sheet_add(s, "%s", jobs);
                sheet_add(s, "%u", nd->cpus);
                sheet_add(s, "%s", text_bytes(buf, nd->memory_bytes));
                sheet_add(s, "%s", text_age(buf, nd->last_seen_unix_ms));
                sheet_add(s, "%s", nd->version);
                sheet_add(s, "%s", nd->kernel);
                sheet_add(s, "%s", nd->address);
                sheet_add(s, "%.8s", *nd->fingerprint ? nd->fingerprint : "-");
                sheet_add(s, "%s", *nd->reason ? nd->reason : *nd->health_reason ? nd->health_reason : nd->duty_reason);
        }
        sheet_print(s, c->format == FORMAT_WIDE, stdout);
}

int node_list_run(struct ctl *c, int n, char **args) {
        Fp8ctl__V1__ListNodesRequest rq = FP8CTL__V1__LIST_NODES_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__ListNodesReply *reply = NULL;
        _cleanup_json_ json_t *o = NULL;
        struct error e;

        if (client_new(c, &cl, &e) < 0 || client_call(cl, "ListNodes", &rq.base, &fp8ctl__v1__list_nodes_reply__descriptor, CALL_TIMEOUT_MS,
                                                      (ProtobufCMessage **)&reply, &e) < 0)
                return ctl_fail(&e);
        if (c->format == FORMAT_NAME) {
                for (size_t i = 0; i < reply->n_nodes; i++) {
                        print_text(stdout, reply->nodes[i]->name);
                        putchar('\n');
                }
        } else if (c->format == FORMAT_JSON || c->format == FORMAT_YAML) {
                o = pb_to_json_v(&reply->base);
                print_object(c, o);
        } else if (reply->n_nodes == 0)
                fprintf(stderr, "no nodes have registered\n");
        else
                print_sheet(c, reply->nodes, reply->n_nodes);
        return EXIT_DONE;
}

static int get_node(struct ctl *c, const char *name, Fp8ctl__V1__Node **ret, struct error *e) {
        Fp8ctl__V1__GetNodeRequest rq = FP8CTL__V1__GET_NODE_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        int r;

        rq.name = (char *)name;
        r = client_new(c, &cl, e);
        if (r < 0)
                return r;
        return client_call(cl, "GetNode", &rq.base, &fp8ctl__v1__node__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)ret, e);
}

static void print_node(struct ctl *c, Fp8ctl__V1__Node *nd) {
        _cleanup_json_ json_t *o = NULL;

        if (c->format == FORMAT_NAME) {
                print_text(stdout, nd->name);
                putchar('\n');
        } else if (c->format == FORMAT_JSON || c->format == FORMAT_YAML) {
                o = pb_to_json_v(&nd->base);
                print_object(c, o);
        } else
                print_sheet(c, &nd, 1);
}

int node_get_run(struct ctl *c, int n, char **args) {
        _cleanup_message_ Fp8ctl__V1__Node *nd = NULL;
        struct error e;

        if (get_node(c, args[0], &nd, &e) < 0)
                return ctl_fail(&e);
        print_node(c, nd);
        return EXIT_DONE;
}

int node_describe_run(struct ctl *c, int n, char **args) {
        static const struct sheet_column columns[] = {
                { "DEVICE", true, false, false }, { "KIND", false, false, false }, { "NAME", false, false, false },
                { "MEMORY", true, false, false }, { "JOB", true, false, false },   { "RANK", true, false, false },
                { "PCI", false, false, false },   { "NVLINKS", true, false, false }, { "RAIL", false, false, false },
                { "HEALTH", false, false, false },
        };
        _cleanup_(sheet_freep) struct sheet *s = sheet_new(columns, ARRAY_SIZE(columns));
        _cleanup_message_ Fp8ctl__V1__Node *nd = NULL;
        _cleanup_json_ json_t *o = NULL;
        char buf[TEXT_BUF];
        struct error e;

        if (get_node(c, args[0], &nd, &e) < 0)
                return ctl_fail(&e);
        if (c->format != FORMAT_TABLE) {
                o = pb_to_json_v(&nd->base);
                print_object(c, o);
                return EXIT_DONE;
        }
        c->format = FORMAT_WIDE;
        print_sheet(c, &nd, 1);
        printf("\nfolder %s\nboot %s, worker incarnation %" PRIu64 "\n%" PRIu64 " message%s dropped by the worker since it started: of another epoch, incarnation or lease\n\n",
               nd->dir && *nd->dir ? nd->dir : "-", nd->boot_id, nd->incarnation, nd->dropped_messages, text_s(nd->dropped_messages));
        for (size_t d = 0; d < nd->n_devices; d++) {
                const Fp8ctl__V1__NodeDevice *dev = nd->devices[d];

                sheet_add(s, "%u", dev->index);
                sheet_add(s, "%s", dev->kind);
                sheet_add(s, "%s", dev->name);
                sheet_add(s, "%s", dev->memory_bytes ? text_bytes(buf, dev->memory_bytes) : "-");
                sheet_add(s, dev->job_id ? "%" PRIu64 : "-", dev->job_id);
                sheet_add(s, dev->job_id ? "%u" : "-", dev->rank);
                sheet_add(s, "%s", *dev->pci ? dev->pci : "-");
                sheet_add(s, dev->nvlinks ? "%u" : "-", dev->nvlinks);
                sheet_add(s, "%s", *dev->rail ? dev->rail : "-");
                sheet_add(s, "%s", *dev->health ? dev->health : "ok");
        }
        sheet_print(s, false, stdout);
        node_tree_print(nd, stdout);
        node_health_print(nd);
        return EXIT_DONE;
}

static int set_duty(struct ctl *c, const char *name, Fp8ctl__V1__SetNodeRequest__Duty duty) {
        Fp8ctl__V1__SetNodeRequest rq = FP8CTL__V1__SET_NODE_REQUEST__INIT;
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_message_ Fp8ctl__V1__Node *nd = NULL;
        struct error e;

        rq.name = (char *)name;
        rq.duty = duty;
        rq.reason = given.reason ? (char *)given.reason : (char *)"";
        rq.after_ms = (uint64_t)given.after_ms;
        rq.for_ms = (uint64_t)given.for_ms;
        if (client_new(c, &cl, &e) < 0 || client_call(cl, "SetNode", &rq.base, &fp8ctl__v1__node__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)&nd, &e) < 0)
                return ctl_fail(&e);
        print_node(c, nd);
        return EXIT_DONE;
}

int node_cordon_run(struct ctl *c, int n, char **args) {
        return set_duty(c, args[0], FP8CTL__V1__SET_NODE_REQUEST__DUTY__CORDON);
}

int node_drain_run(struct ctl *c, int n, char **args) {
        return set_duty(c, args[0], FP8CTL__V1__SET_NODE_REQUEST__DUTY__DRAIN);
}

int node_uncordon_run(struct ctl *c, int n, char **args) {
        return set_duty(c, args[0], FP8CTL__V1__SET_NODE_REQUEST__DUTY__OPEN);
}
