/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The parts of fp8-nodetest. Each says what it found on standard output, one JSON object a line. */
#include <stdbool.h>
#include <stdint.h>

#include "proto/health.h"

/* value NaN: none. */
void part_say(const char *name, int device, enum health_verdict v, double value, const char *unit, const char *fmt, ...) __attribute__((format(printf, 6, 7)));

/* gemm, gemm-fp8, memory, copy of one device; seconds: about so long each. wrong: another digest is expected, so that a test sees it fail. products_only: gemm and gemm-fp8. */
void test_device(const char *kind, int index, double seconds, bool wrong, bool products_only);
/* Digests of gemm-fp8 that differ between devices of one make name the odd one; called after all devices. */
void test_compare(void);
void test_disk(const char *dir);
void test_clock(void);
