/* SPDX-License-Identifier: Apache-2.0 */
/* The printer: messages as JSON, JSON as YAML, sheets, and text that must not move the cursor. */
#include <math.h>
#include <yaml.h>

#include "ctl/print.h"
#include "proto/fp8ctl.pb-c.h"
#include "tests/test.h"

/* What print_fn writes, as a string to free. */
static char *captured(void (*print_fn)(FILE *f, const void *arg), const void *arg) {
        char *text = NULL;
        size_t len = 0;
        FILE *f = open_memstream(&text, &len);

        print_fn(f, arg);
        fclose(f);
        return text;
}

static void text_fn(FILE *f, const void *arg) {
        print_text(f, arg);
}

TEST(control_characters_are_replaced) {
        static const struct {
                const char *in, *out;
        } cases[] = {
                { "plain", "plain" },       { "\033[31mred", "?[31mred" },   { "a\rb\nc\td", "a?b?c?d" },
                { "gr\xc3\xb6\xc3\x9f" "er \xe2\x9c\x93", "gr\xc3\xb6\xc3\x9f" "er \xe2\x9c\x93" }, { "\xff\xfe", "??" }, { "\xc2\x9b" "31m", "??31m" }, { "\xc3", "?" },
                { "\xc0\xaf", "??" },
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                char *text = captured(text_fn, cases[i].in);

                CU_ASSERT_STRING_EQUAL(text, cases[i].out);
                free(text);
        }
}

TEST(messages_as_json) {
        Fp8ctl__V1__Job j = FP8CTL__V1__JOB__INIT;
        json_t *o;

        j.id = 12;
        j.name = "n";
        j.state = FP8CTL__V1__JOB_STATE__RUNNING;
        j.loss_last = 2.5;
        j.loss_first = NAN;
        j.val_loss = INFINITY;
        j.steps = UINT64_MAX;
        j.submitted_unix_ms = 5;
        j.user = "\xff";
        o = pb_to_json_v(&j.base);
        CU_ASSERT_EQUAL(json_integer_value(json_object_get(o, "v")), 1);
        CU_ASSERT_EQUAL(json_integer_value(json_object_get(o, "id")), 12);
        CU_ASSERT_STRING_EQUAL(json_string_value(json_object_get(o, "state")), "RUNNING");
        CU_ASSERT_DOUBLE_EQUAL(json_real_value(json_object_get(o, "loss_last")), 2.5, 0);
        CU_ASSERT(json_is_null(json_object_get(o, "loss_first")));
        CU_ASSERT(json_is_null(json_object_get(o, "val_loss")));
        CU_ASSERT(json_is_null(json_object_get(o, "steps")));
        CU_ASSERT(json_is_null(json_object_get(o, "checkpoint")));
        CU_ASSERT(json_is_null(json_object_get(o, "plan")));
        CU_ASSERT(json_is_null(json_object_get(o, "started_unix_ms")));
        CU_ASSERT_EQUAL(json_integer_value(json_object_get(o, "submitted_unix_ms")), 5);
        CU_ASSERT(json_is_string(json_object_get(o, "user")));
        json_decref(o);
}

TEST(lists_and_oneofs) {
        Fp8ctl__V1__PlanRank a = FP8CTL__V1__PLAN_RANK__INIT, b = FP8CTL__V1__PLAN_RANK__INIT, *ranks[] = { &a, &b };
        Fp8ctl__V1__Plan p = FP8CTL__V1__PLAN__INIT;
        Fp8ctl__V1__WorkerLeaving leaving = FP8CTL__V1__WORKER_LEAVING__INIT;
        Fp8ctl__V1__WorkerMessage m = FP8CTL__V1__WORKER_MESSAGE__INIT;
        char *warnings[] = { "one", "two" };
        Fp8ctl__V1__SubmitReply s = FP8CTL__V1__SUBMIT_REPLY__INIT;
        json_t *o;

        b.rank = 1;
        b.pid = 77;
        p.ranks = ranks;
        p.n_ranks = 2;
        s.plan = &p;
        s.warnings = warnings;
        s.n_warnings = 2;
        o = pb_to_json(&s.base);
        CU_ASSERT_EQUAL(json_integer_value(json_object_get(json_array_get(json_object_get(json_object_get(o, "plan"), "ranks"), 1), "pid")), 77);
        CU_ASSERT_STRING_EQUAL(json_string_value(json_array_get(json_object_get(o, "warnings"), 1)), "two");
        json_decref(o);
        m.body_case = FP8CTL__V1__WORKER_MESSAGE__BODY_LEAVING;
        m.leaving = &leaving;
        o = pb_to_json(&m.base);
        CU_ASSERT_EQUAL(json_object_size(o), 1);
        CU_ASSERT_PTR_NOT_NULL(json_object_get(o, "leaving"));
        json_decref(o);
}

