/* SPDX-License-Identifier: Apache-2.0 */
/* Saves whose words were lost with a controller or a worker that died, and words that are said again. */
#include <errno.h>

#include "daemon/core/ckpt_private.h"
#include "daemon/core/core.h"
#include "tests/test.h"
#include "tests/unit/core_world.h"

#define COMMITTED FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_COMMITTED
#define SAVE_NOW FP8CTL__V1__CONTROLLER_MESSAGE__BODY_SAVE_NOW
#define DROPPED FP8CTL__V1__CONTROLLER_MESSAGE__BODY_CHECKPOINT_DROPPED

static void all_prepared(struct world *w, uint64_t step, uint32_t attempt) {
        for (uint32_t r = 0; r < 4; r++)
                world_prepared(w, r, step, attempt);
}

static bool is_committed(const struct world *w, uint64_t job, uint64_t step) {
        char key[64];

        snprintf(key, sizeof(key), "commit/%u/%020u", (unsigned)job, (unsigned)step);
        return world_stored(w, key) != NULL;
}

TEST(a_save_is_committed_when_all_have_spoken) {
        struct world w;
        size_t before;
        uint64_t id;

        id = world_start_job(&w, "");
        CU_ASSERT_FATAL(id != 0);
        for (uint32_t r = 0; r < 3; r++)
                world_prepared(&w, r, 1, 1);
        CU_ASSERT_EQUAL(w.n_files, 0);
        before = w.n_sent;
        world_prepared(&w, 3, 1, 1);
        CU_ASSERT_EQUAL_FATAL(w.n_files, 1);
        CU_ASSERT_FALSE(is_committed(&w, id, 1));
        world_pump_files(&w, 0);
        CU_ASSERT(is_committed(&w, id, 1));
        CU_ASSERT_EQUAL(world_told(&w, before, COMMITTED, 1, 1), 1);
        CU_ASSERT_EQUAL(world_told(&w, before, COMMITTED, 2, 1), 1);
        world_stop(&w);
}

TEST(a_manifest_that_is_not_written_in_time_gives_its_save_up) {
        struct world w;
        uint64_t id = world_start_job(&w, "");
        char text[400];

        all_prepared(&w, 1, 1);
        CU_ASSERT_EQUAL_FATAL(w.n_files, 1);
        for (int i = 0; i < 61 * 10; i++) { /* as world_pass, but the file helper stands still */
                w.now += UINT64_C(100000000);
                world_progress(&w, 0);
                controller_tick(w.c);
        }
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "storage_stalled", text, sizeof(text)), "save of step 1: its manifest was not written within 60.0 s"));
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "checkpoint_dropped", text, sizeof(text)), "save of step 1 (attempt 1) dropped: its manifest"));
        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, 1, 1), 1);
        CU_ASSERT_EQUAL(w.n_files, 1); /* its folder is not taken from under the helper */
        all_prepared(&w, 2, 1);
        world_pump_files(&w, 0);       /* both are written now */
        CU_ASSERT_FALSE(is_committed(&w, id, 1));
        CU_ASSERT(is_committed(&w, id, 2));
        CU_ASSERT(w.n_files >= 3 && w.files[2].kind == FILE_REMOVE_TREE && strstr(w.files[2].path, "step_00000001"));
        world_stop(&w);
}

/* The words of ranks 1 to 3 about saves 1 to 20 were said to a controller that died; they do not come again. */
/* It would be committed and could not be resumed from. */
TEST(a_save_whose_state_cannot_be_read_is_dropped_and_says_why) {
        char state[70000] = "{", text[400];
        struct world w;

        world_start_job(&w, "");
        world_prepared_state(&w, 0, 1, "{\"step\": 1");
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "checkpoint_dropped", text, sizeof(text)), "rank 0 on a reported a state that is no JSON object"));
        memset(state + 1, ' ', sizeof(state) - 3);
        state[sizeof(state) - 2] = '}';
        world_prepared_state(&w, 0, 2, state);
        CU_ASSERT_PTR_NOT_NULL(strstr(world_event(&w, "checkpoint_dropped", text, sizeof(text)), "reported a state of 69999 bytes, expected less than 65536"));
        world_prepared_state(&w, 0, 3, "{\"step\": 3}");
        for (uint32_t r = 1; r < 4; r++)
                world_prepared(&w, r, 3, 1);
        world_pump(&w);
        CU_ASSERT_EQUAL(world_count(&w, "commit/"), 1);
        world_stop(&w);
}

