/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Clears what an earlier life left in a node's folder. */
#include "base/error.h"

/* True when a spawner listens in dir: then nothing is left over, it all lives. */
int leftovers_find_spawner(const char *dir);
/* No spawner listens: kills its ranks by recorded pid and start time and by control group, removes stale sockets and records. */
void leftovers_clear(const char *dir);
