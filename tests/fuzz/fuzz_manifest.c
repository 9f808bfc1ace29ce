/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a manifest.json. What it accepts, it accepts again from its own state text, and verifies against an empty folder without harm. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "format/checkpoint.h"

static const char whole[] = "{\"format\":\"fp8ctl-checkpoint\",\"version\":1,\"job\":4,\"name\":\"t\",\"step\":9,\"epoch\":2,\"attempt\":1,\"layout\":\"tp1.pp1.dp2\",\"shards\":["
                            "{\"file\":\"shard-00000-of-00002.safetensors\",\"bytes\":700,\"digest\":\"00112233445566778899aabbccddeeff\",\"rank\":0},"
                            "{\"file\":\"shard-00001-of-00002.safetensors\",\"bytes\":700,\"digest\":\"ffeeddccbbaa99887766554433221100\",\"rank\":1}],"
                            "\"state\":{\"step\":9,\"scale\":0.1}}";

const struct fuzz_seed fuzz_seeds[] = { { whole, sizeof(whole) - 1 } };
const size_t fuzz_seeds_n = ARRAY_SIZE(fuzz_seeds);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct checkpoint_manifest *m = NULL;
        struct error e = { 0 };

        if (checkpoint_manifest_parse((const char *)data, size, &m, &e) < 0)
                return 0;
        if (checkpoint_manifest_state(m)[0] != '{' || checkpoint_manifest_shards(m) == 0)
                abort();
        /* no file name may lead out of the folder: in one that does not exist nothing is found */
        if (checkpoint_verify("/nonexistent/folder", m, &e) == 0)
                abort();
        checkpoint_manifest_free(m);
        return 0;
}