TEST(saves_that_wait_for_lost_words_do_not_hold_up_later_ones) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        for (uint64_t step = 1; step <= 20; step++)
                world_prepared(&w, 0, step, 1);
        all_prepared(&w, 21, 1);
        world_pump_files(&w, 0);
        CU_ASSERT(is_committed(&w, id, 21));
        CU_ASSERT_EQUAL(world_count(&w, "commit/"), 1);
        for (uint64_t step = 1; step <= 20; step++)
                for (uint64_t session = 1; session <= 2; session++)
                        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, session, step), 1);
        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, 0, 21), 0);
        world_stop(&w);
}

/* Older saves are given up only when every rank has gone past them: a slow rank's save is not. */
TEST(a_save_that_is_still_being_written_is_not_given_up) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        for (uint64_t step = 1; step <= 5; step++)
                for (uint32_t r = 0; r < 3; r++)
                        world_prepared(&w, r, step, 1);
        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, 0, 0), 0);
        for (uint64_t step = 1; step <= 5; step++)
                world_prepared(&w, 3, step, 1);
        world_pump_files(&w, 0);
        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, 0, 0), 0);
        CU_ASSERT_EQUAL(world_told(&w, 0, COMMITTED, 1, 0), 5);
        CU_ASSERT(is_committed(&w, id, 3) && is_committed(&w, id, 4) && is_committed(&w, id, 5)); /* keep_last 3 */
        CU_ASSERT_EQUAL(world_count(&w, "commit/"), 3);
        world_stop(&w);
}

/* keep_last 3, keep_every 4. */
TEST(every_nth_checkpoint_is_kept_for_good) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        CU_ASSERT_FATAL(w.c->n_jobs == 1);
        w.c->jobs[0]->spec->checkpoint.keep_every = 4;
        for (uint64_t step = 1; step <= 11; step++) {
                all_prepared(&w, step, 1);
                world_pump_files(&w, 0);
        }
        for (uint64_t step = 1; step <= 11; step++)
                CU_ASSERT_EQUAL(is_committed(&w, id, step), step == 4 || step >= 8);
        /* One that could not be loaded is not worth keeping, and the newest that could is not given up for the sake of bad ones after it. */
        w.c->jobs[0]->spec->checkpoint.keep_last = 1;
        for (size_t i = 0; i < w.c->jobs[0]->n_checkpoints; i++)
                w.c->jobs[0]->checkpoints[i].bad = w.c->jobs[0]->checkpoints[i].step != 9;
        checkpoint_retain(w.c, w.c->jobs[0]);
        world_pump_files(&w, 0);
        for (uint64_t step = 1; step <= 11; step++)
                CU_ASSERT_EQUAL(is_committed(&w, id, step), step == 9 || step == 11);
        world_stop(&w);
}

