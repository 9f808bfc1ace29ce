// SPDX-License-Identifier: Apache-2.0
#include <math.h>

#include "tests/train/harness.h"
#include "worker/train/lr.h"

TEST(schedule_every_micro_batch_once_each_way) {
        for (int pp = 1; pp <= 6; pp++)
                for (int stage = 0; stage < pp; stage++)
                        for (int n = 1; n <= 9; n++) {
                                struct schedule_action a[18];
                                int forward = 0, backward = 0, flight = 0, most = 0;

                                CU_ASSERT_EQUAL_FATAL(schedule_1f1b(pp, stage, n, a), 2 * n);
                                for (int i = 0; i < 2 * n; i++) {
                                        CU_ASSERT_EQUAL(a[i].micro_batch, a[i].backward ? backward : forward); /* in order */
                                        *(a[i].backward ? &backward : &forward) += 1;
                                        flight += a[i].backward ? -1 : 1;
                                        most = flight > most ? flight : most;
                                        CU_ASSERT(flight >= 0);
                                }
                                CU_ASSERT(forward == n && backward == n);
                                CU_ASSERT_EQUAL(most, pp - stage < n ? pp - stage : n);
                        }
}

TEST(learning_rate_schedules) {
        struct job_spec s = test_spec();

        s.train.steps = 100;
        s.optimizer.lr = 1;
        s.optimizer.min_lr = 0.1;
        s.optimizer.warmup_steps = 10;
        s.optimizer.decay_steps = 20;
        s.optimizer.schedule = SCHEDULE_COSINE;
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 0), 0.1, 1e-15);
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 9), 1, 1e-15);
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 54), 0.55, 1e-15);
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 99), 0.1, 1e-15);
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 500), 0.1, 1e-15);
        s.optimizer.schedule = SCHEDULE_WSD;
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 4), 0.5, 1e-15);
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 79), 1, 1e-15);
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 89), 0.55, 1e-15);
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 99), 0.1, 1e-15);
        s.optimizer.decay_steps = 0;
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 99), 1, 1e-15);
        s.optimizer.schedule = SCHEDULE_CONSTANT;
        s.optimizer.warmup_steps = 0;
        CU_ASSERT_DOUBLE_EQUAL(lr_at(&s, 0), 1, 1e-15);
}

TEST(loss_scalers) {
        struct loss_scaler l;

        loss_scaler_init(&l, LOSS_SCALE_OFF, 77);
        loss_scaler_update(&l, true);
        CU_ASSERT_EQUAL(l.scale, 1);
        loss_scaler_init(&l, LOSS_SCALE_DYNAMIC, 0);
        CU_ASSERT_EQUAL(l.scale, 65536);
        loss_scaler_update(&l, true);
        CU_ASSERT_EQUAL(l.scale, 32768);
        for (int i = 0; i < 1999; i++)
                loss_scaler_update(&l, false);
        CU_ASSERT_EQUAL(l.scale, 32768);
        loss_scaler_update(&l, false);
        CU_ASSERT_EQUAL(l.scale, 65536);
        for (int i = 0; i < 40; i++)
                loss_scaler_update(&l, true);
        CU_ASSERT_EQUAL(l.scale, 1);
        loss_scaler_init(&l, LOSS_SCALE_GENTLE, 0);
        CU_ASSERT_EQUAL(l.scale, 128);
        for (int i = 0; i < 100; i++)
                loss_scaler_update(&l, false);
        CU_ASSERT_DOUBLE_EQUAL(l.scale, 128 * 1.01, 1e-12);
        for (int i = 0; i < 20000; i++)
                loss_scaler_update(&l, false);
        CU_ASSERT_EQUAL(l.scale, 512);
        loss_scaler_update(&l, true);
        CU_ASSERT_EQUAL(l.scale, 256);
        loss_scaler_init(&l, LOSS_SCALE_GENTLE, 16);
        CU_ASSERT_EQUAL(l.scale, 16);
}

static struct job_spec wide(void) {
        struct job_spec s = test_spec();

        s.model.hidden_size = 256;
        s.model.intermediate_size = 600;
        s.model.head_dim = 64;
        s.model.vocab_size = 1000;
        return s;
}

