/* SPDX-License-Identifier: Apache-2.0 */
/* Loading from the shards of any layout into a device's memory. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "worker/ckpt/checkpoint.h"

DEFINE_CLEANUP(struct checkpoint_reader *, checkpoint_reader_free);

struct device {
        const struct dev_ops *ops;
        struct dev_stream *stream;
};

static int copy_in(void *arg, void *dst, const void *src, size_t len) {
        const struct device *d = arg;

        return d->ops->copy_in(dst, src, len, d->stream);
}

int checkpoint_load(const char *folder, const struct checkpoint_manifest *m, const struct shard_tensor *want, size_t n, const struct dev_ops *ops,
                    struct dev_stream *s, struct error *e) {
        _cleanup_(checkpoint_reader_freep) struct checkpoint_reader *reader = NULL;
        struct device device = { ops, s };
        int r = checkpoint_reader_open(folder, m, &reader, e);

        for (size_t i = 0; i < n && r == 0; i++)
                r = checkpoint_reader_fill(reader, &want[i], ops ? copy_in : NULL, &device, e);
        if (ops) { /* also after an error: nothing may still read the maps */
                int sync = ops->stream_sync(s);

                if (r == 0 && sync < 0)
                        r = error_set(e, sync, "checkpoint: the device failed: %s", strerror(-sync));
        }
        return r;
}