/* A commit that could not be loaded does not stand in for a good one: when its step is saved anew it goes, and keep_last counts steps. */
TEST(a_step_that_is_saved_anew_replaces_the_commit_that_could_not_be_loaded) {
        struct world w;
        uint64_t id = world_start_job(&w, "");
        struct job *j;

        CU_ASSERT_FATAL(w.c->n_jobs == 1);
        j = w.c->jobs[0];
        for (uint64_t step = 1; step <= 3; step++) {
                all_prepared(&w, step, 1);
                world_pump_files(&w, 0);
        }
        for (size_t i = 0; i < j->n_checkpoints; i++)
                j->checkpoints[i].bad = j->checkpoints[i].step == 3;
        all_prepared(&w, 3, 2);
        world_pump_files(&w, 0);
        CU_ASSERT_EQUAL(j->n_checkpoints, 3);
        for (size_t i = 0; i < j->n_checkpoints; i++)
                CU_ASSERT(!j->checkpoints[i].bad);
        all_prepared(&w, 4, 1);
        world_pump_files(&w, 0);
        for (uint64_t step = 1; step <= 4; step++)
                CU_ASSERT_EQUAL(is_committed(&w, id, step), step >= 2);
        CU_ASSERT_EQUAL(world_count(&w, "commit/"), 3);
        world_stop(&w);
}

TEST(a_word_about_a_committed_save_is_answered_again_to_who_said_it) {
        struct world w;
        size_t before;

        world_start_job(&w, "");
        all_prepared(&w, 1, 1);
        world_pump_files(&w, 0);
        before = w.n_sent;
        world_prepared(&w, 2, 1, 1); /* rank 2 lives on node b */
        CU_ASSERT_EQUAL(world_told(&w, before, COMMITTED, w.ranks[2].session, 1), 1);
        CU_ASSERT_EQUAL(w.n_sent, before + 1);
        CU_ASSERT_EQUAL(w.n_files, w.files_done); /* and nothing is written again */
        world_stop(&w);
}

TEST(a_word_about_a_dropped_save_is_answered_again_to_who_said_it) {
        struct world w;
        size_t before;

        world_start_job(&w, "");
        world_prepared(&w, 0, 1, 1);
        all_prepared(&w, 2, 1);
        world_pump(&w);
        before = w.n_sent;
        world_prepared(&w, 3, 1, 1);
        CU_ASSERT_EQUAL(world_told(&w, before, DROPPED, w.ranks[3].session, 1), 1);
        CU_ASSERT_EQUAL(w.n_sent, before + 1);
        world_stop(&w);
}

/* As after a controller's death: half of the words reached the old one, and each worker says its own again after its welcome. */
TEST(words_said_again_complete_a_save_under_a_new_controller) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        world_prepared(&w, 0, 1, 1);
        world_prepared(&w, 1, 1, 1);
        world_restart(&w);
        CU_ASSERT_FALSE(is_committed(&w, id, 1));
        world_return(&w);
        all_prepared(&w, 1, 1);
        world_pump_files(&w, 0);
        CU_ASSERT(is_committed(&w, id, 1));
        world_stop(&w);
}

static size_t stale_work(const struct world *w) {
        size_t n = 0;

        for (size_t i = 0; i < w->n_files; i++)
                n += w->files[i].kind == FILE_REMOVE_STALE && strcmp(w->files[i].path, "/ckpt1") == 0;
        return n;
}

/* Ranks died while they wrote what no rank had spoken of: looked for once all of them are in a new epoch that has a commit, and when the job is over. */
TEST(what_nobody_spoke_of_is_looked_for_when_its_writers_are_gone) {
        struct world w;
        size_t before;

        world_start_job(&w, "");
        all_prepared(&w, 1, 1);
        world_pump(&w);
        before = stale_work(&w);
        all_prepared(&w, 2, 1);
        world_pump(&w);
        CU_ASSERT_EQUAL(stale_work(&w), before);
        world_exited(&w, 1, "killed by SIGKILL");
        world_pump(&w);
        world_pass(&w, 2000);
        CU_ASSERT_EQUAL(w.ranks[0].epoch, 2);
        CU_ASSERT_EQUAL(stale_work(&w), before);
        all_prepared(&w, 3, 1);
        world_pump(&w);
        CU_ASSERT_EQUAL(stale_work(&w), before + 1);
        for (uint32_t r = 0; r < 4; r++)
                world_fault(&w, r, FP8CTL__V1__RANK_FAULT__KIND__OVERFLOW_STOP, 4, "not finite");
        world_pass(&w, 15000);
        CU_ASSERT_EQUAL(stale_work(&w), before + 2);
        world_stop(&w);
}

