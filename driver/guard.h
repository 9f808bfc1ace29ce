/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FP8GUARD_GUARD_H
#define FP8GUARD_GUARD_H

#include <linux/fs.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/xarray.h>
#include "fp8guard_uapi.h"

/* One open file: a holder of leases and a reader of events. */
struct guard_file {
	struct mutex lock; /* leases, next, lost */
	struct xarray leases; /* by id, from 1 */
	struct pid *holder;
	u64 next; /* sequence of the event to read */
};

/* lease.c: may sleep */
int guard_lease_create(struct guard_file *file, struct fp8guard_lease *arg);
int guard_lease_add(struct guard_file *file, const struct fp8guard_group *arg);
int guard_lease_renew(struct guard_file *file, struct fp8guard_lease *arg);
int guard_lease_drop(struct guard_file *file, const struct fp8guard_lease *arg);
int guard_lease_stat(struct guard_file *file, struct fp8guard_stat *arg);
void guard_lease_close_all(struct guard_file *file, bool free);
void guard_lease_info(struct fp8guard_info *info);
int guard_lease_init(void);
void guard_lease_exit(void);

/*
 * events.c. A post may come from any context with interrupts on or off, under any lock but the ring's; in an NMI it is only counted.
 * Readers are woken from an irq_work, since a poster may hold a run queue's lock.
 */
void guard_event_post(u16 type, u32 flags, const u64 arg[4], const char *text);
void guard_event_source(u16 type, bool on);
ssize_t guard_event_read(struct guard_file *file, char __user *buf, size_t n, bool nonblock);
__poll_t guard_event_poll(struct guard_file *file, struct file *filp, struct poll_table_struct *wait);
void guard_event_open(struct guard_file *file);
void guard_event_info(struct fp8guard_info *info);
void guard_event_init(void);
void guard_event_exit(void);

/* lines.c: the kernel's log by pattern */
int guard_lines_add(struct guard_file *file, const char *text);
void guard_lines_forget(struct guard_file *file);
int guard_lines_init(void);
void guard_lines_exit(void);

/* traces.c: OOM victims, AER, block errors, hung tasks, machine checks */
void guard_traces_init(void);
void guard_traces_exit(void);

/* gasp.c */
int guard_gasp_set(const struct fp8guard_gasp *arg);
int guard_gasp_init(void);
void guard_gasp_exit(void);

#endif
