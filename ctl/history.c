/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/history.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define PAGE 500
#define READ_MAX (1024u * 1024)

static int add_page(struct history *h, Fp8ctl__V1__ListEventsReply *page) {
        Fp8ctl__V1__ListEventsReply **pages = realloc(h->pages, (h->n_pages + 1) * sizeof(*pages));
        const Fp8ctl__V1__Event **events;

        if (!pages)
                return -ENOMEM;
        h->pages = pages;
        events = realloc(h->events, (h->n + page->n_events) * sizeof(*events));
        if (!events)
                return -ENOMEM;
        h->events = events;
        for (size_t i = 0; i < page->n_events; i++)
                h->events[h->n++] = page->events[i];
        h->pages[h->n_pages++] = page;
        return 0;
}

int history_events(struct client *cl, uint64_t job, struct history *ret, struct error *e) {
        struct history h = { 0 };

        for (;;) {
                Fp8ctl__V1__ListEventsReply *page = NULL;
                int r = client_list_events(cl, job, h.n ? h.events[h.n - 1]->id : 0, PAGE, 0, &page, e);

                if (r >= 0 && page->n_events == 0) {
                        messagep(&page);
                        *ret = h;
                        return 0;
                }
                if (r >= 0 && add_page(&h, page) < 0)
                        r = error_set(e, -ENOMEM, "no memory for the events");
                if (r < 0) {
                        if (page)
                                messagep(&page);
                        history_free(&h);
                        return r;
                }
        }
}

void history_free(struct history *h) {
        for (size_t i = 0; i < h->n_pages; i++)
                messagep(&h->pages[i]);
        free(h->pages);
        free(h->events);
        *h = (struct history){ 0 };
}

/* All that there is, from where the request stands on. 0 as well when there is nothing yet. */
static int read_rows(struct client *cl, Fp8ctl__V1__ReadFileRequest *rq, bool *over, struct metrics *m, struct error *e) {
        for (;;) {
                _cleanup_message_ Fp8ctl__V1__ReadFileReply *reply = NULL;
                int r = rq->node[0] ? client_read_file(cl, rq, &reply, e) : client_read_or_wait(cl, rq, over, &reply, e);

                if (r < 0 || !reply)
                        return r;
                if (metrics_feed(m, reply->data.data, reply->data.len) < 0)
                        return error_set(e, -ENOMEM, "no memory for the rows");
                rq->offset = reply->next_offset;
                if (reply->data.len == 0)
                        return 0;
        }
}

int history_metrics_elsewhere(struct client *cl, uint64_t job, struct metrics *m, struct error *e) {
        Fp8ctl__V1__ListNodesRequest all = FP8CTL__V1__LIST_NODES_REQUEST__INIT;
        _cleanup_message_ Fp8ctl__V1__ListNodesReply *nodes = NULL;
        int r = client_call(cl, "ListNodes", &all.base, &fp8ctl__v1__list_nodes_reply__descriptor, CALL_TIMEOUT_MS, (ProtobufCMessage **)&nodes, e);

        for (size_t i = 0; r >= 0 && i < nodes->n_nodes; i++) {
                Fp8ctl__V1__ReadFileRequest rq = FP8CTL__V1__READ_FILE_REQUEST__INIT;
                struct error none = { 0 }; /* it never had any, or cannot be asked: what others have is told */

                rq.job_id = job;
                rq.kind = FP8CTL__V1__FILE_KIND__METRICS;
                rq.rank = -1;
                rq.max_bytes = READ_MAX;
                rq.node = nodes->nodes[i]->name;
                if (strcmp(nodes->nodes[i]->state, "lost") == 0)
                        continue;
                if (read_rows(cl, &rq, NULL, m, &none) == -ENOMEM || metrics_feed(m, "\n", 1) < 0) /* a line that was cut off ends there */
                        r = error_set(e, -ENOMEM, "no memory for the rows");
        }
        return r < 0 ? r : 0;
}

int history_metrics(struct client *cl, uint64_t job, struct metrics *m, struct error *e) {
        Fp8ctl__V1__ReadFileRequest rq = FP8CTL__V1__READ_FILE_REQUEST__INIT;
        bool over = false;
        int r = history_metrics_elsewhere(cl, job, m, e);

        if (r < 0)
                return r;
        rq.job_id = job;
        rq.kind = FP8CTL__V1__FILE_KIND__METRICS;
        rq.rank = -1;
        rq.max_bytes = READ_MAX;
        return read_rows(cl, &rq, &over, m, e);
}
