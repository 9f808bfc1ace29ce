/* SPDX-License-Identifier: Apache-2.0 */
/* A job's folder of checkpoints: names of step folders, and the newest that is whole. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "format/checkpoint_private.h"

void checkpoint_step_name(uint64_t step, uint64_t epoch, uint32_t attempt, char *buf, size_t size) {
        (void)snprintf(buf, size, "step_%08llu.e%llu.%u", (unsigned long long)step, (unsigned long long)epoch, attempt);
}

static int compare_folders(const void *a, const void *b) {
        const struct checkpoint_folder *x = a, *y = b;

        if (x->step != y->step)
                return x->step > y->step ? -1 : 1;
        if (x->epoch != y->epoch)
                return x->epoch > y->epoch ? -1 : 1;
        return x->attempt > y->attempt ? -1 : x->attempt < y->attempt;
}

static bool parse_name(const char *name, struct checkpoint_folder *ret) {
        struct checkpoint_folder c = { 0 };
        unsigned long long step, epoch;

        if (strlen(name) >= sizeof(c.name) || sscanf(name, "step_%llu.e%llu.%u", &step, &epoch, &c.attempt) != 3)
                return false;
        c.step = step;
        c.epoch = epoch;
        checkpoint_step_name(step, epoch, c.attempt, c.name, sizeof(c.name));
        *ret = c;
        return strcmp(c.name, name) == 0;
}

int checkpoint_folders(const char *dir, struct checkpoint_folder **ret, size_t *ret_n, struct error *e) {
        _cleanup_free_ struct checkpoint_folder *list = NULL;
        size_t n = 0, room = 0;
        DIR *d = opendir(dir);
        struct checkpoint_folder c;

        if (!d)
                return error_errno(e, errno, "cannot open folder %s", dir);
        for (struct dirent *x = readdir(d); x; x = readdir(d)) {
                if (!parse_name(x->d_name, &c))
                        continue;
                if (n == room) {
                        struct checkpoint_folder *p = reallocarray(list, room ? 2 * room : 16, sizeof(*p));

                        if (!p) {
                                (void)closedir(d);
                                return error_set(e, -ENOMEM, "checkpoint: out of memory");
                        }
                        list = p;
                        room = room ? 2 * room : 16;
                }
                list[n++] = c;
        }
        (void)closedir(d);
        if (n > 0)
                qsort(list, n, sizeof(*list), compare_folders);
        *ret = STEAL_PTR(list);
        *ret_n = n;
        return 0;
}

/* Manifest there, about this folder, and every shard whole. */
static int check_folder(const char *folder, const struct checkpoint_folder *c, struct error *e) {
        struct checkpoint_manifest *m = NULL;
        int r = checkpoint_manifest_read(folder, &m, e);

        if (r < 0)
                return r;
        if (m->step != c->step || m->epoch != c->epoch || m->attempt != c->attempt)
                r = error_set(e, -EBADMSG, "%s: its manifest is about another step", folder);
        else
                r = checkpoint_verify(folder, m, e);
        checkpoint_manifest_free(m);
        return r;
}

int checkpoint_folder_newest(const char *dir, checkpoint_fits_fn fits, char **ret, size_t *ret_n, struct error *why, struct error *e) {
        _cleanup_free_ struct checkpoint_folder *list = NULL;
        int r = checkpoint_folders(dir, &list, ret_n, e);

        if (r < 0)
                return r;
        for (size_t i = 0; i < *ret_n; i++) {
                _cleanup_free_ char *folder = file_path("%s/%s", dir, list[i].name);

                if (!folder)
                        return error_set(e, -ENOMEM, "checkpoint: out of memory");
                if (fits(folder, &list[i], why) == 0) {
                        *ret = STEAL_PTR(folder);
                        return 0;
                }
        }
        return 1;
}

bool checkpoint_has_manifest(const char *folder) {
        _cleanup_free_ char *path = file_path("%s/%s", folder, CHECKPOINT_MANIFEST);
        struct stat st;

        return path && stat(path, &st) == 0;
}

int checkpoint_find_newest(const char *dir, char **ret_folder, struct error *e) {
        struct error why = { 0 };
        size_t n = 0;
        int r = checkpoint_folder_newest(dir, check_folder, ret_folder, &n, &why, e);

        if (r > 0)
                return error_set(e, -ENOENT, "%s: none of %zu checkpoints is whole%s%.800s", dir, n, why.text[0] ? "; " : "", why.text);
        return r;
}