TEST(optimizer_shards_are_whole_bands) {
        for (int dp = 1; dp <= 7; dp++) {
                struct job_spec s = wide();
                struct layout l;
                struct tensor_table t;
                struct error e = { 0 };
                int64_t *seen, least = INT64_MAX, most = 0;

                test_layout(&s, 2, 1, dp);
                ASSERT_OK(layout_init(&s, 0, &l, &e), e);
                ASSERT_OK(tensor_table_init(&s, &l, &t, &e), e);
                seen = calloc((size_t)t.n, sizeof(*seen));
                for (int i = 0; i < dp; i++) {
                        struct zero z;

                        ASSERT_OK(zero_init(&t, dp, i, &z, &e), e);
                        for (int k = 0; k < z.n_pieces; k++) {
                                const struct zero_piece *p = &z.pieces[k];

                                CU_ASSERT_EQUAL(p->row0, seen[p->tensor - t.tensors]); /* in order, without a gap */
                                seen[p->tensor - t.tensors] += p->rows;
                                CU_ASSERT_EQUAL(p->count, p->rows * p->tensor->cols);
                                CU_ASSERT_EQUAL(p->row0 % ZERO_BAND, 0);
                                CU_ASSERT(p->rows % ZERO_BAND == 0 || p->row0 + p->rows == p->tensor->rows);
                        }
                        least = zero_count(&z) < least ? zero_count(&z) : least;
                        most = zero_count(&z) > most ? zero_count(&z) : most;
                        zero_done(&z);
                }
                for (int k = 0; k < t.n; k++)
                        CU_ASSERT_EQUAL(seen[k], t.tensors[k].rows);
                CU_ASSERT(most - least <= 2 * ZERO_BAND * 300);
                free(seen);
                tensor_table_done(&t);
        }
}

TEST(tensor_slices_tile_the_model) {
        const int layouts[][3] = { { 1, 1, 1 }, { 2, 2, 1 }, { 1, 2, 2 } };

        for (size_t k = 0; k < 3; k++) {
                struct job_spec s = wide();
                struct error e = { 0 };
                int64_t elements = 0, params = model_parameters(&s.model);

                test_layout(&s, layouts[k][0], layouts[k][1], layouts[k][2]);
                for (int r = 0; r < layouts[k][0] * layouts[k][1] * layouts[k][2]; r++) {
                        struct layout l;
                        struct tensor_table t;

                        ASSERT_OK(layout_init(&s, r, &l, &e), e);
                        ASSERT_OK(tensor_table_init(&s, &l, &t, &e), e);
                        for (int i = 0; i < t.n; i++) {
                                char name[SHARD_NAME_MAX];

                                CU_ASSERT_EQUAL(tensor_name(&s.model, t.tensors[i].number, name, sizeof(name)), 0);
                                CU_ASSERT_STRING_EQUAL(name, t.tensors[i].name);
                                if (t.tensors[i].counted && l.dp_index == 0)
                                        elements += t.tensors[i].count;
                        }
                        tensor_table_done(&t);
                }
                CU_ASSERT_EQUAL(elements, params);
        }
}

TEST(findings_have_names_in_order) {
        struct job_spec s = test_spec();
        char a[SHARD_NAME_MAX], b[SHARD_NAME_MAX];
        uint64_t last = 0;

        for (int pass = 0; pass < 2; pass++)
                for (int i = 0; i < 2; i++)
                        for (int k = 0; k < SITES; k++) {
                                int layer = pass ? 1 - i : i;
                                uint64_t f = finding_site(&s.model, layer, (enum site)k, 3);

                                if ((k >= SITE_DY_DOWN) != pass)
                                        continue;
                                CU_ASSERT(f > last);
                                last = f;
                                CU_ASSERT_EQUAL(finding_rank(f), 3);
                                site_name(layer, (enum site)k, a, sizeof(a));
                                CU_ASSERT_EQUAL(finding_name(&s.model, f, b, sizeof(b)), 0);
                                CU_ASSERT_STRING_EQUAL(a, b);
                        }
        for (int reduced = 0; reduced < 2; reduced++)
                for (uint32_t n = 0; n < 21; n++) {
                        uint64_t f = finding_gradient(&s.model, n, reduced, 4095);

                        CU_ASSERT(f > last);
                        last = f;
                        CU_ASSERT_EQUAL(finding_rank(f), 4095);
                        CU_ASSERT_EQUAL(tensor_name(&s.model, n, a, sizeof(a)), 0);
                        CU_ASSERT_EQUAL(finding_name(&s.model, f, b, sizeof(b)), 0);
                        CU_ASSERT_STRING_EQUAL(a, b);
                }
        CU_ASSERT_EQUAL(finding_name(&s.model, FINDING_NONE, b, sizeof(b)), -EINVAL);
}

