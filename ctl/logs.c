/* SPDX-License-Identifier: Apache-2.0 */
/* logs: bounded files on the workers, read in pieces through the controller. Several ranks: whole lines, each with its rank in front. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "ctl/handlers.h"
#include "ctl/job_view.h"

#define READ_MAX ((size_t)256 * 1024)
#define POLL_MS 300
#define RANKS_MAX 4096

static struct {
        bool follow;
        int64_t rank;
        const char *node;
} given = { .rank = -1 };

const struct opt logs_opts[] = {
        { "follow", 'f', OPT_FLAG, NULL, "go on with new lines until the job is over", &given.follow, 0, 0, NULL },
        { "rank", 'r', OPT_INT, "RANK", "of this rank only", &given.rank, -1, RANKS_MAX, NULL },
        { "node", 0, OPT_STRING, "NODE", "the worker's own log of this node", &given.node, 0, 0, NULL },
        { 0 },
};

/* One file being read. */
struct tail {
        Fp8ctl__V1__ReadFileRequest rq;
        char prefix[24];
        char *line; /* bytes whose newline has not come yet */
        size_t len;
        bool ended, over;
};

static void print_line(const struct tail *t, const char *p, size_t len) {
        _cleanup_free_ char *text = strndup(p, len);

        if (!text)
                return;
        fputs(colour_begin(stdout, t->prefix[0] ? COLOUR_DIM : COLOUR_NONE), stdout);
        fputs(t->prefix, stdout);
        fputs(colour_end(stdout, t->prefix[0] ? COLOUR_DIM : COLOUR_NONE), stdout);
        for (char *c = text; *c; c++)
                if (*c == '\t')
                        *c = ' ';
        print_text(stdout, text);
        putchar('\n');
}

static int tail_add(struct tail *t, const uint8_t *data, size_t len) {
        char *all = realloc(t->line, t->len + len + 1);
        size_t from = 0;

        if (!all)
                return -ENOMEM;
        t->line = all;
        memcpy(all + t->len, data, len);
        t->len += len;
        for (size_t i = t->len - len; i < t->len; i++)
                if (all[i] == '\n') {
                        print_line(t, all + from, i - from);
                        from = i + 1;
                }
        if (t->len - from > READ_MAX) { /* no line is that long: print what there is */
                print_line(t, all + from, t->len - from);
                from = t->len;
        }
        memmove(all, all + from, t->len - from);
        t->len -= from;
        return 0;
}

/* Reads all there is now. *ret_got: was there anything? */
static int tail_read(struct client *cl, struct tail *t, bool *ret_got, struct error *e) {
        while (!t->ended) {
                _cleanup_message_ Fp8ctl__V1__ReadFileReply *reply = NULL;
                int r = client_read_or_wait(cl, &t->rq, &t->over, &reply, e);

                if (r < 0)
                        return r;
                if (!reply)
                        return 0;
                if (reply->data.len == 0) {
                        t->ended = reply->ended;
                        return 0;
                }
                *ret_got = true;
                t->rq.offset = reply->next_offset;
                if (tail_add(t, reply->data.data, reply->data.len) < 0)
                        return error_set(e, -ENOMEM, "no memory");
        }
        return 0;
}

static int follow(struct client *cl, struct tail *tails, size_t n, struct error *e) {
        for (;;) {
                struct timespec pause = { 0, POLL_MS * (long)NSEC_PER_MSEC };
                bool got = false, all_ended = true;

                for (size_t i = 0; i < n; i++) {
                        int r = tail_read(cl, &tails[i], &got, e);

                        /* One of several ranks may have no file yet, or its node may be gone: the others still have something to say. */
                        if (r < 0 && (n == 1 || (r != -ENOENT && r != -EBUSY)))
                                return r;
                        if (r < 0 && !given.follow)
                                tails[i].ended = true;
                        all_ended &= tails[i].ended;
                }
                fflush(stdout);
                if (all_ended || (!given.follow && !got))
                        return 0;
                if (!got)
                        nanosleep(&pause, NULL);
        }
}

static int open_tails(struct client *cl, uint64_t job, struct tail **ret, size_t *ret_n, struct error *e) {
        _cleanup_message_ Fp8ctl__V1__Job *j = NULL;
        size_t n = 1;
        struct tail *tails;
        int r;

        if (!given.node && given.rank < 0) {
                r = client_get_job(cl, job, &j, e);
                if (r < 0)
                        return r;
                n = (size_t)j->tp * j->pp * j->dp;
                if (n < 1 || n > RANKS_MAX)
                        return error_set(e, -EIO, "job %" PRIu64 ": the controller says %zu ranks, expected 1 to %d", job, n, RANKS_MAX);
        }
        tails = calloc(n, sizeof(*tails));
        if (!tails)
                return error_set(e, -ENOMEM, "no memory");
        for (size_t i = 0; i < n; i++) {
                fp8ctl__v1__read_file_request__init(&tails[i].rq);
                tails[i].rq.kind = given.node ? FP8CTL__V1__FILE_KIND__WORKER_LOG : FP8CTL__V1__FILE_KIND__RANK_LOG;
                tails[i].rq.job_id = job;
                tails[i].rq.rank = given.rank >= 0 ? (int)given.rank : (int)i;
                tails[i].rq.max_bytes = READ_MAX;
                if (given.node)
                        tails[i].rq.node = (char *)given.node;
                else if (n > 1)
                        snprintf(tails[i].prefix, sizeof(tails[i].prefix), "%zu: ", i);
        }
        *ret = tails;
        *ret_n = n;
        return 0;
}

int logs_run(struct ctl *c, int n, char **args) {
        _cleanup_(client_freep) struct client *cl = NULL;
        _cleanup_free_ struct tail *tails = NULL;
        size_t n_tails = 0;
        struct error e;
        uint64_t job = 0;
        int r;

        if (n == 0 && !given.node) {
                error_set(&e, -EINVAL, "logs: found neither JOB nor --node, expected one of them");
                return ctl_usage(&e);
        }
        if (n && parse_job_id(args[0], &job, &e) < 0)
                return ctl_usage(&e);
        r = client_new(c, &cl, &e);
        if (r >= 0)
                r = open_tails(cl, job, &tails, &n_tails, &e);
        if (r >= 0)
                r = follow(cl, tails, n_tails, &e);
        for (size_t i = 0; i < n_tails; i++) {
                if (tails[i].len)
                        print_line(&tails[i], tails[i].line, tails[i].len);
                free(tails[i].line);
        }
        return r < 0 ? ctl_fail(&e) : EXIT_DONE;
}
