/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Pure: ranks and nodes -> whose replica memory keeps the second copy of each rank's snapshots.  Another node always; another rack where racks are known; nodes of the
 * job itself before others (they are there for as long as it is) up to a fair load; as even as can be; and, all that being equal, the same one as before.
 */
#include <stdbool.h>
#include <stddef.h>

struct replica_node {
        const char *rack; /* "": unknown */
        bool holds;       /* it can be reached and has replica memory */
        bool of_job;      /* ranks of the job run there */
};

/* How well the second node keeps what is made on the first, another one: lower is better, 0 to 3. */
int replica_grade(const struct replica_node *own, const struct replica_node *at);

/* Twice what the fullest node has of ranks: of more copies nodes beside the job take their part, for memory has its bounds. */
int replica_fair_load(int n_nodes, const int *place, int world);

/*
 * place[world]: the node of each rank, grouped by rank order.  before[world]: the holders until now, -1 none; may be NULL.  ret[world]: index of the holder,
 * -1: there is none.  Returns how many ranks have none, or -ENOMEM.
 */
int replica_plan(const struct replica_node *nodes, int n_nodes, const int *place, const int *before, int world, int *ret);
