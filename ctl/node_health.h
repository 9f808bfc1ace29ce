/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include <stdio.h>

#include "ctl/ctl.h"
#include "proto/fp8ctl.pb-c.h"

/* node test --pairwise */
int node_pairs(struct ctl *c, int n, char **args, bool all, bool all_reduce, double at_least);

/* Where its devices hang. Nothing when it is not known. */
void node_tree_print(const Fp8ctl__V1__Node *nd, FILE *f);

/* The evidence: what its checks say, what was found, what tests came to. Nothing when there is nothing. */
void node_health_print(const Fp8ctl__V1__Node *nd);
