/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Types of tensor elements, in memory and in files. In the FP64 build (-DFP8_FP64, tests only) an element of DT_F32 is a double. */
#include <stddef.h>

enum dtype { DT_F32, DT_BF16, DT_E4M3, DT_E5M2, DT_I32, DT_I64, DT_F64, DT_U8, DT_F16 };

static inline size_t dtype_size(enum dtype t) {
        switch (t) {
        case DT_F32:
#ifdef FP8_FP64
                return 8;
#else
                return 4;
#endif
        case DT_I32:
                return 4;
        case DT_BF16:
        case DT_F16:
                return 2;
        case DT_E4M3:
        case DT_E5M2:
        case DT_U8:
                return 1;
        case DT_I64:
        case DT_F64:
                return 8;
        }
        return 0;
}

static inline const char *dtype_name(enum dtype t) {
        static const char *const names[] = { "f32", "bf16", "e4m3", "e5m2", "i32", "i64", "f64", "u8", "f16" };

        return (size_t)t < sizeof(names) / sizeof(names[0]) ? names[t] : "unknown";
}
