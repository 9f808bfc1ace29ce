/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * mTLS files, and their making (fp8ctl admin certs).  A certificate's role is in its subject: CN = "admin", "user:NAME" or
 * "node:NAME"; hosts carry IP SANs (gRPC's `localhost` leaks and resolves slowly).  Keys are EC P-256, files of mode 0600.
 */
#include <stddef.h>

#include "base/error.h"

struct tls_files {
        const char *ca, *cert, *key; /* PEM paths */
};

/* A new CA in dir (ca.pem, ca.key); -EEXIST when there is one. */
int tls_make_ca(const char *dir, const char *name, int days, struct error *e);
/*
 * NAME.pem and NAME.key in dir, signed by dir's CA. cn: "admin", "user:NAME", "node:NAME", "controller". ips: NULL-terminated, may be NULL. -EEXIST when there is one
 * of this cn, -EINVAL when the files are those of another.
 */
int tls_make_cert(const char *dir, const char *cn, const char *const *ips, int days, struct error *e);
