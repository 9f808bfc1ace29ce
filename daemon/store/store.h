/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the controller must not forget: keys and values under transactions with a compare.  SQLite (WAL, synchronous=FULL) first; etcd's Txn has the same form.
 *
 * Keys: "cluster" ClusterRecord; "job/<id>" JobRecord; "epoch/<job>" the live epoch, decimal text; "node/<name>" NodeRecord;
 *       "commit/<job>/<step, 20 digits>" CheckpointRecord; "event/<id, 20 digits>" EventRecord; "request/<request id>" job id, decimal text;
 *       "rollout/<id, 20 digits>" RolloutRecord; "rollout-node/<rollout>/<name>" RolloutNodeRecord.
 * All calls block; the controller's I/O layer runs them in a thread of their own.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define STORE_SCHEMA 1
#define STORE_KEY_MAX 200

enum store_op_kind {
        STORE_PUT,
        STORE_DELETE,
        STORE_EXPECT, /* the transaction fails as a whole unless the key has exactly this value (len 0: is absent) */
};

struct store_op {
        enum store_op_kind kind;
        const char *key;
        const void *value;
        size_t len;
};

struct store;

/* Schema newer than STORE_SCHEMA: -EPROTONOSUPPORT with both numbers; another process holds it: -EBUSY. */
int store_open(const char *path, struct store **ret, struct error *e);
struct store *store_close(struct store *s);
/* All or nothing, durable on return. 0, -ECANCELED (an EXPECT did not hold: nothing written), or another negative errno. */
int store_commit(struct store *s, const struct store_op *ops, size_t n, struct error *e);
/* Calls fn for each key with this prefix, in key order; stops at its first non-zero return and returns that. */
int store_scan(struct store *s, const char *prefix, int (*fn)(void *arg, const char *key, const void *value, size_t len), void *arg, struct error *e);
