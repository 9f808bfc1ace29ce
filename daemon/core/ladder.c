/* SPDX-License-Identifier: Apache-2.0 */
/* The first rung that holds is taken. Its thresholds are keys of the job file, or flags of fp8d where they concern nodes. */
#include "daemon/core/ladder.h"

#include <inttypes.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "daemon/core/recovery_private.h"

static bool lost(const struct job *j, int i) {
        return j->ranks[i].state == RANK_LOST;
}

/* Its device cannot be had any more. */
static bool homeless(const struct job *j, int i) {
        const struct rank *r = &j->ranks[i];

        return lost(j, i) && (r->node->state == NODE_LOST || r->node->state == NODE_LEAVING || r->node->hung_up || health_unfit(r->node, r->device));
}

bool ladder_device_suspect(const struct job *j, int i) {
        return lost(j, i) && j->ranks[i].deaths > (uint64_t)j->spec->recovery.in_place;
}

static bool any(const struct job *j, bool (*is)(const struct job *j, int i)) {
        for (int i = 0; i < j->world; i++)
                if (is(j, i))
                        return true;
        return false;
}

static enum ladder_step same_cause(struct controller *c, struct job *j, const struct blow *b) {
        return b->count && incident_count(c, j, b->why, b->final) ? LADDER_OVER : LADDER_NEXT;
}

/* With nobody lost and nothing to blame it is the controller that was away, and not the job's budget that pays. */
static enum ladder_step used_up(struct controller *c, struct job *j, const struct blow *b) {
        return !b->joined && (b->lost > 0 || b->count) && incident_restarts_used_up(c, j) ? LADDER_OVER : LADDER_NEXT;
}

static enum ladder_step in_place(struct controller *c, struct job *j, const struct blow *b) {
        (void)c;
        (void)b;
        return any(j, homeless) || any(j, ladder_device_suspect) ? LADDER_NEXT : LADDER_ROUND;
}

static enum ladder_step elsewhere(struct controller *c, struct job *j, const struct blow *b) {
        (void)b;
        return layout_replan(c, j) == 0 ? LADDER_ROUND : LADDER_NEXT;
}

static enum ladder_step fewer(struct controller *c, struct job *j, const struct blow *b) {
        (void)b;
        return layout_shrink(c, j) == 0 ? LADDER_ROUND : LADDER_NEXT;
}

static enum ladder_step in_place_again(struct controller *c, struct job *j, const struct blow *b) {
        (void)b;
        if (!any(j, homeless))
                return LADDER_ROUND;
        /* Some must move: those that are only suspected stay if that makes it possible. */
        for (int i = 0; i < j->world; i++)
                j->ranks[i].deaths = 0;
        return layout_replan(c, j) == 0 || layout_shrink(c, j) == 0 ? LADDER_ROUND : LADDER_NEXT;
}

static enum ladder_step requeue(struct controller *c, struct job *j, const struct blow *b) {
        char text[sizeof(j->reason)];

        snprintf(text, sizeof(text), "%.300s; no free devices to replace %d rank%s", b->cause, b->lost, text_s((uint64_t)b->lost));
        if (!rescue_leave(c, j, UINT32_MAX, text))
                job_finish(c, j, JOB_E_REQUEUE, text);
        return LADDER_OVER;
}

const struct rung ladder[] = {
        { "a check of a node finds a certain hardware fault", "its node or device gets no ranks any more, at once; those it has are lost and go on below", "`fp8d --health-share`, `--health-window`", NULL },
        { "a network fault is told of a node", "the ranks recover in place; at the second alert within five minutes the node is evicted", "`fp8d --health-share`, `--health-window`", NULL },
        { "so many steps in a row are not finite", "back to the newest checkpoint, once, and past these batches; then, or with `stop`, the job stops", "`precision.max_consecutive_skips`, `precision.on_overflow`", NULL },
        { "the same cause came so often without a step gained", "the job stops, with the cause", "`recovery.same_cause_limit`", same_cause },
        { "so many recoveries were made", "the job stops, with the cause", "`recovery.max_restarts`", used_up },
        { "the devices of all lost ranks can be had, and none has died there more often than that without a step gained", "they start there; a standby of the node becomes the rank where one is ready",
          "`recovery.in_place`, `recovery.standby`", in_place },
        { "other devices are free", "the lost ranks go there, those of warm standbys first", "`recovery.standby`", elsewhere },
        { "fewer replicas have devices", "so many fewer, each with more micro-batches, from what replica memory has; they come back at the end of a step when devices are free", "`recovery.min_dp`, `recovery.rescue_ms`, `recovery.grow_delay_ms`", fewer },
        { "their own devices can still be had", "they start there again", "", in_place_again },
        { "otherwise", "what only replica memory has is saved, and the job waits for devices, ahead of those of its priority that have not run yet", "`recovery.rescue_ms`, `priority`", requeue },
};
const size_t ladder_len = ARRAY_SIZE(ladder);

enum ladder_step ladder_climb(struct controller *c, struct job *j, const struct blow *b) {
        for (size_t i = 0; i < ladder_len; i++) {
                enum ladder_step s = ladder[i].take ? ladder[i].take(c, j, b) : LADDER_NEXT;

                if (s != LADDER_NEXT)
                        return s;
        }
        return LADDER_OVER;
}

void ladder_print_markdown(FILE *f) {
        fputs("| when | what is done | settings |\n|---|---|---|\n", f);
        for (size_t i = 0; i < ladder_len; i++)
                fprintf(f, "| %s | %s | %s |\n", ladder[i].when, ladder[i].does, ladder[i].settings);
}
