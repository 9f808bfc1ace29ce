/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/rollout_args.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/text.h"

int rollout_parse_fact(const char *text, char *key, size_t size, const char **ret_value, struct error *e) {
        const char *is = text ? strchr(text, '=') : NULL;

        if (!text)
                return error_set(e, -EINVAL, "--fact: found none, expected KEY=VALUE (fp8ctl node describe NODE lists facts)");
        if (!is || is == text || !is[1] || (size_t)(is - text) >= size)
                return error_set(e, -EINVAL, "--fact: found '%s', expected KEY=VALUE, the key of at most %zu characters", text, size - 1);
        memcpy(key, text, (size_t)(is - text));
        key[is - text] = 0;
        *ret_value = is + 1;
        return 0;
}

int rollout_parse_stages(const char *text, uint32_t stages[ROLLOUT_STAGES_MAX], size_t *ret_n, struct error *e) {
        uint32_t found[ROLLOUT_STAGES_MAX];
        size_t n = 0;

        for (const char *at = text; at; n++) {
                size_t len = strcspn(at, ",");
                char one[8];
                int64_t v = 0;

                if (len < sizeof(one))
                        snprintf(one, sizeof(one), "%.*s", (int)len, at);
                if (len >= sizeof(one) || n == ROLLOUT_STAGES_MAX || text_parse_i64(one, &v) < 0 || v > 100 || v <= (n ? found[n - 1] : 0))
                        goto bad;
                found[n] = (uint32_t)v;
                at = at[len] ? at + len + 1 : NULL;
        }
        if (n == 0 || found[n - 1] != 100)
                goto bad;
        memcpy(stages, found, n * sizeof(*found));
        *ret_n = n;
        return 0;
bad:
        return error_set(e, -EINVAL, "--stages: found '%s', expected up to %d percentages that grow, the last 100: 5,20,50,100", text, ROLLOUT_STAGES_MAX);
}
