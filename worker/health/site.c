/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of the site: executables in a folder, with the exit codes of Nagios plug-ins (0 ok, 1 warning, 2 critical, 3 unknown); the first line that they print is the evidence. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "worker/health/check.h"
#include "worker/health/program.h"

enum { SITE_MAX = 32 };

#define SITE_TIMEOUT_MS 30000u

static void run_one(const char *path, const char *name, struct check_out *o) {
        static const enum health_verdict verdicts[] = { HEALTH_OK, HEALTH_WARN, HEALTH_DRAIN };
        char *argv[] = { (char *)path, NULL }, out[CHECK_EVIDENCE];
        struct program p = { .path = path, .argv = argv, .timeout_ms = SITE_TIMEOUT_MS, .nobody = true };
        struct error e = { 0 };
        int status = 0, r = program_run(&p, out, sizeof(out), &status, &e);

        out[strcspn(out, "\n|")] = 0; /* behind the bar are figures for plotting */
        if (r < 0)
                check_say(o, name, -1, HEALTH_WARN, "%.200s", e.text);
        else if (WIFSIGNALED(status))
                check_say(o, name, -1, HEALTH_WARN, "died of signal %d", WTERMSIG(status));
        else if ((size_t)WEXITSTATUS(status) < ARRAY_SIZE(verdicts))
                check_say(o, name, -1, verdicts[WEXITSTATUS(status)], "%s", out);
        else
                check_say(o, name, -1, HEALTH_WARN, "exit code %d: %.200s", WEXITSTATUS(status), out);
}

void check_site(struct health_world *w, void **state, struct check_out *o) {
        char names[SITE_MAX][64];
        const struct health_world here = { .root = "" }; /* the folder is named as a whole */
        size_t n = w->checks_dir[0] ? world_list(&here, w->checks_dir, names, SITE_MAX) : 0;
        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *path = world_path(&here, "%s/%s", w->checks_dir, names[i]);
                struct error e = { 0 };

                if (!path || access(path, X_OK) < 0)
                        continue;
                if (program_safe(path, &e) < 0)
                        check_say(o, names[i], -1, HEALTH_WARN, "not run: %s", e.text);
                else
                        run_one(path, names[i], o);
        }
        if (o->n == 0)
                check_say(o, "", -1, HEALTH_ABSENT, w->checks_dir[0] ? "no executable in %s" : "no folder%s", w->checks_dir);
}
