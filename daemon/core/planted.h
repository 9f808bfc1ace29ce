/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Mistakes for the simulation to find (tests/sim): each is a line that somebody could have left out.  Only the core that `test-sim-planted` is linked with has them, and one at a time is on;
 * everywhere else PLANTED() is false and nothing is left of it.
 */
#include <stdbool.h>

#define PLANTS(X)                                                                                        \
        X(NO_EPOCH_CHECK, "no-epoch-check")             /* messages of an older epoch are taken */        \
        X(ACT_BEFORE_PERSIST, "act-before-persist")     /* what is sent does not wait for the store */    \
        X(DOUBLE_RELEASE, "double-release")             /* a death frees whatever its rank holds now */   \
        X(PARTIAL_PREPARE, "partial-prepare")           /* committed with one shard missing */            \
        X(LEASE_SHORT, "lease-short")                   /* a node is lost before its lease is over */     \
        X(STALE_ADOPTION, "stale-adoption")             /* any process of that rank is taken for it */    \
        X(TWO_COMMITTERS, "two-committers")             /* a fenced epoch's save is committed */          \
        X(LOST_REQUEUE, "lost-requeue")                 /* a requeued job is not looked at again */       \
        X(GENERATION_DROPPED, "generation-dropped")     /* what all have is written over too early */     \
        X(SPARE_TWICE, "spare-twice")                   /* two jobs are placed on one device */           \
        X(OLD_LAYOUT, "old-layout")                     /* replicas of another number of ranks count */   \
        X(FORGOTTEN_RESIZE, "forgotten-resize")         /* a controller that died forgets the new dp */   \
        X(CHANGED_IN_USE, "changed-in-use")             /* a rollout changes nodes that have ranks */     \
        X(BEYOND_SHARE, "beyond-share")                 /* ... and more of them than its stage says */

enum plant {
        PLANT_NONE,
#define PLANT_ENUM(id, name) PLANT_##id,
        PLANTS(PLANT_ENUM)
#undef PLANT_ENUM
        N_PLANTS,
};

#ifdef FP8_PLANTED
extern enum plant planted;
#define PLANTED(x) (planted == PLANT_##x)
#else
#define PLANTED(x) false
#endif
