/* SPDX-License-Identifier: Apache-2.0 */
#include "format/values.h"

#include <math.h>
#include <string.h>

#include "tests/test.h"

static uint16_t bf16_of(double v) {
        uint16_t h;

        values_write(DT_BF16, &v, &h, 1);
        return h;
}

static double of_bf16(uint16_t h) {
        double v;

        values_read(DT_BF16, &h, &v, 1);
        return v;
}

static double of_f16(uint16_t h) {
        double v;

        values_read(DT_F16, &h, &v, 1);
        return v;
}

TEST(bf16_and_back) {
        for (uint32_t h = 0; h < 65536; h++) {
                double v = of_bf16((uint16_t)h);

                if (isnan(v))
                        CU_ASSERT(isnan(of_bf16(bf16_of(v))))
                else if (bf16_of(v) != h)
                        CU_FAIL_FATAL("a BF16 value did not come back");
        }
}

/* Between two neighbours the nearer one is taken, in the middle the even one: also where a float in between would round first. */
TEST(bf16_rounds_once) {
        for (uint32_t h = 0x3f00; h < 0x4000; h++) {
                double a = of_bf16((uint16_t)h), b = of_bf16((uint16_t)(h + 1)), middle = (a + b) / 2;
                uint32_t even = h & 1 ? h + 1 : h;

                if (bf16_of(middle) != even || bf16_of(nextafter(middle, 0)) != h || bf16_of(nextafter(middle, 9)) != h + 1 || bf16_of(-middle) != (0x8000 | even) ||
                    bf16_of(-nextafter(middle, 9)) != (0x8000 | (h + 1)))
                        CU_FAIL_FATAL("a value was not rounded to the nearest BF16");
        }
        CU_ASSERT_EQUAL(bf16_of(0x1p-134), 0);      /* half of the smallest: to even */
        CU_ASSERT_EQUAL(bf16_of(0x1.8p-134), 1);
        CU_ASSERT_EQUAL(bf16_of(0x1p-300), 0);
        CU_ASSERT_EQUAL(bf16_of(3.4e38), 0x7f80);   /* beyond the largest, 3.39e38 */
        CU_ASSERT_EQUAL(bf16_of(-1e300), 0xff80);
        CU_ASSERT_EQUAL(bf16_of((double)INFINITY), 0x7f80);
        CU_ASSERT_EQUAL(bf16_of(-0.0), 0x8000);
}

TEST(f16) {
        CU_ASSERT_EQUAL(of_f16(0x3c00), 1);
        CU_ASSERT_EQUAL(of_f16(0xc000), -2);
        CU_ASSERT_EQUAL(of_f16(0x7bff), 65504);
        CU_ASSERT_EQUAL(of_f16(0x0001), 0x1p-24);
        CU_ASSERT_EQUAL(of_f16(0x03ff), 1023 * 0x1p-24);
        CU_ASSERT_EQUAL(of_f16(0x0400), 0x1p-14);
        CU_ASSERT_EQUAL(of_f16(0x2e66), 0x1.998p-4);
        CU_ASSERT(isinf(of_f16(0xfc00)) && of_f16(0xfc00) < 0);
        CU_ASSERT(isnan(of_f16(0x7c01)));
        CU_ASSERT(of_f16(0x8000) == 0 && signbit(of_f16(0x8000)));
}

/* F32, and of any alignment. */
TEST(f32) {
        const float in[3] = { 0.1f, -1e38f, 0x1p-149f };
        uint8_t raw[1 + sizeof(in)], back[1 + sizeof(in)];
        double v[3];

        memcpy(raw + 1, in, sizeof(in));
        values_read(DT_F32, raw + 1, v, 3);
        CU_ASSERT(v[0] == (double)0.1f && v[1] == (double)-1e38f && v[2] == 0x1p-149);
        values_write(DT_F32, v, back + 1, 3);
        CU_ASSERT_EQUAL(memcmp(raw + 1, back + 1, sizeof(in)), 0);
        CU_ASSERT(values_are_real(DT_F16) && values_are_real(DT_F64) && !values_are_real(DT_U8) && !values_are_real(DT_E4M3));
}

TEST_MAIN("values")
