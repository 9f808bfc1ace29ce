/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rpc [-o table|json] [--seconds S]: round trips and stream messages a second through proto/rpc_*, over a Unix socket, client and server in one process.
 */
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/loop.h"
#include "base/opt.h"
#include "bench/report.h"
#include "proto/rpc_client.h"
#include "proto/rpc_server.h"

#define MESSAGE 64 /* bytes: a heartbeat of a few ranks */
#define WINDOW 64  /* messages of a stream on their way */

static void on_echo(void *arg, struct rpc_call *c, const uint8_t *data, size_t len) {
        rpc_call_reply(c, data, len);
}

static void on_stream(void *arg, struct rpc_call *c, const uint8_t *data, size_t len) {
        rpc_call_send(c, data, len);
}

static const struct rpc_method methods[] = { { .path = "/bench/Echo", .on_message = on_echo }, { .path = "/bench/Stream", .stream = true, .on_message = on_stream } };

struct bench {
        struct loop *loop;
        char address[128];
        double seconds, unary, stream;
        int rc;
        struct error e;
        atomic_bool done;
        struct rpc_stream *s;
        uint64_t received, began_ns;
        bool ended;
};

static void *unary_thread(void *arg) {
        struct bench *b = arg;
        struct rpc_client *c = NULL;
        uint8_t data[MESSAGE] = { 0 };
        uint64_t n = 0, began;

        b->rc = rpc_client_new(b->address, NULL, &c, &b->e);
        began = clock_mono_ns();
        while (b->rc == 0 && (double)(clock_mono_ns() - began) < b->seconds * 1e9) {
                _cleanup_free_ uint8_t *reply = NULL;
                size_t len;

                b->rc = rpc_client_call(c, methods[0].path, data, sizeof(data), 5000, &reply, &len, &b->e);
                n++;
        }
        b->unary = (double)n * 1e9 / (double)(clock_mono_ns() - began);
        rpc_client_free(c);
        atomic_store(&b->done, true);
        return NULL;
}

static void on_message(void *arg, const uint8_t *data, size_t len) {
        struct bench *b = arg;

        b->received++;
        rpc_stream_send(b->s, data, len);
}

static void on_closed(void *arg, int status, const char *text) {
        struct bench *b = arg;

        b->ended = true;
        b->rc = error_set(&b->e, -1, "the stream ended: %d %s", status, text);
}

static int run_stream(struct bench *b) {
        struct rpc_client *c = NULL;
        uint8_t data[MESSAGE] = { 0 };
        int r = rpc_client_new(b->address, NULL, &c, &b->e);

        if (r == 0)
                r = rpc_stream_open(c, b->loop, methods[1].path, on_message, on_closed, b, &b->s, &b->e);
        for (int i = 0; i < WINDOW && r == 0; i++)
                r = rpc_stream_send(b->s, data, sizeof(data));
        b->began_ns = clock_mono_ns();
        while (r == 0 && !b->ended && (double)(clock_mono_ns() - b->began_ns) < b->seconds * 1e9)
                r = loop_turn(b->loop, 10);
        b->stream = (double)b->received * 1e9 / (double)(clock_mono_ns() - b->began_ns);
        rpc_stream_free(b->s);
        rpc_client_free(c);
        return r < 0 ? r : b->rc;
}

static int run(struct bench *b) {
        struct rpc_server_config c = { .methods = methods, .n_methods = ARRAY_SIZE(methods), .socket_mode = 0600 };
        struct rpc_server *s = NULL;
        pthread_t t;
        int r;

        c.loop = b->loop;
        c.arg = b;
        c.address = b->address;
        r = rpc_server_new(&c, &s, &b->e);
        if (r < 0)
                return r;
        r = -pthread_create(&t, NULL, unary_thread, b);
        if (r == 0) {
                while (!atomic_load(&b->done))
                        loop_turn(b->loop, 5);
                pthread_join(t, NULL);
                r = b->rc < 0 ? b->rc : run_stream(b);
        }
        rpc_server_free(s, 200);
        return r;
}

static void print(const struct bench *b, bool json) {
        const struct {
                const char *name;
                double value;
                const char *unit;
        } rows[] = { { "unary_round_trips", b->unary, "1/s" }, { "stream_echoes", b->stream, "1/s" } };
        json_t *all = json_array();

        if (!json)
                printf("%-24s %12s  %s\n", "NAME", "VALUE", "UNIT");
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                report_add(all, rows[i].name, rows[i].value, rows[i].unit, NAN);
                if (!json)
                        printf("%-24s %12.0f  %s\n", rows[i].name, rows[i].value, rows[i].unit);
        }
        if (json)
                (void)report_print(all, 0);
        else
                json_decref(all);
}

int main(int argc, char **argv) {
        static const char *const formats[] = { "table", "json", NULL };
        struct bench b = { .seconds = 2 };
        const char *format = "table";
        const struct opt table[] = {
                { "output", 'o', OPT_CHOICE, "FORMAT", "table or json", &format, 0, 0, formats },
                { "seconds", 0, OPT_DOUBLE, "S", "how long each is measured (default 2)", &b.seconds, 0, 0, NULL },
        };
        _cleanup_free_ char **rest = calloc((size_t)argc + 1, sizeof(*rest));
        char dir[] = "/tmp/bench-rpc-XXXXXX";
        int n = 0, r = rest ? opt_parse(table, ARRAY_SIZE(table), argc, argv, rest, &n, &b.e) : -1;

        if (r < 0 || n > 0) {
                fprintf(stderr, "rpc: %s\n", r < 0 ? b.e.text : "expected options only");
                return 2;
        }
        r = rpc_init(&b.e);
        if (r == 0 && !mkdtemp(dir))
                r = error_set(&b.e, -1, "no folder in /tmp");
        if (r == 0 && loop_new(&b.loop) < 0)
                r = error_set(&b.e, -1, "no event loop");
        if (r == 0) {
                snprintf(b.address, sizeof(b.address), "unix:%s/s.sock", dir);
                r = run(&b);
                loop_free(b.loop);
                file_remove_tree(dir, NULL);
                rpc_shutdown();
        }
        if (r < 0) {
                fprintf(stderr, "rpc: %s\n", b.e.text);
                return 1;
        }
        print(&b, strcmp(format, "json") == 0);
        return 0;
}
