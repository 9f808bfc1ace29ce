/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the files of recovery share. */
#include "daemon/core/core.h"

static inline double ms_since(uint64_t from, uint64_t to) {
        return from && to > from ? (double)(to - from) / 1e6 : 0;
}

/* recovery.c */
int recovery_step(struct controller *c, struct job *j, enum recovery_event ev);
void recovery_mark_lost(struct controller *c, struct job *j, uint32_t i, const char *why, enum lost_how how);
/* Ranks were marked lost (or a round must begin with all alive): one round for all of them. */
void recovery_act(struct controller *c, struct job *j, const char *cause, const char *why, bool final, bool count, uint64_t incarnation);
/* The next epoch, for whatever reason: survivors park, ranks that are LOST or NONE start. */
void recovery_round(struct controller *c, struct job *j, const char *cause);
void recovery_stop_cut_short(struct controller *c, struct job *j, const char *cause);

/* rank_fault.c */
void rank_suspicion_over(struct controller *c, struct job *j); /* nobody has said in time what happened */

/* incident.c */
void incident_open(struct controller *c, struct job *j, const char *cause, bool final, uint64_t incarnation);
bool incident_count(struct controller *c, struct job *j, const char *why, bool final);
bool incident_restarts_used_up(struct controller *c, struct job *j); /* counts this one; true: the job is over */

/* orders.c */
void order_starts(struct controller *c, struct job *j, struct node *n);
void order_abort(struct controller *c, struct job *j, struct node *n, const char *why);
void order_inventory(struct controller *c, struct job *j, struct node *n);
bool order_inventory_wanted(const struct job *j); /* is there anything that a node could list? */
void order_plan(struct controller *c, struct job *j, struct node *only);

/* generations.c */
void generations_forget(struct job *j, const struct node *n);
void inventory_forget(struct job *j, const struct node *n); /* nor is its answer waited for */
