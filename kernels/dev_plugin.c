/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backends that are not built in: libfp8-KIND.so, loaded when a job asks for that kind, so that a package without it is whole.  It is looked for in the folder that FP8_DEVICE_PLUGINS names,
 * else beside the program, in the build's folder for libraries as seen from there (DEV_PLUGIN_DIR, which has the architecture's name where that is the custom), and in ../lib/fp8ctl.
 * A loaded backend stays: device libraries do not survive being unloaded.
 */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/dev.h"
#include "kernels/dev_comm.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct dev_ops loaded; /* one kind a process: a rank has one device */
static void *library_of_loaded;

/* Its table, which may be shorter or longer than ours: what both know, the rest refused. */
static int adopt(const struct dev_ops *(*get)(void), const char *path, const char *kind, struct error *e) {
        const struct dev_ops *ops = get();

        if (!ops || ops->version != DEV_VERSION || !ops->kind || strcmp(ops->kind, kind) != 0)
                return error_set(e, -EPROTO, "%s: found version %u of a backend '%s', expected version %d of '%s'", path, ops ? ops->version : 0, ops && ops->kind ? ops->kind : "", DEV_VERSION,
                                 kind);
        memcpy(&loaded, ops, ops->size < sizeof loaded ? ops->size : sizeof loaded);
        dev_ops_complete(&loaded);
        return 0;
}

static int load_file(const char *path, const char *kind, struct error *e) {
        const struct dev_ops *(*get)(void);
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *symbol;
        int r;

        if (!library)
                return error_set(e, -ENODEV, "device kind '%s': %s", kind, dlerror());
        symbol = dlsym(library, DEV_PLUGIN_SYMBOL);
        if (!symbol) {
                (void)dlclose(library);
                return error_set(e, -ENODEV, "%s: found no " DEV_PLUGIN_SYMBOL ", expected a device backend", path);
        }
        memcpy(&get, &symbol, sizeof get); /* POSIX promises the conversion, ISO C does not know it */
        r = adopt(get, path, kind, e);
        if (r < 0)
                (void)dlclose(library);
        else
                library_of_loaded = library;
        return r;
}

static int load(const char *kind, struct error *e) {
        const char *dir = getenv("FP8_DEVICE_PLUGINS");
        static const char *const places[] = { ".", DEV_PLUGIN_DIR, "../lib/fp8ctl" };
        char self[PATH_MAX], path[PATH_MAX + 256];
        ssize_t n;

        if (dir) {
                (void)snprintf(path, sizeof path, "%.3000s/libfp8-%s.so", dir, kind);
                return load_file(path, kind, e);
        }
        n = readlink("/proc/self/exe", self, sizeof self - 1);
        if (n < 0)
                return error_errno(e, errno, "device kind '%s': /proc/self/exe", kind);
        self[n] = '\0';
        *strrchr(self, '/') = '\0';
        for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
                (void)snprintf(path, sizeof path, "%s/%.200s/libfp8-%s.so", self, places[i], kind);
                if (access(path, F_OK) == 0)
                        break;
        }
        return load_file(path, kind, e);
}

static bool is_name(const char *kind) {
        size_t n = kind ? strlen(kind) : 0;

        return n > 0 && n < 16 && strspn(kind, "abcdefghijklmnopqrstuvwxyz0123456789") == n;
}

int dev_ops_load(const char *kind, const struct dev_ops **ret, struct error *e) {
        const struct dev_ops *built_in = dev_ops_find(kind);
        int r = 0;

        if (built_in) {
                *ret = built_in;
                return 0;
        }
        if (!is_name(kind) || sizeof(dev_real) != sizeof(float))
                return error_set(e, -ENODEV, "device kind '%s': no such backend here", kind ? kind : "");
        (void)pthread_mutex_lock(&lock);
        if (!loaded.kind)
                r = load(kind, e);
        else if (strcmp(loaded.kind, kind) != 0)
                r = error_set(e, -EBUSY, "device kind '%s': this process has loaded '%s'", kind, loaded.kind);
        (void)pthread_mutex_unlock(&lock);
        if (r == 0)
                *ret = &loaded;
        return r;
}

int dev_comm_load(const char *kind, const struct dev_comm_ops **ret, struct error *e) {
        const struct dev_comm_ops *(*get)(void), *ops;
        void *symbol = NULL;

        (void)pthread_mutex_lock(&lock);
        if (loaded.kind && strcmp(loaded.kind, kind) == 0)
                symbol = dlsym(library_of_loaded, DEV_COMM_PLUGIN_SYMBOL);
        (void)pthread_mutex_unlock(&lock);
        if (!symbol)
                return error_set(e, -ENODEV, "device kind '%s': its backend has no collectives", kind);
        memcpy(&get, &symbol, sizeof get);
        ops = get();
        if (!ops || ops->version != DEV_COMM_VERSION || ops->size < sizeof *ops)
                return error_set(e, -EPROTO, "collectives of device kind '%s': found version %u of %zu bytes, expected version %d of %zu", kind, ops ? ops->version : 0, ops ? ops->size : 0,
                                 DEV_COMM_VERSION, sizeof *ops);
        *ret = ops;
        return 0;
}
