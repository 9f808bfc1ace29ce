/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What ranks said of their shards, kept until the controller answers: it holds these words in memory only, so those said to a controller that died, or
 * into a stream that broke, are said again after the next welcome.  A controller that knows them answers again.
 */
#include <string.h>

#include "proto/message.h"
#include "worker/agent/agent_private.h"

static void forget_at(struct local_rank *r, size_t i) {
        protobuf_c_message_free_unpacked(r->prepared[i], NULL);
        r->n_prepared--;
        memmove(r->prepared + i, r->prepared + i + 1, (r->n_prepared - i) * sizeof(r->prepared[0]));
}

void prepared_keep(struct local_rank *r, const Fp8ctl__V1__WorkerMessage *m) {
        ProtobufCMessage *copy = message_copy(&m->base);

        if (!copy)
                return;
        if (r->n_prepared == AGENT_PREPARED_MAX)
                forget_at(r, 0);
        r->prepared[r->n_prepared++] = copy;
}

void prepared_answered(struct agent *a, uint64_t job, uint64_t epoch, uint64_t step, uint32_t attempt) {
        for (struct local_rank *r = a->ranks; r; r = r->next)
                for (size_t i = 0; r->job_id == job && i < r->n_prepared;) {
                        const Fp8ctl__V1__CheckpointPrepared *p = ((const Fp8ctl__V1__WorkerMessage *)r->prepared[i])->checkpoint_prepared;

                        if (p->epoch == epoch && p->step == step && p->attempt == attempt)
                                forget_at(r, i);
                        else
                                i++;
                }
}

void prepared_forget(struct local_rank *r) {
        while (r->n_prepared > 0)
                forget_at(r, r->n_prepared - 1);
}

void prepared_send(struct agent *a) {
        for (struct local_rank *r = a->ranks; r; r = r->next)
                for (size_t i = 0; i < r->n_prepared;) {
                        Fp8ctl__V1__WorkerMessage *m = (Fp8ctl__V1__WorkerMessage *)r->prepared[i];

                        if (m->checkpoint_prepared->epoch < r->epoch) {
                                forget_at(r, i); /* its epoch is over, and so is the save */
                                continue;
                        }
                        stream_send(a, m);
                        i++;
                }
}
