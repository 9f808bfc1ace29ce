/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/indexed.h"
#include "ctl/handlers.h"
#include "ctl/print.h"

static struct {
        const char *out;
        bool lines;
} given;

const struct opt data_prepare_opts[] = {
        { "out", 0, OPT_STRING, "PREFIX", "writes PREFIX.bin and PREFIX.idx", &given.out, 0, 0, NULL },
        { "lines", 0, OPT_FLAG, NULL, "each line is a document", &given.lines, 0, 0, NULL },
        { 0 },
};

static void progress(void *arg, uint64_t done, uint64_t total) {
        if (isatty(STDERR_FILENO))
                fprintf(stderr, "\r%3.0f%%%s", total ? 100.0 * (double)done / (double)total : 100.0, done >= total ? "\r    \r" : "");
}

static inline void indexed_freep(struct indexed **x) {
        indexed_free(*x);
}

int data_prepare_run(struct ctl *c, int n, char **args) {
        _cleanup_(indexed_freep) struct indexed *x = NULL;
        _cleanup_json_ json_t *o = NULL;
        char hex[DIGEST_HEX_SIZE];
        struct digest digest;
        struct error e;

        if (!given.out) {
                error_set(&e, -22, "data prepare: found no --out, expected --out PREFIX");
                return ctl_usage(&e);
        }
        if (indexed_prepare((const char *const *)args, (size_t)n, given.out, given.lines, progress, NULL, &e) < 0 || indexed_open(given.out, &x, &e) < 0 ||
            indexed_digest(given.out, &digest, &e) < 0)
                return ctl_fail(&e);
        digest_hex(digest, hex);
        if (c->format == FORMAT_TABLE) {
                printf("%s.bin, %s.idx: %" PRId64 " documents, %" PRId64 " tokens, digest %s\n", given.out, given.out, indexed_documents(x), indexed_tokens(x), hex);
                return EXIT_DONE;
        }
        o = json_pack("{s:i, s:s, s:I, s:I, s:I, s:s}", "v", CTL_JSON_VERSION, "prefix", given.out, "documents", (json_int_t)indexed_documents(x), "tokens",
                      (json_int_t)indexed_tokens(x), "vocab", (json_int_t)indexed_vocab(x), "digest", hex);
        print_object(c, o);
        return EXIT_DONE;
}
