/* SPDX-License-Identifier: Apache-2.0 */
/*
 * submit --from: is it the job's model?  Ranks would refuse other shapes when they load; but heads may be cut in another way, or RoPE turn at another rate, under equal shapes, and the
 * job would train a model that nobody meant.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/checkpoint.h"
#include "ctl/print.h"

static const struct {
        const char *key;
        bool may_differ; /* somebody may mean it: told, not refused */
} keys[] = {
        { "vocab_size", false },          { "hidden_size", false }, { "intermediate_size", false },   { "num_hidden_layers", false }, { "num_attention_heads", false },
        { "num_key_value_heads", false }, { "head_dim", false },    { "tie_word_embeddings", false }, { "rope_theta", true },         { "rms_norm_eps", true },
};

static bool same(const json_t *a, const json_t *b) {
        return json_is_number(a) && json_is_number(b) ? json_number_value(a) == json_number_value(b) : json_equal(a, b) != 0;
}

static int compare(const char *folder, const json_t *found, const json_t *expected, struct error *e) {
        for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
                json_t *a = json_object_get(found, keys[i].key), *b = json_object_get(expected, keys[i].key);
                _cleanup_free_ char *x = NULL, *y = NULL;

                if (!a || !b || same(a, b))
                        continue;
                x = json_dumps(a, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
                y = json_dumps(b, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
                if (!keys[i].may_differ)
                        return error_set(e, -EINVAL, "--from %s: found model.%s %.100s, expected the job file's %.100s", folder, keys[i].key, x ? x : "", y ? y : "");
                fprintf(stderr, "fp8ctl: %swarning%s: --from %s: its model.%s is %.100s, the job file's is %.100s\n", colour_begin(stderr, COLOUR_YELLOW),
                        colour_end(stderr, COLOUR_YELLOW), folder, keys[i].key, x ? x : "", y ? y : "");
        }
        return 0;
}

int checkpoint_fits(const char *folder, const char *job_json, struct error *e) {
        _cleanup_json_ json_t *job = json_loads(job_json, 0, NULL), *state = NULL;
        struct checkpoint_manifest *m = NULL;
        int r = checkpoint_manifest_read(folder, &m, e);

        if (r < 0) {
                error_prefix(e, "--from");
                if (e)
                        e->code = -EINVAL;
                return -EINVAL;
        }
        state = json_loads(checkpoint_manifest_state(m), JSON_REJECT_DUPLICATES, NULL);
        r = compare(folder, json_object_get(state, "model"), json_object_get(job, "model"), e);
        checkpoint_manifest_free(m);
        return r;
}
