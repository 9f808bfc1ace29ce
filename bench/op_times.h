/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The CUDA backend's table with an event before and after each operation: what a step spends where.  Operations are counted by name and shape; work is bytes (each input read once,
 * each output written once) or multiplications and additions.
 */
#include "kernels/dev.h"

struct op_time {
        char name[64];
        int calls;
        double seconds;
        double bytes, flops; /* one of them, of all calls */
        bool fp8;
};

/* The table; its operations run as ever until op_times_start. */
const struct dev_ops *op_times_table(void);
void op_times_start(void);
/* Of all operations since; *ret is this module's, longest first. The stream must be done. */
int op_times_stop(struct op_time **ret);
