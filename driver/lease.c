// SPDX-License-Identifier: GPL-2.0
/*
 * Leases: groups of processes under a deadline.
 *
 * Life of a lease: its file's array holds one reference until it is dropped or the file is closed, a walk over its cgroups holds another. The
 * timer is cancelled before the array's reference is put, so the callback never sees freed memory. `lock` is taken in the callback (hard
 * interrupt): under it the state changes, once, from ARMED to LAPSED or DROPPED, and whoever makes that change does the killing.
 *
 * Process groups are signalled at once, from the callback: no process, the worker's least of all, has to run for it. The kernel exports no
 * way to kill a cgroup, and what forks while it is walked would escape a single walk, so a work item walks all tasks again and again, until
 * none of the cgroup's is alive.
 */
#include <linux/atomic.h>
#include <linux/cgroup.h>
#include <linux/hrtimer.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include "guard.h"

#define LEASE_GROUPS 16
#define WALK_DELAY_MAX_MS 100
#define TTL_MIN_NS NSEC_PER_MSEC
#define TTL_MAX_NS (3600ULL * NSEC_PER_SEC)

static unsigned int max_leases = 4096;
module_param(max_leases, uint, 0644);
MODULE_PARM_DESC(max_leases, "leases of all holders together");

enum lease_state { ARMED, LAPSED, DROPPED };

struct lease_group {
	struct pid *pgrp; /* or */
	struct cgroup *cgroup;
};

struct lease {
	struct kref ref;
	spinlock_t lock; /* all that follows */
	enum lease_state state;
	u32 id;
	u64 generation;
	struct hrtimer timer;
	u64 deadline;
	u64 lapsed;
	u64 emptied;
	u64 renewals;
	u64 stale;
	u64 signals;
	u32 n_groups;
	struct lease_group groups[LEASE_GROUPS];
	struct delayed_work walk;
	unsigned int walk_delay_ms;
};

static struct workqueue_struct *lease_wq;
static atomic_t lease_armed = ATOMIC_INIT(0); /* for the report */
static atomic_t lease_count = ATOMIC_INIT(0); /* for the limit */
static atomic_t lease_walks = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(lease_walked);
static atomic64_t lease_generation = ATOMIC64_INIT(0);
static atomic64_t lease_lapsed = ATOMIC64_INIT(0);
static atomic64_t lease_dropped = ATOMIC64_INIT(0);
static atomic64_t lease_closed = ATOMIC64_INIT(0);
static bool lease_stopping;

static void group_put(const struct lease_group *g)
{
	put_pid(g->pgrp);
	if (g->cgroup)
		cgroup_put(g->cgroup);
}

static void lease_free(struct kref *ref)
{
	struct lease *l = container_of(ref, struct lease, ref);
	u32 i;

	for (i = 0; i < l->n_groups; i++)
		group_put(&l->groups[i]);
	kfree(l);
	atomic_dec(&lease_count);
}

static void lease_put(struct lease *l)
{
	kref_put(&l->ref, lease_free);
}

/* One pass: how many threads of the cgroup are still alive, and how many were signalled in it. */
static unsigned int cgroup_kill_pass(struct cgroup *cgroup, u64 *signals)
{
	struct task_struct *p, *t;
	unsigned int alive = 0;

	rcu_read_lock();
	for_each_process_thread(p, t) {
		if ((t->flags & PF_KTHREAD) || READ_ONCE(t->exit_state))
			continue;
		if (!cgroup_is_descendant(task_dfl_cgroup(t), cgroup))
			continue;
		alive++;
		if (!(t->flags & PF_EXITING) && !__fatal_signal_pending(t) && !send_sig(SIGKILL, t, 1))
			(*signals)++;
	}
	rcu_read_unlock();
	return alive;
}

static void lease_walk(struct work_struct *work)
{
	struct lease *l = container_of(to_delayed_work(work), struct lease, walk);
	unsigned int alive = 0;
	unsigned long irq;
	u64 signals = 0;
	u32 i;

	/* No group joins a lease that is not armed: the array does not change any more. */
	for (i = 0; i < l->n_groups; i++)
		if (l->groups[i].cgroup)
			alive += cgroup_kill_pass(l->groups[i].cgroup, &signals);
	spin_lock_irqsave(&l->lock, irq);
	l->signals += signals;
	if (!alive)
		l->emptied = ktime_get_ns();
	spin_unlock_irqrestore(&l->lock, irq);
	if (alive && !READ_ONCE(lease_stopping)) {
		queue_delayed_work(lease_wq, &l->walk, msecs_to_jiffies(l->walk_delay_ms));
		l->walk_delay_ms = min(2 * l->walk_delay_ms, (unsigned int)WALK_DELAY_MAX_MS);
		return;
	}
	lease_put(l);
	if (atomic_dec_and_test(&lease_walks))
		wake_up(&lease_walked);
}

