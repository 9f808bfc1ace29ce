/* SPDX-License-Identifier: Apache-2.0 */
/* Metrics rows out of JSON lines cut anywhere: one row a step, the highest epoch's; rubbish is passed over. */
#include "ctl/metrics.h"
#include "tests/test.h"

static const char lines[] = "{\"v\":1,\"step\":1,\"epoch\":1,\"loss\":5.5,\"loss_hex\":\"40b00000\",\"skipped\":false}\n"
                            "{\"v\":1,\"step\":2,\"epoch\":1,\"loss\":5.25,\"digest\":null}\n"
                            "{\"v\":1,\"step\":3,\"epoch\":1,\"loss\":5.0}\n"
                            "{\"v\":1,\"step\":2,\"epoch\":2,\"loss\":5.25}\n"
                            "not json\n"
                            "{\"step\":-1,\"epoch\":1}\n"
                            "{\"step\":\"4\",\"epoch\":1}\n"
                            "[1,2]\n"
                            "{\"v\":1,\"step\":3,\"epoch\":2,\"loss\":{\"a\":1}}\n"
                            "{\"v\":1,\"step\":4,\"epoch\":2,\"loss\":4.5}\n"
                            "{\"v\":1,\"step\":4,\"epoch\":1,\"loss\":9.5}\n"
                            "{\"v\":1,\"step\":5,\"ep";

static void check_rows(struct metrics *m) {
        size_t n;
        struct metrics_row *rows = metrics_rows(m, &n);

        CU_ASSERT_EQUAL_FATAL(n, 4);
        for (size_t i = 0; i < n; i++)
                CU_ASSERT_EQUAL(rows[i].step, i + 1);
        CU_ASSERT_EQUAL(rows[0].epoch, 1);
        CU_ASSERT_EQUAL(rows[1].epoch, 2);
        CU_ASSERT_EQUAL(rows[2].epoch, 2);
        CU_ASSERT_EQUAL(rows[3].epoch, 2);
        CU_ASSERT_DOUBLE_EQUAL(json_real_value(json_object_get(rows[3].row, "loss")), 4.5, 0);
        CU_ASSERT(json_is_null(json_object_get(rows[2].row, "loss"))); /* an object where a number belongs */
        CU_ASSERT_STRING_EQUAL(json_string_value(json_object_get(rows[0].row, "loss_hex")), "40b00000");
        CU_ASSERT(json_is_null(json_object_get(rows[0].row, "digest")));
}

TEST(whole) {
        struct metrics *m = metrics_new(METRICS_STEPS);

        CU_ASSERT_EQUAL(metrics_feed(m, lines, strlen(lines)), 0);
        check_rows(m);
        metrics_free(m);
}

TEST(cut_anywhere) {
        for (size_t piece = 1; piece < 40; piece++) {
                struct metrics *m = metrics_new(METRICS_STEPS);

                for (size_t at = 0; at < strlen(lines); at += piece)
                        CU_ASSERT_EQUAL(metrics_feed(m, lines + at, strlen(lines) - at < piece ? strlen(lines) - at : piece), 0);
                check_rows(m);
                metrics_free(m);
        }
}

TEST(a_line_without_end_is_bounded) {
        struct metrics *m = metrics_new(METRICS_STEPS);
        static char a[100000];
        size_t n;

        memset(a, 'a', sizeof(a));
        for (int i = 0; i < 20; i++)
                CU_ASSERT_EQUAL(metrics_feed(m, a, sizeof(a)), 0);
        CU_ASSERT_EQUAL(metrics_feed(m, "\n{\"step\":7,\"epoch\":1}\n", 22), 0);
        CU_ASSERT_EQUAL_FATAL((metrics_rows(m, &n), n), 1);
        CU_ASSERT_EQUAL(metrics_rows(m, &n)[0].step, 7);
        metrics_free(m);
}

TEST(a_replaced_row_is_new_again) {
        struct metrics *m = metrics_new(METRICS_STEPS);
        size_t n;

        metrics_feed(m, "{\"step\":1,\"epoch\":1}\n", 21);
        metrics_rows(m, &n)[0].shown = true;
        metrics_feed(m, "{\"step\":1,\"epoch\":2}\n", 21);
        CU_ASSERT(!metrics_rows(m, &n)[0].shown);
        metrics_free(m);
}

TEST(fp8_rows_beside_steps) {
        static const char mixed[] = "{\"v\":1,\"fp8_step\":4,\"epoch\":1,\"layer\":1,\"tensors\":{\"mlp.input\":[2.5,0.0,0.25],\"b\":[null,\"x\"]}}\n"
                                    "{\"v\":1,\"fp8_step\":4,\"epoch\":1,\"layer\":0,\"tensors\":{\"mlp.input\":[1.5,0.5,0.0]}}\n"
                                    "{\"v\":1,\"step\":4,\"epoch\":1,\"loss\":4.5}\n"
                                    "{\"v\":1,\"fp8_step\":4,\"epoch\":2,\"layer\":0,\"tensors\":{\"mlp.input\":[1.75,0.5,0.0]}}\n"
                                    "{\"v\":1,\"fp8_step\":6,\"epoch\":2,\"layer\":-1,\"tensors\":{}}\n{\"v\":1,\"fp8_step\":6,\"epoch\":2,\"layer\":0,\"tensors\":[]}\n";
        struct metrics *m = metrics_new(METRICS_FP8), *steps = metrics_new(METRICS_STEPS);
        struct metrics_row *rows;
        json_t *t;
        size_t n;

        CU_ASSERT_EQUAL(metrics_feed(m, mixed, strlen(mixed)), 0);
        CU_ASSERT_EQUAL(metrics_feed(steps, mixed, strlen(mixed)), 0);
        CU_ASSERT_EQUAL((metrics_rows(steps, &n), n), 1);
        rows = metrics_rows(m, &n);
        CU_ASSERT_EQUAL_FATAL(n, 2);
        CU_ASSERT(rows[0].step == 4 && rows[0].layer == 0 && rows[0].epoch == 2 && rows[1].layer == 1 && rows[1].epoch == 1);
        t = json_array_get(json_object_get(rows[0].row, "tensors"), 0);
        CU_ASSERT_DOUBLE_EQUAL(json_real_value(json_object_get(t, "amax")), 1.75, 0);
        t = json_object_get(rows[1].row, "tensors");
        CU_ASSERT_EQUAL(json_array_size(t), 2);
        CU_ASSERT_DOUBLE_EQUAL(json_real_value(json_object_get(json_array_get(t, 0), "flushed")), 0.25, 0);
        t = json_array_get(t, 1);
        CU_ASSERT(json_is_null(json_object_get(t, "amax")) && json_is_null(json_object_get(t, "saturated")) && json_is_null(json_object_get(t, "flushed")));
        metrics_free(m);
        metrics_free(steps);
}

TEST_MAIN("ctl metrics")