/* What was written after a save was given up is cleared when all have spoken, and a word about it begins nothing. */
TEST(shards_written_after_a_save_was_given_up_are_cleared) {
        struct world w;
        size_t before;

        world_start_job(&w, "");
        world_prepared_error(&w, 0, 1, 1, "No space left on device");
        world_pump(&w);
        before = w.n_files;
        for (uint32_t r = 1; r < 4; r++)
                world_prepared(&w, r, 1, 1);
        CU_ASSERT_EQUAL(w.n_files, before);
        world_prepared_error(&w, 0, 1, 1, "No space left on device");
        CU_ASSERT_EQUAL_FATAL(w.n_files, before + 1);
        CU_ASSERT_EQUAL(w.files[before].kind, FILE_REMOVE_UNFINISHED);
        CU_ASSERT_STRING_EQUAL(w.files[before].path, "/ckpt1/step_00000001.e1.1");
        all_prepared(&w, 1, 1);
        CU_ASSERT_EQUAL(w.n_files, before + 1);
        world_stop(&w);
}

TEST(a_save_whose_manifest_could_not_be_written_is_not_begun_again) {
        struct world w;
        size_t before;
        uint64_t id;

        id = world_start_job(&w, "");
        all_prepared(&w, 1, 1);
        world_pump_files(&w, -ENOSPC);
        world_pump(&w);
        CU_ASSERT_FALSE(is_committed(&w, id, 1));
        before = w.n_sent;
        world_prepared(&w, 2, 1, 1);
        CU_ASSERT_EQUAL(world_told(&w, before, DROPPED, w.ranks[2].session, 1), 1);
        CU_ASSERT_EQUAL(w.n_sent, before + 1);
        all_prepared(&w, 1, 1);
        CU_ASSERT_FALSE(is_committed(&w, id, 1));
        world_stop(&w);
}

TEST(another_save_of_a_committed_step_is_answered_and_cleared) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        all_prepared(&w, 1, 1);
        world_pump(&w);
        all_prepared(&w, 1, 2);
        world_pump(&w);
        CU_ASSERT(is_committed(&w, id, 1));
        CU_ASSERT(world_told(&w, 0, DROPPED, 1, 1) >= 1 && world_told(&w, 0, DROPPED, 2, 1) >= 1);
        CU_ASSERT_STRING_EQUAL(w.files[w.n_files - 1].path, "/ckpt1/step_00000001.e1.2");
        CU_ASSERT_EQUAL(w.files[w.n_files - 1].kind, FILE_REMOVE_UNFINISHED);
        world_stop(&w);
}

/* The order to save went to a node that was heard again before the other one (found by the 250th SIGKILL of a controller: the job's end waited for five minutes). */
TEST(a_save_of_the_last_step_that_some_ranks_were_asked_for_does_not_hold_up_the_end) {
        struct world w;
        Fp8ctl__V1__SaveJobRequest q = FP8CTL__V1__SAVE_JOB_REQUEST__INIT;
        Fp8ctl__V1__SaveJobReply *reply;
        Fp8ctl__V1__Job *j;
        uint64_t id = world_start_job(&w, "");

        world_progress(&w, 100);
        q.id = id;
        w.status = -1;
        controller_request(w.c, 50, REQ_SAVE_JOB, &q.base, &world_admin);
        CU_ASSERT_EQUAL(w.status, -1);
        world_prepared(&w, 0, 100, 2);
        world_prepared(&w, 1, 100, 2);
        all_prepared(&w, 100, 1);
        for (uint32_t r = 0; r < 4; r++)
                world_done(&w, r, 100, false);
        world_pump(&w);
        CU_ASSERT(is_committed(&w, id, 100));
        CU_ASSERT_EQUAL_FATAL(w.status, 0);
        reply = fp8ctl__v1__save_job_reply__unpack(NULL, w.reply_len, w.reply);
        CU_ASSERT_PTR_NOT_NULL_FATAL(reply);
        CU_ASSERT_EQUAL(reply->step, 100);
        fp8ctl__v1__save_job_reply__free_unpacked(reply, NULL);
        j = world_job(&w, id);
        CU_ASSERT_PTR_NOT_NULL_FATAL(j);
        CU_ASSERT_EQUAL(j->state, FP8CTL__V1__JOB_STATE__COMPLETED);
        fp8ctl__v1__job__free_unpacked(j, NULL);
        world_stop(&w);
}

