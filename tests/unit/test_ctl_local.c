/* SPDX-License-Identifier: Apache-2.0 */
/* A local cluster's home, and a keeper with daemons of sh: up, a death, a death of the keeper itself, down; nothing stays behind. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "ctl/keeper.h"
#include "ctl/local.h"
#include "tests/test.h"

static char *new_home(void) {
        char template[] = "/tmp/fp8k-XXXXXX";

        return strdup(mkdtemp(template));
}

static void nap(void) {
        struct timespec t = { 0, 10000000 };

        nanosleep(&t, NULL);
}

static void write_script(const char *dir, const char *name, const char *text) {
        char *path = file_path("%s/%s", dir, name);
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);

        CU_ASSERT_FATAL(fd >= 0);
        CU_ASSERT_EQUAL(file_write_all(fd, text, strlen(text)), 0);
        close(fd);
        free(path);
}

TEST(config_and_state_read_back) {
        struct local_config c = { 3, 2, true, true }, d;
        struct local_daemon daemons[2] = { { .name = "fp8d", .state = "running", .process = { 12, 345 }, .restarts = 2, .since_unix_ms = 99, .last_end = "exit 1" },
                                           { .name = "node-0", .state = "waiting" } };
        struct local_state s = { daemons, 2 }, t;
        char *home = new_home();
        struct error e = { 0 };

        CU_ASSERT_EQUAL(local_config_read(home, &d, &e), -ENOENT);
        ASSERT_OK(local_config_write(home, &c, &e), e);
        ASSERT_OK(local_config_read(home, &d, &e), e);
        CU_ASSERT(d.nodes == 3 && d.devices == 2 && d.test_hooks && d.cuda);
        ASSERT_OK(local_state_write(home, &s, &e), e);
        ASSERT_OK(local_state_read(home, &t, &e), e);
        CU_ASSERT_EQUAL_FATAL(t.n, 2);
        CU_ASSERT_STRING_EQUAL(t.daemons[0].last_end, "exit 1");
        CU_ASSERT_EQUAL(t.daemons[0].process.start, 345);
        CU_ASSERT_EQUAL(t.daemons[0].restarts, 2);
        local_state_free(&t);
        c.nodes = 100000;
        ASSERT_OK(local_config_write(home, &c, &e), e);
        ASSERT_ERROR(local_config_read(home, &d, &e), -EPROTO, e, "expected 1 to");
        file_remove_tree(home, &e);
        free(home);
}

TEST(a_process_is_more_than_its_number) {
        struct process_id self, other;

        CU_ASSERT_EQUAL_FATAL(process_id_of(getpid(), &self), 0);
        CU_ASSERT(process_alive(&self));
        other = self;
        other.start++;
        CU_ASSERT(!process_alive(&other));
        CU_ASSERT(!process_alive(&(struct process_id){ 0 }));
}

TEST(long_homes_are_refused) {
        char home[200];
        struct error e = { 0 };

        memset(home, 'a', sizeof(home));
        home[0] = '/';
        home[199] = 0;
        ASSERT_ERROR(local_check_home(home, 4, &e), -ENAMETOOLONG, e, "--dir");
        ASSERT_OK(local_check_home("/home/someone/.fp8ctl", 4, &e), e);
}

TEST(only_one_keeper) {
        char *home = new_home();
        struct error e = { 0 };
        int a, b;

        CU_ASSERT_EQUAL(local_keeper(home), 0);
        ASSERT_OK(local_keeper_lock(home, &a, &e), e);
        ASSERT_ERROR(local_keeper_lock(home, &b, &e), -EBUSY, e, "another keeper");
        close(a);
        ASSERT_OK(local_keeper_lock(home, &b, &e), e);
        close(b);
        file_remove_tree(home, &e);
        free(home);
}

static pid_t start_keeper(const char *home, bool stop) {
        pid_t pid = fork();

        if (pid == 0) {
                struct keeper_options o = { home, stop };
                struct error e = { 0 };
                int null = open("/dev/null", O_RDWR);

                dup2(null, STDERR_FILENO);
                _exit(keeper_run(&o, &e) < 0);
        }
        return pid;
}

/* Waits until daemon `name` runs as another process than `not`. */
static struct process_id wait_running(const char *home, const char *name, pid_t not) {
        for (int i = 0; i < 1000; i++, nap()) {
                struct process_id found = { 0 };
                struct local_state s;

                if (local_state_read(home, &s, NULL) < 0)
                        continue;
                for (size_t k = 0; k < s.n; k++)
                        if (strcmp(s.daemons[k].name, name) == 0 && s.daemons[k].process.pid != not && process_alive(&s.daemons[k].process))
                                found = s.daemons[k].process;
                local_state_free(&s);
                if (found.pid)
                        return found;
        }
        return (struct process_id){ 0 };
}

