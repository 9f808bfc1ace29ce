/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fp8-nodetest: is this node's arithmetic right, does its memory keep what is written, how fast are copies and the disk, do its clocks agree?  A process of its own, because it opens devices: the worker runs it,
 * bounded in time, and passes on what it says.
 */
#include "worker/health/nodetest.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/opt.h"
#include "version.h"

#define EXIT_USAGE 2

void part_say(const char *name, int device, enum health_verdict v, double value, const char *unit, const char *fmt, ...) {
        char text[256], *line;
        json_t *o;
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        o = json_pack("{s:s, s:i, s:s, s:s, s:s}", "name", name, "device", device, "verdict", health_verdict_name(v), "unit", unit, "text", text);
        if (o && !isnan(value))
                json_object_set_new(o, "value", json_real(value));
        line = o ? json_dumps(o, JSON_COMPACT) : NULL;
        if (line)
                puts(line);
        fflush(stdout);
        free(line);
        json_decref(o);
}

int main(int argc, char **argv) {
        static const char *const kinds[] = { "cpu", "cuda", NULL };
        const char *kind = "cpu", *dir = NULL;
        int64_t devices = 1, device = -1, ms = 0;
        bool wrong = false, products = false, help = false;
        const struct opt table[] = {
                { "device-kind", 0, OPT_CHOICE, "KIND", "cpu (default) or cuda", &kind, 0, 0, kinds },
                { "devices", 0, OPT_INT, "N", "how many of them (default 1)", &devices, 0, 64, NULL },
                { "device", 0, OPT_INT, "N", "this one only", &device, 0, 63, NULL },
                { "products", 0, OPT_FLAG, NULL, "nothing but the products of matrices: a canary", &products, 0, 0, NULL },
                { "dir", 0, OPT_STRING, "DIR", "a folder whose disk is tested", &dir, 0, 0, NULL },
                { "time", 0, OPT_DURATION_MS, "TIME", "for each product of a device (default 50ms on a processor, 1s on a GPU)", &ms, 1, 60000, NULL },
                { "expect-wrong", 0, OPT_FLAG, NULL, "expect other digests than the right ones: a test's", &wrong, 0, 0, NULL },
                { "help", 'h', OPT_FLAG, NULL, "print this help", &help, 0, 0, NULL },
        };
        _cleanup_free_ char **rest = calloc((size_t)argc + 1, sizeof(*rest));
        struct error e = { 0 };
        int n = 0, r = rest ? opt_parse(table, ARRAY_SIZE(table), argc, argv, rest, &n, &e) : -ENOMEM;

        if (r == 0 && n > 0)
                r = error_set(&e, -EINVAL, "found '%s', expected options only", rest[0]);
        if (r < 0) {
                fprintf(stderr, "fp8-nodetest: %s\n", e.text);
                return EXIT_USAGE;
        }
        if (help) {
                printf("usage: fp8-nodetest [OPTIONS]\n\nTests this node, and prints one JSON object a part. fp8ctl node test runs it.\n\n");
                opt_print_help(table, ARRAY_SIZE(table));
                return EXIT_SUCCESS;
        }
        if (ms == 0)
                ms = strcmp(kind, "cpu") == 0 ? 50 : 1000;
        for (int i = device < 0 ? 0 : (int)device; i < (device < 0 ? (int)devices : (int)device + 1); i++)
                test_device(kind, i, (double)ms / 1e3, wrong, products);
        if (products)
                return EXIT_SUCCESS;
        test_compare();
        if (dir)
                test_disk(dir);
        test_clock();
        return EXIT_SUCCESS;
}
