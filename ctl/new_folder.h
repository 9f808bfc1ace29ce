/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A folder that appears whole or not at all: it is filled under a temporary name beside its own, made durable, and renamed. */
#include "base/error.h"

struct new_folder {
        char *path, *parent, *tmp;
};
/* -EEXIST when path is there and not an empty folder. The parent is made. */
int new_folder_begin(const char *path, struct new_folder *ret, struct error *e);
/*
 * From new_folder_begin on SIGINT and SIGTERM only set a mark, the first time, so that what was begun can be removed: whoever fills the folder asks here now and then and stops at -EINTR.
 */
int new_folder_interrupted(struct error *e);
int new_folder_commit(struct new_folder *f, struct error *e);
/* What was not committed is removed. */
void new_folder_done(struct new_folder *f);
