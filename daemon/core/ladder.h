/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What is done about a failure, from the cheapest on: one const table, which docs/recovery.md prints. */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct controller;
struct job;

/* A failure, with its ranks marked lost. */
struct blow {
        const char *cause; /* the incident */
        const char *why;   /* without who and where, for comparison */
        bool final;        /* that is certain */
        bool count;        /* somebody is to blame */
        bool joined;       /* of a round that gathers already */
        int lost;
};

enum ladder_step { LADDER_NEXT /* not this rung */, LADDER_ROUND /* a new epoch, or the one that gathers */, LADDER_OVER /* the job left its devices */ };

struct rung {
        const char *when, *does, *settings;
        enum ladder_step (*take)(struct controller *c, struct job *j, const struct blow *b); /* NULL: decided elsewhere, listed for the reader */
};
extern const struct rung ladder[];
extern const size_t ladder_len;

enum ladder_step ladder_climb(struct controller *c, struct job *j, const struct blow *b);
void ladder_print_markdown(FILE *f);