/* ... or it went to nobody. */
TEST(a_save_that_no_rank_was_asked_for_is_answered_by_the_last_one) {
        struct world w;
        Fp8ctl__V1__SaveJobRequest q = FP8CTL__V1__SAVE_JOB_REQUEST__INIT;
        uint64_t id = world_start_job(&w, "");

        world_progress(&w, 100);
        q.id = id;
        w.status = -1;
        controller_request(w.c, 50, REQ_SAVE_JOB, &q.base, &world_admin);
        all_prepared(&w, 100, 1);
        for (uint32_t r = 0; r < 4; r++)
                world_done(&w, r, 100, false);
        world_pump(&w);
        CU_ASSERT(is_committed(&w, id, 100));
        CU_ASSERT_EQUAL(w.status, 0);
        world_stop(&w);
}

/* A save on demand and a job's last one, both of the step it stopped at: the first manifest to be written is the commit, the other folder goes. */
TEST(two_saves_of_a_step_whose_manifests_are_written_at_once_make_one_commit) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        CU_ASSERT_FATAL(w.c->n_jobs == 1);
        all_prepared(&w, 1, 1);
        all_prepared(&w, 1, 2);
        CU_ASSERT_EQUAL(world_told(&w, 0, COMMITTED, 1, 0), 0); /* both are with the file helper */
        world_pump_files(&w, 0);
        CU_ASSERT(is_committed(&w, id, 1));
        CU_ASSERT_EQUAL(world_told(&w, 0, COMMITTED, 1, 0), 1);
        CU_ASSERT(world_told(&w, 0, DROPPED, 1, 1) >= 1);
        CU_ASSERT_EQUAL(w.c->jobs[0]->n_checkpoints, 1);
        CU_ASSERT_STRING_EQUAL(w.c->jobs[0]->checkpoints[0].path, "/ckpt1/step_00000001.e1.1");
        CU_ASSERT_EQUAL(w.files[w.n_files - 1].kind, FILE_REMOVE_TREE);
        CU_ASSERT_STRING_EQUAL(w.files[w.n_files - 1].path, "/ckpt1/step_00000001.e1.2");
        world_stop(&w);
}

/* The disk that takes manifests stands still: what is too much is told, and what waits is committed once it goes on. */
TEST(too_many_manifests_that_wait_are_refused_in_the_open) {
        struct world w;
        uint64_t id = world_start_job(&w, "");

        for (uint64_t step = 1; step <= 65; step++)
                all_prepared(&w, step, 1);
        CU_ASSERT_EQUAL(world_told(&w, 0, DROPPED, 1, 64), 0);
        CU_ASSERT(world_told(&w, 0, DROPPED, 1, 65) >= 1 && world_told(&w, 0, DROPPED, 2, 65) >= 1);
        world_pump(&w);
        CU_ASSERT(is_committed(&w, id, 62) && is_committed(&w, id, 63) && is_committed(&w, id, 64));
        CU_ASSERT_FALSE(is_committed(&w, id, 65));
        all_prepared(&w, 66, 1);
        world_pump(&w);
        CU_ASSERT(is_committed(&w, id, 66));
        world_stop(&w);
}

