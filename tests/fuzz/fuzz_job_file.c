/* SPDX-License-Identifier: Apache-2.0 */
/* A job file from anywhere: it is refused with one line, or it is a job whose canonical JSON parses to the same JSON. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "proto/job_spec.h"

static const char yaml[] = "name: t\nmodel:\n  preset: tiny\n  rope_theta: 5e4\ndata: {path: /x, seq_len: 128, validation_split: 0.1}\nparallel: {tp: 2, pp: 2, dp: 2}\n"
                           "train: {steps: 100, global_batch: 8, recompute: [0, 3]}\nprecision:\n  recipe: delayed\n  moments: bf16\noptimizer:\n  lr: 1e-3\n  schedule: wsd\n"
                           "  groups:\n  - match: '*.norm*'\n    weight_decay: 0\ncheckpoint: {dir: /c}\ntest: {kill_step: 3, kill_rank: 1, kill_point: agreed}\n";
static const char json[] = "{\"name\":\"t\",\"model\":{\"vocab_size\":256,\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_attention_heads\":4},"
                           "\"data\":{\"path\":\"/x\",\"seq_len\":64},\"train\":{\"steps\":5},\"checkpoint\":{\"dir\":\"/c\"}}";
static const char odd[] = "a: &x [1, {b: *x}]\n--- !!map\n? [k]\n: |+2\n   text\n\"\\u0041\\x00\": '''\n# c\n%YAML 1.1\n";

const struct fuzz_seed fuzz_seeds[] = { { yaml, sizeof(yaml) - 1 }, { json, sizeof(json) - 1 }, { odd, sizeof(odd) - 1 } };
const size_t fuzz_seeds_n = ARRAY_SIZE(fuzz_seeds);

static void check_round_trip(const struct job_spec *s) {
        _cleanup_free_ char *a = NULL, *b = NULL;
        struct job_spec *again = NULL;
        uint64_t snapshots;

        if (job_spec_to_json(s, &a, NULL) < 0 || job_spec_parse(a, strlen(a), "json", NULL, &again, NULL) < 0 || job_spec_to_json(again, &b, NULL) < 0 || strcmp(a, b) != 0)
                abort();
        (void)job_spec_bytes_per_rank(s, &snapshots);
        job_spec_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct model_config m;
        struct job_spec *s;
        struct error e = { 0 };

        if (job_spec_parse((const char *)data, size, "fuzz", NULL, &s, &e) == 0) {
                check_round_trip(s);
                job_spec_free(s);
        } else if (e.code >= 0 || !e.text[0] || strchr(e.text, '\n'))
                abort();
        (void)model_config_from_json((const char *)data, size, "fuzz", &m, &e);
        return 0;
}
