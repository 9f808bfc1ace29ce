// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's log, by pattern.
 *
 * It is polled: the console tracepoint would be called under the run queue's lock and in machine-check context, where nothing may be done.
 * One poll with nothing new is a sequence number compared. Text is never trusted: it is cut at the first line end and parsed with bounds,
 * and what a process wrote to /dev/kmsg (its facility is not the kernel's) says so in the event.
 */
#include <linux/ctype.h>
#include <linux/kmsg_dump.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include "guard.h"

#define SITE_PATTERNS 32

static unsigned int kmsg_poll_ms = 20;
module_param(kmsg_poll_ms, uint, 0644);
MODULE_PARM_DESC(kmsg_poll_ms, "milliseconds between two looks at the kernel's log");

static const char *const line_patterns[] = {
	"EDAC ", "soft lockup", "hard LOCKUP", "EXT4-fs error", "XFS: Internal error", "Corruption", "I/O error", "NETDEV WATCHDOG",
	"nvidia-nvlink", "mlx5_core", "PCIe Bus Error", "Hardware Error", "nvme nvme", "GPU has fallen off",
};

struct site_pattern {
	struct guard_file *owner;
	char text[sizeof_field(struct fp8guard_pattern, text)];
};

static DEFINE_MUTEX(site_lock);
static struct site_pattern site_patterns[SITE_PATTERNS];

static struct kmsg_dump_iter lines_iter;
static char lines_buffer[1200]; /* of the one work item */
static void lines_poll(struct work_struct *work);
static DECLARE_DELAYED_WORK(lines_work, lines_poll);

/* `NVRM: Xid (PCI:0000:3b:00): 79, pid=...`: the number, or -1. */
static int xid_of(const char *line)
{
	unsigned int xid = 0, digits = 0;
	const char *p;

	if (strncmp(line, "NVRM: Xid (", 11))
		return -1;
	p = strstr(line, "): ");
	if (!p)
		return -1;
	for (p += 3; isdigit(*p) && digits < 5; p++, digits++)
		xid = 10 * xid + (*p - '0');
	return digits && digits < 5 && (*p == ',' || *p == ' ' || !*p) ? xid : -1;
}

static bool line_wanted(const char *line)
{
	bool found = false;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(line_patterns); i++)
		if (strstr(line, line_patterns[i]))
			return true;
	mutex_lock(&site_lock);
	for (i = 0; i < SITE_PATTERNS && !found; i++)
		found = site_patterns[i].owner && strstr(line, site_patterns[i].text);
	mutex_unlock(&site_lock);
	return found;
}

/* `<14>[    1.234567] text` */
static void line_take(char *line)
{
	u64 arg[4] = {};
	unsigned int priority = 0;
	u32 flags;
	char *end;
	int xid;

	line[strcspn(line, "\n")] = '\0';
	if (*line == '<') {
		for (line++; isdigit(*line) && priority < 1000; line++)
			priority = 10 * priority + (*line - '0');
		if (*line++ != '>')
			return;
	}
	if (*line == '[') {
		end = strchr(line, ']');
		if (end)
			line = end + 1;
		if (*line == ' ')
			line++;
	}
	flags = priority >= 8 ? FP8GUARD_EVENT_USER : 0;
	xid = xid_of(line);
	if (xid >= 0) {
		arg[0] = xid;
		guard_event_post(FP8GUARD_EVENT_XID, flags, arg, line);
	} else if (line_wanted(line)) {
		arg[0] = priority;
		guard_event_post(FP8GUARD_EVENT_LINE, flags, arg, line);
	}
}

static bool line_next(size_t *ret_len)
{
	return kmsg_dump_get_line(&lines_iter, true, lines_buffer, sizeof(lines_buffer) - 1, ret_len);
}

static void lines_poll(struct work_struct *work)
{
	size_t n;

	while (line_next(&n)) {
		lines_buffer[min(n, sizeof(lines_buffer) - 1)] = '\0';
		line_take(lines_buffer);
		cond_resched();
	}
	schedule_delayed_work(&lines_work, msecs_to_jiffies(clamp(READ_ONCE(kmsg_poll_ms), 1U, 10000U)));
}

int guard_lines_add(struct guard_file *file, const char *text)
{
	size_t n = strnlen(text, sizeof(site_patterns[0].text));
	size_t i;
	int r = -ENOSPC;

	if (n < 3 || n == sizeof(site_patterns[0].text))
		return -EINVAL;
	mutex_lock(&site_lock);
	for (i = 0; i < SITE_PATTERNS; i++) {
		if (!site_patterns[i].owner) {
			strscpy(site_patterns[i].text, text, sizeof(site_patterns[i].text));
			site_patterns[i].owner = file;
			r = 0;
			break;
		}
	}
	mutex_unlock(&site_lock);
	return r;
}

void guard_lines_forget(struct guard_file *file)
{
	size_t i;

	mutex_lock(&site_lock);
	for (i = 0; i < SITE_PATTERNS; i++)
		if (site_patterns[i].owner == file)
			site_patterns[i].owner = NULL;
	mutex_unlock(&site_lock);
}

/* What was logged before the module came is not new: the worker reads it from /dev/kmsg. */
int guard_lines_init(void)
{
	size_t n;

	kmsg_dump_rewind(&lines_iter);
	while (line_next(&n))
		cond_resched();
	guard_event_source(FP8GUARD_EVENT_XID, true);
	guard_event_source(FP8GUARD_EVENT_LINE, true);
	schedule_delayed_work(&lines_work, 0);
	return 0;
}

void guard_lines_exit(void)
{
	cancel_delayed_work_sync(&lines_work);
}
