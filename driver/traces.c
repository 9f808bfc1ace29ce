// SPDX-License-Identifier: GPL-2.0
/*
 * Events from the kernel's tracepoints, which are found by name because they are not exported, and from the machine-check chain. Probes run
 * with preemption off in whatever context the event came from: each copies what it wants into the ring and returns. The arguments of a
 * tracepoint may change inside one stable series, hence the checks of their types: a changed one does not build.
 */
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/sched.h>
#include <linux/tracepoint.h>
#include <linux/version.h>
#include <ras/ras_event.h>
#include <trace/events/block.h>
#include <trace/events/oom.h>
#include <trace/events/sched.h>
#ifdef CONFIG_X86_MCE
#include <asm/mce.h>
#endif
#include "guard.h"

#ifdef FP8GUARD_MARK_VICTIM_TASK
static void on_oom(void *data, struct task_struct *task, uid_t uid)
{
	u64 arg[4] = { task_pid_nr(task) };

	guard_event_post(FP8GUARD_EVENT_OOM, 0, arg, task->comm);
}
#else
static void on_oom(void *data, int pid)
{
	u64 arg[4] = { pid };

	guard_event_post(FP8GUARD_EVENT_OOM, 0, arg, NULL);
}
#endif

static void on_block_error(void *data, struct request *rq, blk_status_t error, unsigned int bytes)
{
	u64 arg[4] = { -blk_status_to_errno(error), blk_rq_pos(rq), bytes, (__force u64)req_op(rq) };
	struct gendisk *disk = rq->q->disk;

	if (!blk_rq_is_passthrough(rq)) /* a refused command is its sender's business */
		guard_event_post(FP8GUARD_EVENT_BLOCK, 0, arg, disk ? disk->disk_name : NULL);
}

static void __maybe_unused on_hang(void *data, struct task_struct *task)
{
	u64 arg[4] = { task_pid_nr(task) };

	guard_event_post(FP8GUARD_EVENT_HUNG, 0, arg, task->comm);
}

#ifdef CONFIG_PCIEAER
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
#define AER_TLP struct pcie_tlp_log
#else
#define AER_TLP struct aer_header_log_regs
#endif
static void on_aer(void *data, const char *device, const u32 status, const u8 severity, const u8 tlp_valid, AER_TLP *tlp)
{
	u64 arg[4] = { status, severity };

	guard_event_post(FP8GUARD_EVENT_AER, 0, arg, device);
}
#endif

static struct trace_hook {
	const char *name;
	void *probe;
	u16 type;
	struct tracepoint *tp;
} trace_hooks[] = {
	{ "mark_victim", on_oom, FP8GUARD_EVENT_OOM },
	{ "block_rq_error", on_block_error, FP8GUARD_EVENT_BLOCK },
#ifdef CONFIG_DETECT_HUNG_TASK
	{ "sched_process_hang", on_hang, FP8GUARD_EVENT_HUNG },
#endif
#ifdef CONFIG_PCIEAER
	{ "aer_event", on_aer, FP8GUARD_EVENT_AER },
#endif
};

static void trace_check_types(void)
{
	check_trace_callback_type_mark_victim(on_oom);
	check_trace_callback_type_block_rq_error(on_block_error);
#ifdef CONFIG_DETECT_HUNG_TASK
	check_trace_callback_type_sched_process_hang(on_hang);
#endif
#ifdef CONFIG_PCIEAER
	check_trace_callback_type_aer_event(on_aer);
#endif
}

static void trace_hook_find(struct tracepoint *tp, void *priv)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(trace_hooks); i++)
		if (!strcmp(tp->name, trace_hooks[i].name))
			trace_hooks[i].tp = tp;
}

#ifdef CONFIG_X86_MCE
/* Called from a work item of the machine-check code, with corrected errors and with those it survived. */
static int on_mce(struct notifier_block *nb, unsigned long val, void *data)
{
	const struct mce *m = data;
	u64 arg[4];

	if (m) {
		arg[0] = m->status;
		arg[1] = m->addr;
		arg[2] = m->misc;
		arg[3] = (u64)m->bank << 32 | m->extcpu;
		guard_event_post(FP8GUARD_EVENT_MCE, 0, arg, NULL);
	}
	return NOTIFY_DONE;
}

static struct notifier_block mce_block = { .notifier_call = on_mce, .priority = MCE_PRIO_LOWEST };
#endif

/* A kernel without one of these lacks that type of event, and fp8guard_info.sources says so. */
void guard_traces_init(void)
{
	size_t i;

	trace_check_types();
	for_each_kernel_tracepoint(trace_hook_find, NULL);
	for (i = 0; i < ARRAY_SIZE(trace_hooks); i++) {
		if (trace_hooks[i].tp && tracepoint_probe_register(trace_hooks[i].tp, trace_hooks[i].probe, NULL))
			trace_hooks[i].tp = NULL;
		guard_event_source(trace_hooks[i].type, trace_hooks[i].tp);
	}
#ifdef CONFIG_X86_MCE
	mce_register_decode_chain(&mce_block);
	guard_event_source(FP8GUARD_EVENT_MCE, true);
#endif
}

void guard_traces_exit(void)
{
	size_t i;

#ifdef CONFIG_X86_MCE
	mce_unregister_decode_chain(&mce_block);
#endif
	for (i = 0; i < ARRAY_SIZE(trace_hooks); i++)
		if (trace_hooks[i].tp)
			tracepoint_probe_unregister(trace_hooks[i].tp, trace_hooks[i].probe, NULL);
	tracepoint_synchronize_unregister();
}