/*
 * The end of an armed lease, in two parts: its state under the lock, the killing without it. kill_pgrp() reads tasklist_lock, which others read with interrupts
 * on: under a lock that the timer takes in interrupts that is a deadlock in waiting. No group joins a lease that is not armed, and the caller has it for longer.
 */
static void lease_lapse(struct lease *l)
{
	lockdep_assert_held(&l->lock);
	l->state = LAPSED;
	l->lapsed = ktime_get_ns();
	atomic_dec(&lease_armed);
}

/* why is 1 for a lapse, 2 for a close. */
static void lease_kill(struct lease *l, unsigned int why)
{
	u64 arg[4] = { l->id, l->generation, why, 0 };
	bool walk = false;
	u32 i;

	for (i = 0; i < l->n_groups; i++) {
		if (l->groups[i].pgrp)
			kill_pgrp(l->groups[i].pgrp, SIGKILL, 1);
		else
			walk = true;
	}
	if (walk) {
		kref_get(&l->ref);
		atomic_inc(&lease_walks);
		queue_delayed_work(lease_wq, &l->walk, 0);
	}
	if (why == 1)
		arg[3] = l->lapsed - l->deadline;
	atomic64_inc(why == 1 ? &lease_lapsed : &lease_closed);
	guard_event_post(FP8GUARD_EVENT_LEASE, 0, arg, NULL);
}

static enum hrtimer_restart lease_timer(struct hrtimer *timer)
{
	struct lease *l = container_of(timer, struct lease, timer);
	unsigned long irq;
	bool over;

	spin_lock_irqsave(&l->lock, irq);
	/* A renewal that came while this callback waited for the lock has started the timer again. */
	over = l->state == ARMED && ktime_get_ns() >= l->deadline;
	if (over)
		lease_lapse(l);
	spin_unlock_irqrestore(&l->lock, irq);
	if (over)
		lease_kill(l, 1); /* whoever ends the lease waits for this callback first */
	return HRTIMER_NORESTART;
}

/* The lease in that slot, locked, and the file with it; lease_unlock() ends both. NULL, with nothing locked: there is none, or it is another life of the slot. */
static struct lease *lease_lock(struct guard_file *file, u32 id, u64 generation, int *ret_error)
{
	struct lease *l;

	mutex_lock(&file->lock);
	l = xa_load(&file->leases, id);
	if (!l) {
		mutex_unlock(&file->lock);
		*ret_error = -ENOENT;
		return NULL;
	}
	spin_lock_irq(&l->lock);
	if (l->generation != generation) {
		l->stale++;
		spin_unlock_irq(&l->lock);
		mutex_unlock(&file->lock);
		*ret_error = -ESTALE;
		return NULL;
	}
	return l;
}

static void lease_unlock(struct guard_file *file, struct lease *l)
{
	spin_unlock_irq(&l->lock);
	mutex_unlock(&file->lock);
}

static bool ttl_ok(u64 ttl)
{
	return ttl >= TTL_MIN_NS && ttl <= TTL_MAX_NS;
}

int guard_lease_create(struct guard_file *file, struct fp8guard_lease *arg)
{
	struct lease *l;
	int r;

	if (arg->id || arg->generation || !ttl_ok(arg->ttl_ns))
		return -EINVAL;
	if (atomic_inc_return(&lease_count) > READ_ONCE(max_leases)) {
		atomic_dec(&lease_count);
		return -ENOSPC;
	}
	l = kzalloc(sizeof(*l), GFP_KERNEL_ACCOUNT);
	if (!l) {
		atomic_dec(&lease_count);
		return -ENOMEM;
	}
	kref_init(&l->ref);
	spin_lock_init(&l->lock);
	INIT_DELAYED_WORK(&l->walk, lease_walk);
	l->walk_delay_ms = 1;
	l->generation = atomic64_inc_return(&lease_generation);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&l->timer, lease_timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS);
#else
	hrtimer_init(&l->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS);
	l->timer.function = lease_timer;
#endif
	mutex_lock(&file->lock);
	r = xa_alloc(&file->leases, &l->id, l, xa_limit_31b, GFP_KERNEL_ACCOUNT);
	if (r) {
		mutex_unlock(&file->lock);
		lease_put(l);
		return r;
	}
	spin_lock_irq(&l->lock);
	atomic_inc(&lease_armed);
	l->deadline = ktime_get_ns() + arg->ttl_ns;
	hrtimer_start(&l->timer, ns_to_ktime(l->deadline), HRTIMER_MODE_ABS);
	arg->id = l->id;
	arg->generation = l->generation;
	arg->deadline_ns = l->deadline;
	spin_unlock_irq(&l->lock);
	mutex_unlock(&file->lock);
	return 0;
}

