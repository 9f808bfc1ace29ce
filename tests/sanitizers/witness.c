/* SPDX-License-Identifier: Apache-2.0 */
/* Does on purpose what the sanitizers are to report: the test beside it makes sure that a report in any process fails a test. */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int raced;
static void *volatile lost;

static void *race(void *arg) {
        raced++;
        return arg;
}

int main(int argc, char **argv) {
        const char *what = argc > 1 ? argv[1] : "";
        pthread_t t;

        if (strcmp(what, "leak") == 0) {
                lost = malloc(32);
                lost = NULL;
        } else if (strcmp(what, "use-after-free") == 0) {
                char *volatile p = malloc(32);

                free((void *)p);
                printf("%d\n", p[3]);
        } else if (strcmp(what, "overflow") == 0) {
                volatile int n = INT_MAX;

                n = n + argc;
        } else if (strcmp(what, "race") == 0) {
                if (pthread_create(&t, NULL, race, NULL) != 0)
                        return 2;
                raced++;
                pthread_join(t, NULL);
        } else if (strcmp(what, "nothing") != 0)
                return 2;
        return 0;
}
