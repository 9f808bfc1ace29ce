/* SPDX-License-Identifier: Apache-2.0 */
/* A Megatron-LM index from anywhere beside a .bin of 64 bytes: whatever opens can be read to its end. The first byte chooses index or text. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/indexed.h"
#include "fuzz.h"

static const uint8_t index_seed[] = { 'i',
                                      'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8,
                                      2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
                                      5, 0, 0, 0, 3, 0, 0, 0,
                                      0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0,
                                      0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0 };
static const char text_seed[] = "tone\ntwo\n\n three\n\r\n\t\nfour";

const struct fuzz_seed fuzz_seeds[] = { { index_seed, sizeof(index_seed) }, { text_seed, sizeof(text_seed) - 1 } };
const size_t fuzz_seeds_n = ARRAY_SIZE(fuzz_seeds);

/* In memory where there is such a file system: on a disk the processor waits nine tenths of the time. */
static char shm[] = "/dev/shm/fp8ctl-fuzz-XXXXXX", tmp[] = "/tmp/fp8ctl-fuzz-XXXXXX", *dir = shm, paths[3][64]; /* .idx, .bin, text */

static void remove_files(void) {
        for (int i = 0; i < 3; i++)
                unlink(paths[i]);
        rmdir(dir);
}

static void put(const char *path, const void *data, size_t size) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        if (fd < 0 || write(fd, data, size) != (ssize_t)size)
                abort();
}

static void prepare_folder(void) {
        static const char tokens[64];

        if (paths[0][0])
                return;
        if (!mkdtemp(dir) && !mkdtemp(dir = tmp))
                abort();
        snprintf(paths[0], sizeof(paths[0]), "%s/d.idx", dir);
        snprintf(paths[1], sizeof(paths[1]), "%s/d.bin", dir);
        snprintf(paths[2], sizeof(paths[2]), "%s/text", dir);
        put(paths[1], tokens, sizeof(tokens));
        atexit(remove_files);
}

static void read_all(const struct indexed *x) {
        int64_t sum = 0;

        for (int64_t d = 0; d < indexed_documents(x); d++) {
                int64_t n = indexed_document_length(x, d);
                _cleanup_free_ int32_t *ids = malloc((size_t)(n ? n : 1) * sizeof(*ids));

                sum += n;
                if (!ids || (indexed_read(x, d, 0, n, ids, NULL) < 0 && indexed_vocab(x) >= 0))
                        abort();
        }
        if (sum != indexed_tokens(x))
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        bool text = size > 0 && data[0] == 't';
        struct indexed *x;

        if (size == 0)
                return 0;
        prepare_folder();
        put(paths[text ? 2 : 0], data + 1, size - 1);
        if (indexed_open_as(paths[text ? 2 : 0], text ? INDEXED_TEXT : INDEXED_PAIR, &x, NULL) < 0)
                return 0;
        read_all(x);
        indexed_free(x);
        return 0;
}