/* Rank 3's word of the last save is lost for good: it is asked for again, and not waited for. */
TEST(the_last_save_is_asked_for_again_when_a_word_was_lost) {
        struct world w;
        Fp8ctl__V1__Job *j;
        uint64_t id;
        size_t before;

        id = world_start_job(&w, "");
        world_progress(&w, 100);
        for (uint32_t r = 0; r < 3; r++)
                world_prepared(&w, r, 100, 1);
        for (uint32_t r = 0; r < 4; r++)
                world_done(&w, r, 100, false);
        before = w.n_sent;
        world_pass(&w, 59000);
        CU_ASSERT_EQUAL(world_told(&w, before, SAVE_NOW, 0, 0), 0);
        world_pass(&w, 2000);
        CU_ASSERT_EQUAL(world_told(&w, before, SAVE_NOW, 1, 100), 1);
        CU_ASSERT_EQUAL(world_told(&w, before, SAVE_NOW, 2, 100), 1);
        all_prepared(&w, 100, 2);
        world_pump(&w);
        CU_ASSERT(is_committed(&w, id, 100));
        j = world_job(&w, id);
        CU_ASSERT_PTR_NOT_NULL_FATAL(j);
        CU_ASSERT_EQUAL(j->state, FP8CTL__V1__JOB_STATE__COMPLETED);
        fp8ctl__v1__job__free_unpacked(j, NULL);
        world_stop(&w);
}

TEST(a_last_save_that_cannot_be_made_fails_the_job_and_says_so_once) {
        static const char why[] = "all steps done, but the last checkpoint could not be saved: rank 2 on b could not write: No space left on device";
        struct world w;
        Fp8ctl__V1__Job *j;
        char text[400];
        uint64_t id;

        id = world_start_job(&w, "");
        world_progress(&w, 100);
        for (uint32_t attempt = 1; attempt <= 4; attempt++) {
                CU_ASSERT_EQUAL(world_told(&w, 0, SAVE_NOW, 1, 100), attempt - 1);
                for (uint32_t r = 0; r < 4; r++)
                        world_prepared_error(&w, r, 100, attempt, r == 2 ? "No space left on device" : "");
                for (uint32_t r = 0; attempt == 1 && r < 4; r++)
                        world_done(&w, r, 100, false);
                world_pass(&w, 3200);
        }
        j = world_job(&w, id);
        CU_ASSERT_PTR_NOT_NULL_FATAL(j);
        CU_ASSERT_EQUAL(j->state, FP8CTL__V1__JOB_STATE__FAILED);
        CU_ASSERT_STRING_EQUAL(j->reason, why);
        CU_ASSERT_STRING_EQUAL(j->failure, why);
        fp8ctl__v1__job__free_unpacked(j, NULL);
        CU_ASSERT_STRING_EQUAL(world_event(&w, "failed", text, sizeof(text)), "j: all steps done, but the last checkpoint could not be saved: rank 2 on b could not write: No space left on device");
        world_stop(&w);
}

/* Node a leaves at step 50, its ranks say that they were stopped, and the controller that heard it dies: the new one finds them done. */
TEST(a_job_that_was_stopped_is_not_completed_by_a_new_controller) {
        struct world w;
        Fp8ctl__V1__Job *j;
        uint64_t id;

        id = world_start_job(&w, "");
        world_progress(&w, 50);
        world_leaving(&w, 1);
        CU_ASSERT_EQUAL(world_told(&w, 0, FP8CTL__V1__CONTROLLER_MESSAGE__BODY_STOP_RANKS, 2, 0), 1);
        for (uint32_t r = 0; r < 4; r++)
                world_done(&w, r, 50, true);
        world_restart(&w);
        world_return(&w);
        all_prepared(&w, 50, 1);
        world_pump_files(&w, 0);
        CU_ASSERT(is_committed(&w, id, 50));
        j = world_job(&w, id);
        CU_ASSERT_PTR_NOT_NULL_FATAL(j);
        CU_ASSERT(j->state != FP8CTL__V1__JOB_STATE__COMPLETED);
        CU_ASSERT_EQUAL(j->step, 50);
        fp8ctl__v1__job__free_unpacked(j, NULL);
        world_stop(&w);
}

TEST_MAIN("saves")