TEST(groups_and_decay) {
        struct job_spec s = test_spec();
        struct layout l;
        struct tensor_table t;
        struct error e = { 0 };

        s.optimizer.n_groups = 2;
        s.optimizer.groups[0] = (struct job_param_group){ .match = (char *)(uintptr_t)"*.mlp.*", .lr_scale = 0.5, .weight_decay = NAN };
        s.optimizer.groups[1] = (struct job_param_group){ .match = (char *)(uintptr_t)"model.*", .lr_scale = 2, .weight_decay = 0.3 };
        ASSERT_OK(layout_init(&s, 0, &l, &e), e);
        ASSERT_OK(tensor_table_init(&s, &l, &t, &e), e);
        CU_ASSERT_EQUAL(tensor_table_find(&t, TENSOR_UP, 1)->lr_scale, 0.5);
        CU_ASSERT_EQUAL(tensor_table_find(&t, TENSOR_UP, 1)->weight_decay, 0.1);
        CU_ASSERT_EQUAL(tensor_table_find(&t, TENSOR_Q, 0)->lr_scale, 2);
        CU_ASSERT_EQUAL(tensor_table_find(&t, TENSOR_Q, 0)->weight_decay, 0.3);
        CU_ASSERT_EQUAL(tensor_table_find(&t, TENSOR_HEAD, -1)->lr_scale, 1);
        tensor_table_done(&t);
        s.optimizer.n_groups = 0;
        ASSERT_OK(tensor_table_init(&s, &l, &t, &e), e);
        CU_ASSERT_EQUAL(tensor_table_find(&t, TENSOR_FINAL_NORM, -1)->weight_decay, 0);
        CU_ASSERT_EQUAL(tensor_table_find(&t, TENSOR_HEAD, -1)->weight_decay, 0.1);
        tensor_table_done(&t);
}

TEST(layouts_that_do_not_fit_are_refused) {
        struct job_spec s = test_spec();
        struct layout l;
        struct error e = { 0 };

        s.parallel.tp = 4;
        ASSERT_ERROR(layout_init(&s, 0, &l, &e), -EINVAL, e, "num_key_value_heads");
        s.parallel.tp = 1;
        s.parallel.pp = 3;
        ASSERT_ERROR(layout_init(&s, 0, &l, &e), -EINVAL, e, "num_hidden_layers");
        s.parallel.pp = 1;
        ASSERT_ERROR(layout_init(&s, 1, &l, &e), -EINVAL, e, "rank");
}

/* Of three or more replicas the odd one is named; of two nobody knows which. Places of the layout are looked at one by one. */
TEST(odd_replicas_are_named_by_majority) {
        struct layout l = { .tp = 2, .pp = 1, .dp = 3, .n_ranks = 6 };
        struct vote votes[6] = { 0 };
        bool odd[6];

        for (int i = 0; i < 6; i++)
                votes[i].checksum = i % 2 ? 77 : 55;
        CU_ASSERT_EQUAL(replica_odd(&l, votes, odd), 0);
        votes[4].checksum = 56;
        CU_ASSERT_EQUAL(replica_odd(&l, votes, odd), 1);
        CU_ASSERT(odd[4] && !odd[0] && !odd[2] && !odd[5]);
        votes[2].checksum = 57; /* all three differ */
        CU_ASSERT_EQUAL(replica_odd(&l, votes, odd), 3);
        l.dp = 2;
        l.n_ranks = 4;
        CU_ASSERT_EQUAL(replica_odd(&l, votes, odd), 2);
        CU_ASSERT(odd[0] && odd[2] && !odd[1] && !odd[3]);
}

TEST_MAIN("train-units")
