/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A root daemon touches a user's folders with that user's rights only, so that a symbolic link planted there leads nowhere the user
 * could not go.  Linux keeps file-system ids per thread; leaving 0 also drops the DAC capabilities (capabilities(7)).
 */
#include <stdbool.h>
#include <sys/types.h>

/* True when we are root and this is another user: then, and only then, the calls below change anything. */
bool user_is_other(uid_t uid);
/* This thread's file accesses are the user's from here on, and ours again after user_leave. */
void user_enter(uid_t uid, gid_t gid);
void user_leave(void);
