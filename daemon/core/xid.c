/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table follows "Xid Errors" (docs.nvidia.com/deploy/xid-errors), in the classes of gpud and NVSentinel. An Xid is what the driver saw, not always what is broken: one that an application can
 * cause restarts its rank first, and only repetition makes it the device's.
 */
#include "daemon/core/xid.h"

#include <stddef.h>
#include <string.h>

#include "base/cleanup.h"

#define FATAL_TIMES 5 /* in a day, of a GPU: it is replaced */

const char *health_action_name(enum health_action a) {
        static const char *const names[N_HEALTH_ACTIONS] = { "log", "warn", "restart rank", "reset device", "drain", "evict", "rma" };

        return (size_t)a < ARRAY_SIZE(names) ? names[a] : "log";
}

/* clang-format off */
const struct xid_rule xid_rules[] = {
        { 8, 8, ACT_RESTART_RANK, 0, 0, false, "GPU stopped processing" },
        { 11, 11, ACT_RESTART_RANK, 0, 0, false, "invalid or corrupted push buffer stream" },
        { 13, 13, ACT_RESTART_RANK, 0, 0, false, "graphics engine exception" },
        { 31, 31, ACT_RESTART_RANK, ACT_DRAIN, 1, false, "GPU memory page fault" },
        { 32, 32, ACT_RESTART_RANK, 0, 0, false, "invalid or corrupted push buffer stream" },
        { 39, 41, ACT_RESTART_RANK, 0, 0, false, "copy engine exception" },
        { 43, 43, ACT_LOG, 0, 0, false, "an application's channel was reset" },
        { 44, 44, ACT_LOG, 0, 0, false, "graphics engine fault during a context switch" },
        { 45, 45, ACT_LOG, 0, 0, false, "preemptive clean-up" },
        { 46, 46, ACT_RESET_DEVICE, 0, 0, false, "GPU stopped processing" },
        { 48, 48, ACT_RESET_DEVICE, ACT_RMA, 1, false, "double-bit ECC error" },
        { 54, 54, ACT_RMA, 0, 0, false, "auxiliary power is not connected" },
        { 62, 62, ACT_RESET_DEVICE, 0, 0, false, "internal micro-controller halt" },
        { 63, 63, ACT_LOG, 0, 0, false, "a row was remapped" },
        { 64, 64, ACT_RESET_DEVICE, 0, 0, false, "a row could not be remapped" },
        { 66, 67, ACT_LOG, 0, 0, false, "illegal access by the driver" },
        { 69, 72, ACT_RESTART_RANK, 0, 0, false, "engine class or copy engine error" },
        { 74, 74, ACT_WARN, ACT_RESET_DEVICE, 1, true, "NVLink error" },
        { 75, 77, ACT_RESTART_RANK, 0, 0, false, "copy engine exception" },
        { 79, 79, ACT_EVICT, 0, 0, false, "GPU has fallen off the bus" },
        { 80, 80, ACT_RESTART_RANK, 0, 0, false, "corrupted data sent to the GPU" },
        { 92, 92, ACT_LOG, 0, 0, false, "high rate of corrected ECC errors" },
        { 94, 94, ACT_RESTART_RANK, 0, 0, false, "contained ECC error" },
        { 95, 95, ACT_RESET_DEVICE, 0, 0, false, "uncontained ECC error" },
        { 109, 109, ACT_RESET_DEVICE, 0, 0, false, "context switch timeout" },
        { 110, 110, ACT_RESET_DEVICE, 0, 0, false, "security fault" },
        { 119, 119, ACT_RESET_DEVICE, 0, 0, false, "GSP does not answer" },
        { 120, 120, ACT_RESET_DEVICE, 0, 0, false, "GSP error" },
        { 121, 121, ACT_LOG, 0, 0, false, "corrected C2C error" },
        { 136, 136, ACT_RESET_DEVICE, 0, 0, false, "link training failed" },
        { 137, 137, ACT_LOG, 0, 0, false, "NVLink privilege error" },
        { 140, 140, ACT_RESET_DEVICE, 0, 0, false, "unrecovered ECC error" },
        { 143, 143, ACT_RESET_DEVICE, 0, 0, false, "GPU initialization failure" },
        { 144, 150, ACT_RESET_DEVICE, ACT_RMA, 1, false, "NVLink error" },
        { 151, 151, ACT_EVICT, 0, 0, false, "key rotation error: the virtual machine is to be restarted" },
        { 154, 154, ACT_DRAIN, 0, 0, false, "the driver's recovery action changed" },
        { 155, 156, ACT_RESET_DEVICE, 0, 0, false, "NVLink resource error" },
        { 158, 158, ACT_RESET_DEVICE, 0, 0, false, "fatal timeout" },
        { 160, 160, ACT_LOG, 0, 0, false, "channel retirement" },
};
/* clang-format on */
const int n_xid_rules = ARRAY_SIZE(xid_rules);

const struct xid_rule *xid_find(uint32_t code) {
        for (size_t i = 0; i < ARRAY_SIZE(xid_rules); i++)
                if (code >= xid_rules[i].first && code <= xid_rules[i].last)
                        return &xid_rules[i];
        return NULL;
}

/* "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)": the words after the last "to". A text that is not known drains. */
static enum health_action recovery_action(const char *text) {
        static const struct {
                const char *words;
                enum health_action action;
        } actions[] = { { "(None)", ACT_LOG }, { "(Drain and Reset", ACT_DRAIN }, { "(Drain P2P", ACT_DRAIN }, { "(GPU Reset", ACT_RESET_DEVICE }, { "(Node Reboot", ACT_EVICT }, { "(Reboot", ACT_EVICT } };
        const char *to = text ? strstr(text, " to 0x") : NULL;

        for (size_t i = 0; to && i < ARRAY_SIZE(actions); i++)
                if (strstr(to, actions[i].words))
                        return actions[i].action;
        return ACT_DRAIN;
}

enum health_action xid_decide(uint32_t code, const char *text, const struct xid_past *past, const char **ret_why) {
        const struct xid_rule *r = xid_find(code);
        enum health_action a = r ? r->action : ACT_WARN;

        *ret_why = NULL;
        if (code == 154)
                a = recovery_action(text);
        if (code == 45 && !past->other_lately)
                a = ACT_RESTART_RANK;
        if (r && r->times && (r->within_hour ? past->same_hour : past->same_day) >= r->times) {
                a = r->again;
                *ret_why = code == 31 ? "twice in 24 h: run the field diagnostic" : r->within_hour ? "twice in an hour" : "twice in 24 h";
        }
        if (a >= ACT_RESET_DEVICE && past->fatal_day + 1 >= FATAL_TIMES && a != ACT_RMA) {
                a = ACT_RMA;
                *ret_why = "five fatal Xids in 24 h";
        }
        return a;
}
