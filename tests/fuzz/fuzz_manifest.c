/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a manifest.json. What it accepts, it accepts again from its own state text, and verifies against an empty folder without harm. */
#include <stdlib.h>
#include <string.h>

#include "worker/ckpt/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

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
