/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rank/source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "worker/ckpt/checkpoint.h"

DEFINE_CLEANUP(struct checkpoint_manifest *, checkpoint_manifest_free);

/* Imported weights: all else is as in a new job. Weights are the tensors without a prefix (format/shard.h). */
static int load_weights(const char *folder, const struct checkpoint_manifest *m, struct trainer *t, const struct shard_tensor *list, size_t n, const struct dev_ops *ops,
                        struct dev_stream *stream, struct error *e) {
        _cleanup_free_ struct shard_tensor *weights = calloc(n, sizeof(*weights));
        size_t n_weights = 0;
        int r = weights ? trainer_init(t, e) : error_set(e, -ENOMEM, "no memory for the list of weights");

        for (size_t i = 0; r == 0 && i < n; i++)
                if (!strchr(list[i].name, ':'))
                        weights[n_weights++] = list[i];
        return r < 0 ? r : checkpoint_load(folder, m, weights, n_weights, ops, stream, e);
}

/* Any layout's shards: each rank takes the slices it needs. */
static int load_checkpoint(const char *folder, struct trainer *t, const struct dev_ops *ops, struct dev *dev, struct error *e) {
        _cleanup_(checkpoint_manifest_freep) struct checkpoint_manifest *m = NULL;
        const struct shard_tensor *list;
        struct dev_stream *stream = NULL;
        size_t n;
        int r = checkpoint_manifest_read(folder, &m, e);

        if (r < 0)
                return r;
        r = ops->stream_new(dev, &stream);
        if (r < 0)
                return error_errno(e, -r, "stream");
        trainer_state(t, &list, &n);
        if (checkpoint_manifest_weights_only(m))
                r = load_weights(folder, m, t, list, n, ops, stream, e);
        else
                r = checkpoint_load(folder, m, list, n, ops, stream, e);
        ops->stream_free(stream);
        return r < 0 || checkpoint_manifest_weights_only(m) ? r : trainer_set_state_json(t, checkpoint_manifest_state(m), e);
}

int source_load(const Fp8ctl__V1__LoadSource *l, struct trainer *t, struct snapshot *s, const struct dev_ops *ops, struct dev *dev, struct error *e) {
        int r;

        if (!l)
                return error_set(e, -EINVAL, "the plan names no source to load from");
        switch (l->kind) {
        case FP8CTL__V1__LOAD_SOURCE__KIND__INITIALISE:
                r = trainer_init(t, e);
                break;
        case FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA:
                r = snapshot_restore(s, l->step, l->generation_epoch, e);
                break;
        case FP8CTL__V1__LOAD_SOURCE__KIND__CHECKPOINT:
                r = load_checkpoint(l->path, t, ops, dev, e);
                break;
        default:
                return error_set(e, -EPROTO, "load source %d is not known here", (int)l->kind);
        }
        if (r != 0)
                return r;
        if (l->kind == FP8CTL__V1__LOAD_SOURCE__KIND__REPLICA && trainer_step_number(t) != l->step)
                return error_set(e, -EBADMSG, "loaded step %" PRIu64 ", expected %" PRIu64, trainer_step_number(t), l->step);
        if (l->data_step)
                trainer_skip_data_to(t, l->data_step);
        return 0;
}
