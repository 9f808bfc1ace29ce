/* SPDX-License-Identifier: Apache-2.0 */
/* Several diagnoses of one process at the same time: each traces it, and none may take another's tracing for what the process does. */
#include "worker/agent/stacks.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/test.h"

enum { TAKERS = 4, TURNS = 3 };

/* The program started once more, as stacks_take() does. */
__attribute__((constructor)) static void as_helper(int argc, char **argv) {
        if (argc == 3 && strcmp(argv[1], "--stacks") == 0) {
                int r = stacks_print((pid_t)atoi(argv[2]));

                fflush(stdout);
                _exit(r);
        }
}

struct taker {
        pthread_t thread;
        pid_t pid;
        int wrong; /* times that the process was said to do something else than to be stopped */
        char found[64];
};

static void check(struct taker *t, const char *state) {
        if (strcmp(state, "stopped") == 0)
                return;
        t->wrong++;
        snprintf(t->found, sizeof(t->found), "%s", state);
}

static void *take(void *arg) {
        struct taker *t = arg;

        for (int i = 0; i < TURNS; i++) {
                Fp8ctl__V1__RankDiagnosis *d = calloc(1, sizeof(*d));

                fp8ctl__v1__rank_diagnosis__init(d);
                check(t, stacks_process_state(t->pid));
                stacks_take(&t->pid, 1, 20000, &d);
                check(t, d->n_threads == 1 ? d->threads[0]->state : "without threads");
                check(t, stacks_process_state(t->pid));
                fp8ctl__v1__rank_diagnosis__free_unpacked(d, NULL);
        }
        return NULL;
}

TEST(several_at_once) {
        pid_t pid = fork();
        struct taker t[TAKERS];
        siginfo_t info;

        if (pid == 0)
                for (;;)
                        pause();
        kill(pid, SIGSTOP);
        CU_ASSERT_EQUAL_FATAL(waitid(P_PID, (id_t)pid, &info, WSTOPPED), 0);
        for (int i = 0; i < TAKERS; i++) {
                t[i] = (struct taker){ .pid = pid };
                CU_ASSERT_EQUAL_FATAL(pthread_create(&t[i].thread, NULL, take, &t[i]), 0);
        }
        for (int i = 0; i < TAKERS; i++) {
                pthread_join(t[i].thread, NULL);
                if (t[i].wrong > 0)
                        printf("found the stopped process '%s', %d times\n", t[i].found, t[i].wrong);
                CU_ASSERT_EQUAL(t[i].wrong, 0);
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
}

TEST_MAIN("stacks")
