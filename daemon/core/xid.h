/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* NVIDIA's Xids and what is done about each: a table, and what makes of an Xid more than its row says. Pure. */
#include <stdbool.h>
#include <stdint.h>

/* In order of gravity. */
enum health_action {
        ACT_LOG,
        ACT_WARN,         /* an event, and no more */
        ACT_RESTART_RANK, /* whom it hit */
        ACT_RESET_DEVICE, /* its device gets no rank until it was reset */
        ACT_DRAIN,        /* the node's ranks move at the end of a step */
        ACT_EVICT,        /* at once; the node is to be rebooted */
        ACT_RMA,          /* at once; and it is to be replaced */
        N_HEALTH_ACTIONS,
};
const char *health_action_name(enum health_action a);

/* What the same GPU has said before. */
struct xid_past {
        unsigned same_hour, same_day; /* this Xid, this time not included */
        unsigned fatal_day;           /* those of ACT_RESET_DEVICE and graver, of any number */
        bool other_lately;            /* another Xid within 10 s */
};

struct xid_rule {
        uint16_t first, last;
        enum health_action action;
        enum health_action again; /* when it came at least `times` times before in that time; 0 times: it stays as it is */
        uint8_t times;
        bool within_hour;         /* else within a day */
        const char *name;
};

extern const struct xid_rule xid_rules[];
extern const int n_xid_rules;
/* NULL: not in the table. */
const struct xid_rule *xid_find(uint32_t code);
/* text: the line, which Xid 154 is decided by. ret_why: what made it more than its row says, or NULL. */
enum health_action xid_decide(uint32_t code, const char *text, const struct xid_past *past, const char **ret_why);
