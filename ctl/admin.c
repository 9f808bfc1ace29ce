/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "ctl/handlers.h"
#include "proto/job_spec.h"
#include "proto/tls.h"

#define DAYS_DEFAULT 365

static struct {
        const char *out, *name;
        struct opt_list ips, nodes, users;
        int64_t days;
} given = { .name = "fp8ctl", .days = DAYS_DEFAULT };

const struct opt admin_certs_opts[] = {
        { "out", 0, OPT_STRING, "DIR", "where the files go (made with mode 0700)", &given.out, 0, 0, NULL },
        { "ip", 0, OPT_LIST, "IP", "an address of the controller; may be given again", &given.ips, 0, 0, NULL },
        { "node", 0, OPT_LIST, "NAME", "a certificate for this node; may be given again", &given.nodes, 0, 0, NULL },
        { "user", 0, OPT_LIST, "NAME", "a certificate for this user; may be given again", &given.users, 0, 0, NULL },
        { "name", 0, OPT_STRING, "NAME", "name of a new CA", &given.name, 0, 0, NULL },
        { "days", 0, OPT_INT, "N", "how long they are valid", &given.days, 1, 36500, NULL },
        { 0 },
};

static int make(const char *role, const char *name, const char *const *ips, struct error *e) {
        _cleanup_free_ char *cn = name ? file_path("%s:%s", role, name) : strdup(role);
        int r;

        if (!cn)
                return error_set(e, -ENOMEM, "no memory");
        r = tls_make_cert(given.out, cn, ips, (int)given.days, e);
        if (r == -EEXIST) {
                printf("%s has a certificate already\n", cn);
                return 0;
        }
        if (r >= 0)
                printf("made a certificate for %s\n", cn);
        return r;
}

static int make_all(struct error *e) {
        const char *ips[OPT_LIST_MAX + 1] = { NULL };
        int r;

        memcpy(ips, given.ips.values, given.ips.n * sizeof(ips[0]));
        r = file_mkdir_p(given.out, 0700, e);
        if (r < 0)
                return r;
        r = tls_make_ca(given.out, given.name, (int)given.days, e);
        if (r < 0 && r != -EEXIST)
                return r;
        printf(r == -EEXIST ? "using the CA of %s\n" : "made a CA in %s\n", given.out);
        r = make("controller", NULL, given.ips.n ? ips : NULL, e);
        if (r >= 0)
                r = make("admin", NULL, NULL, e);
        for (size_t i = 0; r >= 0 && i < given.nodes.n; i++)
                r = make("node", given.nodes.values[i], NULL, e);
        for (size_t i = 0; r >= 0 && i < given.users.n; i++)
                r = make("user", given.users.values[i], NULL, e);
        return r;
}

int admin_certs_run(struct ctl *c, int n, char **args) {
        struct error e;

        if (!given.out) {
                error_set(&e, -EINVAL, "admin certs: found no --out, expected --out DIR");
                return ctl_usage(&e);
        }
        if (given.ips.n == 0)
                fprintf(stderr, "fp8ctl: no --ip: clients will not accept the controller at a network address\n");
        if (make_all(&e) < 0)
                return ctl_fail(&e);
        return EXIT_DONE;
}

int admin_schema_run(struct ctl *c, int n, char **args) {
        return job_schema_print_markdown(stdout) < 0 ? EXIT_FAILED : EXIT_DONE;
}
