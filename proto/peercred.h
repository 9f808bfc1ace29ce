/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * gRPC does not show a Unix socket's peer credentials.  So a side socket (PATH.cred) checks SO_PEERCRED and hands out a short-lived random
 * token bound to the uid; the client puts it into the call's metadata ("fp8ctl-token").  Used on group sockets only.
 */
#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/loop.h"

#define PEERCRED_TOKEN_SIZE 65 /* 64 hex digits and NUL */

struct peercred;
int peercred_new(struct loop *l, const char *path, mode_t mode, const char *group, struct peercred **ret, struct error *e);
struct peercred *peercred_free(struct peercred *p);
/* True and who, while the token lives (60 s). */
bool peercred_lookup(struct peercred *p, const char *token, uid_t *ret_uid, gid_t *ret_gid);
/* Client side; blocks shortly. */
int peercred_fetch(const char *path, char ret_token[PEERCRED_TOKEN_SIZE], struct error *e);