static int end_of(pid_t pid) {
        int status = -1;

        CU_ASSERT_EQUAL(waitpid(pid, &status, 0), pid);
        return status;
}

/* A daemon that ends on SIGTERM; a worker also has a spawner that outlives it. */
static const char daemon_script[] = "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 0.02; done\n";
static const char worker_script[] = "#!/bin/sh\n"
                                    "if [ ! -e \"$4/spawner.pid\" ] || ! kill -0 $(cut -d' ' -f1 \"$4/spawner.pid\"); then\n"
                                    "  setsid sleep 100 & p=$!\n"
                                    "  sleep 0.05\n"
                                    "  echo $p $(cut -d' ' -f22 /proc/$p/stat) >\"$4/spawner.pid\"\n"
                                    "fi\n"
                                    "trap 'exit 0' TERM\nwhile :; do sleep 0.02; done\n";

TEST(keeper_keeps) {
        struct local_config c = { 2, 1, false, false };
        char *home = new_home();
        struct process_id fp8d, node, again, node0, spawner = { 0 };
        struct error e = { 0 };
        pid_t keeper;

        write_script(home, "fp8d", daemon_script);
        write_script(home, "fp8-worker", worker_script);
        setenv("FP8CTL_BINDIR", home, 1);
        ASSERT_OK(local_config_write(home, &c, &e), e);
        keeper = start_keeper(home, false);
        fp8d = wait_running(home, "fp8d", 0);
        node0 = wait_running(home, "node-0", 0);
        node = wait_running(home, "node-1", 0);
        CU_ASSERT_FATAL(fp8d.pid && node0.pid && node.pid);
        CU_ASSERT_EQUAL(local_keeper(home), keeper);
        for (int i = 0; i < 500 && !(spawner = local_spawner(home, "node-1")).pid; i++)
                nap();
        CU_ASSERT(spawner.pid > 0);
        /* A worker dies: another comes. */
        kill(node.pid, SIGKILL);
        again = wait_running(home, "node-1", node.pid);
        CU_ASSERT(again.pid > 0);
        /* The keeper dies: the daemons do not, and the next keeper takes them. */
        kill(keeper, SIGKILL);
        end_of(keeper);
        CU_ASSERT_EQUAL(local_keeper(home), 0);
        CU_ASSERT(process_alive(&fp8d) && process_alive(&again));
        keeper = start_keeper(home, false);
        for (int i = 0; i < 500 && local_keeper(home) != keeper; i++)
                nap();
        CU_ASSERT_EQUAL(wait_running(home, "fp8d", 0).pid, fp8d.pid);
        CU_ASSERT_EQUAL(wait_running(home, "node-1", 0).pid, again.pid);
        /* Down: daemons and spawners are gone. */
        kill(keeper, SIGINT);
        CU_ASSERT_EQUAL(end_of(keeper), 0);
        CU_ASSERT(!process_alive(&fp8d) && !process_alive(&again) && !process_alive(&node0) && !process_alive(&spawner));
        CU_ASSERT_EQUAL(local_spawner(home, "node-0").pid, 0);
        CU_ASSERT_EQUAL(local_spawner(home, "node-1").pid, 0);
        file_remove_tree(home, &e);
        free(home);
}

TEST(keeper_stops_what_is_left) {
        struct local_config c = { 1, 1, false, false };
        char *home = new_home();
        struct process_id fp8d, node;
        struct error e = { 0 };
        pid_t keeper;

        write_script(home, "fp8d", daemon_script);
        write_script(home, "fp8-worker", daemon_script);
        setenv("FP8CTL_BINDIR", home, 1);
        ASSERT_OK(local_config_write(home, &c, &e), e);
        keeper = start_keeper(home, false);
        fp8d = wait_running(home, "fp8d", 0);
        node = wait_running(home, "node-0", 0);
        kill(keeper, SIGKILL);
        end_of(keeper);
        keeper = start_keeper(home, true);
        CU_ASSERT_EQUAL(end_of(keeper), 0);
        CU_ASSERT(fp8d.pid && node.pid && !process_alive(&fp8d) && !process_alive(&node));
        file_remove_tree(home, &e);
        free(home);
}

TEST_MAIN("ctl local")
