/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The one printer: a command builds a JSON object (docs/json.md) or a sheet of columns, and this prints it as -o asks.  Colour appears on
 * terminals only, and never when NO_COLOR is set (https://no-color.org).  Text of others (names, events, reasons) is printed with control characters
 * replaced, so that nothing a job says can move the cursor.
 */
#include <jansson.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "ctl/ctl.h"

#define CTL_JSON_VERSION 1 /* "v" of every object; a key is never given another meaning under the same number */

enum colour { COLOUR_NONE, COLOUR_GREEN, COLOUR_YELLOW, COLOUR_RED, COLOUR_DIM, COLOUR_BOLD };
bool colour_wanted(FILE *f);
/* The escape sequence, or "" when f wants none. colour_end() of the same file closes it. */
const char *colour_begin(FILE *f, enum colour c);
const char *colour_end(FILE *f, enum colour c);
enum colour colour_of_state(const char *state);

/* Prints s without control characters (each becomes '?'); invalid UTF-8 likewise. */
void print_text(FILE *f, const char *s);

/* o: as JSON or YAML, with a newline at its end. */
void print_object(const struct ctl *c, const json_t *o);
/* As one line of JSON, flushed: for streams of objects. */
void print_object_line(const json_t *o);
void print_yaml(FILE *f, const json_t *o);

/* Columns and rows, printed when all are known. */
struct sheet;
struct sheet_column {
        const char *title;
        bool right; /* numbers */
        bool wide;  /* with -o wide only */
        bool state; /* coloured */
};
struct sheet *sheet_new(const struct sheet_column *columns, size_t n);
struct sheet *sheet_free(struct sheet *s);
/* The next cell, row after row. */
void sheet_add(struct sheet *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sheet_print(const struct sheet *s, bool wide, FILE *f);
static inline void sheet_freep(struct sheet **s) {
        sheet_free(*s);
}

/*
 * A protobuf message as a JSON object under the names of fp8ctl.proto: enums by name; an empty string, a NaN or infinite number and a time
 * (..._unix_ms) of 0 are null; an absent message is null; 64-bit numbers are JSON integers.
 */
json_t *pb_to_json(const ProtobufCMessage *m);
/* The same with "v" in front. */
json_t *pb_to_json_v(const ProtobufCMessage *m);

/* "1.2 GiB", "3m12s", "2026-11-22 21:50:00" (local time; "-" for 0), into buf; returns buf. */
#define TEXT_BUF 48
char *text_bytes(char buf[TEXT_BUF], uint64_t bytes);
char *text_duration(char buf[TEXT_BUF], double seconds);
char *text_time(char buf[TEXT_BUF], uint64_t unix_ms);
char *text_age(char buf[TEXT_BUF], uint64_t unix_ms);
/* "-" for NaN. */
char *text_number(char buf[TEXT_BUF], const char *fmt, double v);

#define _cleanup_json_ _cleanup_(json_decrefp) /* jansson's own */
