// SPDX-License-Identifier: GPL-2.0
/*
 * One ring of records for all readers. Each reader has its own place in it; one that was overrun reads a record of type LOST with the number
 * of those it missed, and goes on with the oldest that is left.
 */
#include <linux/irq_work.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include "guard.h"

#define RING_RECORDS 1024 /* a power of two; 256 KiB */

static DEFINE_RAW_SPINLOCK(ring_lock);
static struct fp8guard_event ring[RING_RECORDS];
static u64 ring_head; /* sequence of the newest; 0: none yet */
static u32 ring_sources;
static atomic64_t ring_lost_in_nmi = ATOMIC64_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(ring_wait);

static void ring_wake(struct irq_work *work)
{
	wake_up_interruptible(&ring_wait);
}

static DEFINE_IRQ_WORK(ring_work, ring_wake);

void guard_event_post(u16 type, u32 flags, const u64 arg[4], const char *text)
{
	struct fp8guard_event *e;
	unsigned long irq;

	if (in_nmi()) {
		atomic64_inc(&ring_lost_in_nmi);
		return;
	}
	raw_spin_lock_irqsave(&ring_lock, irq);
	e = &ring[++ring_head % RING_RECORDS];
	memset(e, 0, sizeof(*e));
	e->size = sizeof(*e);
	e->type = type;
	e->flags = flags;
	e->sequence = ring_head;
	e->time_ns = ktime_get_mono_fast_ns();
	memcpy(e->arg, arg, sizeof(e->arg));
	if (text)
		strscpy(e->text, text, sizeof(e->text));
	raw_spin_unlock_irqrestore(&ring_lock, irq);
	irq_work_queue(&ring_work);
}
EXPORT_SYMBOL_GPL(guard_event_post);

void guard_event_source(u16 type, bool on)
{
	unsigned long irq;

	raw_spin_lock_irqsave(&ring_lock, irq);
	if (on)
		ring_sources |= BIT(type);
	else
		ring_sources &= ~BIT(type);
	raw_spin_unlock_irqrestore(&ring_lock, irq);
}
EXPORT_SYMBOL_GPL(guard_event_source);

static u64 head_now(void)
{
	unsigned long irq;
	u64 head;

	raw_spin_lock_irqsave(&ring_lock, irq);
	head = ring_head;
	raw_spin_unlock_irqrestore(&ring_lock, irq);
	return head;
}

/* The reader's next record; its file's lock is held. */
static bool ring_take(struct guard_file *file, struct fp8guard_event *ret)
{
	unsigned long irq;
	u64 oldest;
	bool got = false;

	raw_spin_lock_irqsave(&ring_lock, irq);
	oldest = ring_head >= RING_RECORDS ? ring_head - RING_RECORDS + 1 : 1;
	if (file->next < oldest) {
		memset(ret, 0, sizeof(*ret));
		ret->size = sizeof(*ret);
		ret->type = FP8GUARD_EVENT_LOST;
		ret->time_ns = ktime_get_mono_fast_ns();
		ret->arg[0] = oldest - file->next;
		file->next = oldest;
		got = true;
	} else if (file->next <= ring_head) {
		*ret = ring[file->next % RING_RECORDS];
		file->next++;
		got = true;
	}
	raw_spin_unlock_irqrestore(&ring_lock, irq);
	return got;
}

ssize_t guard_event_read(struct guard_file *file, char __user *buf, size_t n, bool nonblock)
{
	struct fp8guard_event e;
	size_t done = 0;
	int r;

	if (n < sizeof(e))
		return -EINVAL;
	while (!done) {
		if (head_now() < READ_ONCE(file->next)) {
			if (nonblock)
				return -EAGAIN;
			r = wait_event_interruptible(ring_wait, head_now() >= READ_ONCE(file->next));
			if (r)
				return r;
		}
		if (mutex_lock_interruptible(&file->lock))
			return -ERESTARTSYS;
		while (n - done >= sizeof(e) && ring_take(file, &e)) {
			if (copy_to_user(buf + done, &e, sizeof(e))) {
				mutex_unlock(&file->lock);
				return done ?: -EFAULT;
			}
			done += sizeof(e);
		}
		mutex_unlock(&file->lock);
	}
	return done;
}

__poll_t guard_event_poll(struct guard_file *file, struct file *filp, struct poll_table_struct *wait)
{
	poll_wait(filp, &ring_wait, wait);
	return head_now() >= READ_ONCE(file->next) ? EPOLLIN | EPOLLRDNORM : 0;
}

/* A new reader begins with the oldest there is: what happened before the worker came up counts too. */
void guard_event_open(struct guard_file *file)
{
	u64 head = head_now();

	file->next = head >= RING_RECORDS ? head - RING_RECORDS + 1 : 1;
}

void guard_event_info(struct fp8guard_info *info)
{
	unsigned long irq;

	raw_spin_lock_irqsave(&ring_lock, irq);
	info->posted = ring_head;
	info->sources = ring_sources;
	raw_spin_unlock_irqrestore(&ring_lock, irq);
	info->lost_in_nmi = atomic64_read(&ring_lost_in_nmi);
}

void guard_event_init(void)
{
	guard_event_source(FP8GUARD_EVENT_LOST, true);
	guard_event_source(FP8GUARD_EVENT_LEASE, true);
}

void guard_event_exit(void)
{
	irq_work_sync(&ring_work);
}
