/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store on SQLite: one table of keys and values.  WAL with synchronous=FULL makes a commit durable when it returns (sqlite.org/pragma.html#pragma_synchronous);
 * an exclusive lock held for the life of the connection keeps a second controller out.
 */
#include <errno.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/store/store.h"

struct store {
        sqlite3 *db;
        sqlite3_stmt *put, *remove, *get;
};

static int failed(sqlite3 *db, struct error *e, const char *what) {
        int code = sqlite3_extended_errcode(db);
        int err = EIO;

        switch (code & 0xff) {
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
                err = EBUSY;
                break;
        case SQLITE_FULL:
                err = ENOSPC;
                break;
        case SQLITE_READONLY:
                err = EROFS;
                break;
        case SQLITE_NOMEM:
                err = ENOMEM;
                break;
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
                err = EBADMSG;
                break;
        default:
                break;
        }
        return error_set(e, -err, "store: %s: %s (SQLite %d)", what, sqlite3_errmsg(db), code);
}

static int execute(sqlite3 *db, const char *sql, struct error *e) {
        return sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : failed(db, e, sql);
}

static int check_schema(sqlite3 *db, struct error *e) {
        sqlite3_stmt *s = NULL;
        int version = -1, r;

        if (sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &s, NULL) == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW)
                version = sqlite3_column_int(s, 0);
        sqlite3_finalize(s);
        if (version < 0)
                return failed(db, e, "cannot read the schema's version");
        if (version > STORE_SCHEMA)
                return error_set(e, -EPROTONOSUPPORT, "store: found schema %d, expected at most %d: a newer fp8d wrote it", version, STORE_SCHEMA);
        if (version == STORE_SCHEMA)
                return 0;
        r = execute(db, "BEGIN IMMEDIATE", e);
        if (r == 0)
                r = execute(db, "CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID", e);
        if (r == 0)
                r = execute(db, "PRAGMA user_version = 1", e);
        return r < 0 ? r : execute(db, "COMMIT", e);
}
_Static_assert(STORE_SCHEMA == 1, "check_schema makes schema 1: add the step from 1 to the next there");

static int open_db(const char *path, struct store *s, struct error *e) {
        int r;

        if (sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, NULL) != SQLITE_OK) {
                if (!s->db)
                        return error_errno(e, ENOMEM, "store %s", path);
                return failed(s->db, e, path);
        }
        /* EXCLUSIVE before WAL: the lock is taken by the first write and kept (sqlite.org/wal.html, "Use of WAL Without Shared-Memory"). */
        r = execute(s->db, "PRAGMA locking_mode = EXCLUSIVE", e);
        if (r == 0)
                r = execute(s->db, "PRAGMA journal_mode = WAL", e);
        if (r == 0)
                r = execute(s->db, "PRAGMA synchronous = FULL", e);
        if (r == 0)
                r = execute(s->db, "BEGIN IMMEDIATE; COMMIT", e);
        if (r == 0)
                r = check_schema(s->db, e);
        if (r < 0)
                return r == -EBUSY ? error_set(e, -EBUSY, "store %s is in use by another fp8d", path) : r;
        if (sqlite3_prepare_v3(s->db, "INSERT INTO kv VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value", -1, SQLITE_PREPARE_PERSISTENT, &s->put, NULL) !=
                    SQLITE_OK ||
            sqlite3_prepare_v3(s->db, "DELETE FROM kv WHERE key = ?1", -1, SQLITE_PREPARE_PERSISTENT, &s->remove, NULL) != SQLITE_OK ||
            sqlite3_prepare_v3(s->db, "SELECT value FROM kv WHERE key = ?1", -1, SQLITE_PREPARE_PERSISTENT, &s->get, NULL) != SQLITE_OK)
                return failed(s->db, e, "prepare");
        return 0;
}