static int group_get(const struct fp8guard_group *arg, struct lease_group *ret)
{
	struct lease_group g = {};
	bool init;

	if (arg->kind == FP8GUARD_GROUP_CGROUP) {
		g.cgroup = cgroup_get_from_fd(arg->target);
		if (IS_ERR(g.cgroup))
			return PTR_ERR(g.cgroup);
		if (!cgroup_parent(g.cgroup)) { /* the whole system */
			cgroup_put(g.cgroup);
			return -EPERM;
		}
	} else if (arg->kind == FP8GUARD_GROUP_PGRP) {
		if (arg->target <= 0)
			return -EINVAL;
		g.pgrp = find_get_pid(arg->target);
		rcu_read_lock();
		init = g.pgrp && g.pgrp == task_pgrp(&init_task);
		if (!g.pgrp || init || pid_nr(g.pgrp) == 1 || !pid_task(g.pgrp, PIDTYPE_PGID)) {
			rcu_read_unlock();
			init = init || (g.pgrp && pid_nr(g.pgrp) == 1);
			put_pid(g.pgrp);
			return init ? -EPERM : -ESRCH;
		}
		rcu_read_unlock();
	} else {
		return -EINVAL;
	}
	*ret = g;
	return 0;
}

int guard_lease_add(struct guard_file *file, const struct fp8guard_group *arg)
{
	struct lease_group g;
	struct lease *l;
	int r;

	r = group_get(arg, &g);
	if (r)
		return r;
	l = lease_lock(file, arg->id, arg->generation, &r);
	if (l) {
		if (l->state != ARMED)
			r = -ETIME;
		else if (l->n_groups == LEASE_GROUPS)
			r = -ENOSPC;
		else
			l->groups[l->n_groups++] = g;
		lease_unlock(file, l);
	}
	if (r)
		group_put(&g);
	return r;
}

int guard_lease_renew(struct guard_file *file, struct fp8guard_lease *arg)
{
	struct lease *l;
	int r = 0;

	if (!ttl_ok(arg->ttl_ns))
		return -EINVAL;
	l = lease_lock(file, arg->id, arg->generation, &r);
	if (!l)
		return r;
	if (l->state == ARMED) {
		l->deadline = ktime_get_ns() + arg->ttl_ns;
		l->renewals++;
		hrtimer_start(&l->timer, ns_to_ktime(l->deadline), HRTIMER_MODE_ABS);
		arg->deadline_ns = l->deadline;
	} else {
		r = -ETIME;
	}
	lease_unlock(file, l);
	return r;
}

int guard_lease_drop(struct guard_file *file, const struct fp8guard_lease *arg)
{
	struct lease *l;
	int r;

	l = lease_lock(file, arg->id, arg->generation, &r);
	if (!l)
		return r;
	if (l->state == ARMED) {
		l->state = DROPPED;
		atomic_dec(&lease_armed);
		atomic64_inc(&lease_dropped);
	}
	spin_unlock_irq(&l->lock);
	xa_erase(&file->leases, l->id);
	mutex_unlock(&file->lock);
	hrtimer_cancel(&l->timer); /* waits for the callback, which takes the lock */
	lease_put(l);
	return 0;
}

int guard_lease_stat(struct guard_file *file, struct fp8guard_stat *arg)
{
	struct lease *l;
	int r;

	l = lease_lock(file, arg->id, arg->generation, &r);
	if (!l)
		return r;
	arg->state = l->state == ARMED ? FP8GUARD_LEASE_ARMED : FP8GUARD_LEASE_LAPSED;
	arg->groups = l->n_groups;
	arg->deadline_ns = l->deadline;
	arg->lapsed_ns = l->lapsed;
	arg->emptied_ns = l->emptied;
	arg->renewals = l->renewals;
	arg->stale = l->stale;
	arg->signals = l->signals;
	lease_unlock(file, l);
	return 0;
}

void guard_lease_close_all(struct guard_file *file, bool free)
{
	struct lease *l;
	unsigned long id;
	bool over;

	mutex_lock(&file->lock);
	xa_for_each(&file->leases, id, l) {
		hrtimer_cancel(&l->timer);
		spin_lock_irq(&l->lock);
		over = l->state == ARMED;
		if (over)
			lease_lapse(l);
		spin_unlock_irq(&l->lock);
		if (over)
			lease_kill(l, 2);
		if (free) {
			xa_erase(&file->leases, id);
			lease_put(l);
		}
	}
	mutex_unlock(&file->lock);
}

void guard_lease_info(struct fp8guard_info *info)
{
	info->max_leases = READ_ONCE(max_leases);
	info->max_groups = LEASE_GROUPS;
	info->leases = atomic_read(&lease_armed);
	info->lapsed = atomic64_read(&lease_lapsed);
	info->dropped = atomic64_read(&lease_dropped);
	info->closed = atomic64_read(&lease_closed);
}

int guard_lease_init(void)
{
	lease_wq = alloc_workqueue("fp8guard", WQ_HIGHPRI | WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return lease_wq ? 0 : -ENOMEM;
}

/* No file is open, so no walk begins; those under way end after their present pass. */
void guard_lease_exit(void)
{
	WRITE_ONCE(lease_stopping, true);
	wait_event(lease_walked, !atomic_read(&lease_walks));
	destroy_workqueue(lease_wq);
}