static void yaml_fn(FILE *f, const void *arg) {
        print_yaml(f, arg);
}

TEST(yaml_reads_back) {
        static const char *const strings[] = { "word", "12", "null", "true", "a: b", "- x", "", "#", "line\nbreak", "ä", "~", "1e5", "/path/x", "0x10", ".5" };
        json_t *o = json_pack("{s:i, s:f, s:n, s:b, s:[], s:{}, s:[{s:i, s:s}, {s:i}]}", "i", 3, "r", 2.0, "n", "b", 1, "empty", "map", "list", "a", 1, "s", "x", "a", 2);
        char *text;
        yaml_parser_t p;
        yaml_document_t d;

        for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++) {
                char key[8];

                snprintf(key, sizeof(key), "s%zu", i);
                json_object_set_new(o, key, json_string(strings[i]));
        }
        text = captured(yaml_fn, o);
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "i: 3\n"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "r: 2.0\n"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "n: null\n"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "s0: word\n"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "s1: \"12\"\n"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "s2: \"null\"\n"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "empty: []\n"));
        yaml_parser_initialize(&p);
        yaml_parser_set_input_string(&p, (unsigned char *)text, strlen(text));
        CU_ASSERT_FATAL(yaml_parser_load(&p, &d));
        for (yaml_node_pair_t *pair = yaml_document_get_root_node(&d)->data.mapping.pairs.start;
             pair < yaml_document_get_root_node(&d)->data.mapping.pairs.top; pair++) {
                const char *key = (char *)yaml_document_get_node(&d, pair->key)->data.scalar.value;

                if (key[0] == 's' && key[1])
                        CU_ASSERT_STRING_EQUAL((char *)yaml_document_get_node(&d, pair->value)->data.scalar.value, strings[atoi(key + 1)]);
        }
        yaml_document_delete(&d);
        yaml_parser_delete(&p);
        free(text);
        json_decref(o);
}

static void sheet_fn(FILE *f, const void *arg) {
        sheet_print(arg, false, f);
}

static void wide_fn(FILE *f, const void *arg) {
        sheet_print(arg, true, f);
}

TEST(sheets) {
        static const struct sheet_column columns[] = { { "ID", true, false, false }, { "NAME", false, false, false }, { "MORE", false, true, false }, { "END", false, false, true } };
        struct sheet *s = sheet_new(columns, 4);
        char *text;

        sheet_add(s, "%d", 7);
        sheet_add(s, "gr\xc3\xb6");
        sheet_add(s, "m");
        sheet_add(s, "RUNNING");
        sheet_add(s, "%d", 1234);
        sheet_add(s, "abcdef");
        sheet_add(s, "%s", "");
        sheet_add(s, "x");
        text = captured(sheet_fn, s);
        CU_ASSERT_STRING_EQUAL(text, "  ID  NAME    END\n   7  gr\xc3\xb6     RUNNING\n1234  abcdef  x\n");
        free(text);
        text = captured(wide_fn, s);
        CU_ASSERT_STRING_EQUAL(text, "  ID  NAME    MORE  END\n   7  gr\xc3\xb6     m     RUNNING\n1234  abcdef  -     x\n");
        free(text);
        sheet_free(s);
}

TEST(numbers_for_people) {
        char buf[TEXT_BUF];

        CU_ASSERT_STRING_EQUAL(text_bytes(buf, 0), "0 B");
        CU_ASSERT_STRING_EQUAL(text_bytes(buf, 1536), "1.5 KiB");
        CU_ASSERT_STRING_EQUAL(text_bytes(buf, 300ull << 30), "300 GiB");
        CU_ASSERT_STRING_EQUAL(text_duration(buf, 0.25), "0.2s");
        CU_ASSERT_STRING_EQUAL(text_duration(buf, 75), "1m15s");
        CU_ASSERT_STRING_EQUAL(text_duration(buf, 3700), "1h01m");
        CU_ASSERT_STRING_EQUAL(text_duration(buf, NAN), "-");
        CU_ASSERT_STRING_EQUAL(text_time(buf, 0), "-");
        CU_ASSERT_STRING_EQUAL(text_number(buf, "%.2f", NAN), "-");
        CU_ASSERT_STRING_EQUAL(text_number(buf, "%.2f", 1.005), "1.00");
}

TEST_MAIN("ctl print")