int store_open(const char *path, struct store **ret, struct error *e) {
        struct store *s = calloc(1, sizeof(*s));
        int r;

        if (!s)
                return error_errno(e, ENOMEM, "store");
        r = open_db(path, s, e);
        if (r < 0) {
                store_close(s);
                return r;
        }
        *ret = s;
        return 0;
}

struct store *store_close(struct store *s) {
        if (!s)
                return NULL;
        sqlite3_finalize(s->put);
        sqlite3_finalize(s->remove);
        sqlite3_finalize(s->get);
        sqlite3_close(s->db);
        free(s);
        return NULL;
}

/* 0, -ECANCELED, or the error of SQLite. */
static int check_expected(struct store *s, const struct store_op *op, struct error *e) {
        int r, step;

        sqlite3_bind_text(s->get, 1, op->key, -1, SQLITE_STATIC);
        step = sqlite3_step(s->get);
        if (step == SQLITE_DONE)
                r = op->len == 0 ? 0 : error_set(e, -ECANCELED, "store: %s is absent, expected a value of %zu bytes", op->key, op->len);
        else if (step != SQLITE_ROW)
                r = failed(s->db, e, op->key);
        else if (op->len == 0)
                r = error_set(e, -ECANCELED, "store: %s is there, expected it absent", op->key);
        else if ((size_t)sqlite3_column_bytes(s->get, 0) != op->len || memcmp(sqlite3_column_blob(s->get, 0), op->value, op->len) != 0)
                r = error_set(e, -ECANCELED, "store: %s has another value than expected: somebody else changed it", op->key);
        else
                r = 0;
        sqlite3_reset(s->get);
        sqlite3_clear_bindings(s->get);
        return r;
}

static int apply(struct store *s, const struct store_op *op, struct error *e) {
        sqlite3_stmt *q = op->kind == STORE_PUT ? s->put : s->remove;
        int r = 0;

        if (!op->key || !op->key[0] || strlen(op->key) > STORE_KEY_MAX)
                return error_set(e, -EINVAL, "store: a key of %zu bytes, expected 1 to %d", op->key ? strlen(op->key) : 0, STORE_KEY_MAX);
        if (op->kind == STORE_EXPECT)
                return check_expected(s, op, e);
        sqlite3_bind_text(q, 1, op->key, -1, SQLITE_STATIC);
        if (op->kind == STORE_PUT)
                sqlite3_bind_blob64(q, 2, op->len ? op->value : "", op->len, SQLITE_STATIC);
        if (sqlite3_step(q) != SQLITE_DONE)
                r = failed(s->db, e, op->key);
        sqlite3_reset(q);
        sqlite3_clear_bindings(q);
        return r;
}

int store_commit(struct store *s, const struct store_op *ops, size_t n, struct error *e) {
        int r = execute(s->db, "BEGIN IMMEDIATE", e);

        if (r < 0)
                return r;
        for (size_t i = 0; i < n && r == 0; i++)
                r = apply(s, &ops[i], e);
        if (r == 0)
                r = execute(s->db, "COMMIT", e);
        if (r < 0)
                sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
        return r;
}

int store_scan(struct store *s, const char *prefix, int (*fn)(void *arg, const char *key, const void *value, size_t len), void *arg, struct error *e) {
        sqlite3_stmt *q = NULL;
        int step, r = 0;

        if (sqlite3_prepare_v2(s->db, "SELECT key, value FROM kv WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key", -1, &q, NULL) != SQLITE_OK)
                return failed(s->db, e, "scan");
        sqlite3_bind_text(q, 1, prefix, -1, SQLITE_STATIC);
        while (r == 0 && (step = sqlite3_step(q)) == SQLITE_ROW)
                r = fn(arg, (const char *)sqlite3_column_text(q, 0), sqlite3_column_blob(q, 1), (size_t)sqlite3_column_bytes(q, 1));
        if (r == 0 && step != SQLITE_DONE)
                r = failed(s->db, e, "scan");
        sqlite3_finalize(q);
        return r;
}
