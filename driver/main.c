// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/fp8guard: what user space sees.
 *
 * The module's use count is held by open files (misc device's owner), so it goes only when nobody reads and nobody holds a lease; what
 * still runs then (a walk over a cgroup, the poll of the kernel's log, a wake-up) is waited for by the parts' exits, in the reverse order.
 */
#include <linux/capability.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "guard.h"

static int guard_open(struct inode *inode, struct file *filp)
{
	struct guard_file *file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);

	if (!file)
		return -ENOMEM;
	mutex_init(&file->lock);
	xa_init_flags(&file->leases, XA_FLAGS_ALLOC1);
	file->holder = get_pid(task_tgid(current));
	guard_event_open(file);
	filp->private_data = file;
	return nonseekable_open(inode, filp);
}

/* Each close() of a process; when it is the holder's exit, a child that inherited the file does not keep the lease alive. */
static int guard_flush(struct file *filp, fl_owner_t owner)
{
	struct guard_file *file = filp->private_data;

	if ((current->flags & PF_EXITING) && task_tgid(current) == file->holder)
		guard_lease_close_all(file, false);
	return 0;
}

static int guard_release(struct inode *inode, struct file *filp)
{
	struct guard_file *file = filp->private_data;

	guard_lease_close_all(file, true);
	guard_lines_forget(file);
	put_pid(file->holder);
	xa_destroy(&file->leases);
	mutex_destroy(&file->lock);
	kfree(file);
	return 0;
}

static ssize_t guard_read(struct file *filp, char __user *buf, size_t n, loff_t *pos)
{
	if (!capable(CAP_SYSLOG))
		return -EPERM;
	return guard_event_read(filp->private_data, buf, n, filp->f_flags & O_NONBLOCK);
}

static __poll_t guard_poll(struct file *filp, poll_table *wait)
{
	return guard_event_poll(filp->private_data, filp, wait);
}

/* The sizes are those of the structures' first edition: shorter ones are not understood. */
union guard_arg {
	u32 size;
	struct fp8guard_info info;
	struct fp8guard_lease lease;
	struct fp8guard_group group;
	struct fp8guard_stat stat;
	struct fp8guard_gasp gasp;
	struct fp8guard_pattern pattern;
};

static int guard_info(struct fp8guard_info *info)
{
	u32 size = info->size;

	memset(info, 0, sizeof(*info));
	info->size = size;
	info->version = FP8GUARD_VERSION;
	guard_lease_info(info);
	guard_event_info(info);
	return 0;
}

static int guard_call(struct guard_file *file, unsigned int nr, union guard_arg *arg)
{
	switch (nr) {
	case _IOC_NR(FP8GUARD_INFO):
		return guard_info(&arg->info);
	case _IOC_NR(FP8GUARD_LEASE_CREATE):
		return guard_lease_create(file, &arg->lease);
	case _IOC_NR(FP8GUARD_LEASE_ADD):
		return guard_lease_add(file, &arg->group);
	case _IOC_NR(FP8GUARD_LEASE_RENEW):
		return guard_lease_renew(file, &arg->lease);
	case _IOC_NR(FP8GUARD_LEASE_DROP):
		return guard_lease_drop(file, &arg->lease);
	case _IOC_NR(FP8GUARD_LEASE_STAT):
		return guard_lease_stat(file, &arg->stat);
	case _IOC_NR(FP8GUARD_GASP_SET):
		return guard_gasp_set(&arg->gasp);
	case _IOC_NR(FP8GUARD_PATTERN_ADD):
		return guard_lines_add(file, arg->pattern.text);
	}
	return -ENOTTY;
}

/* By number: the size of the structure, and the capability that the call wants. */
static const struct {
	u32 size;
	int cap;
	bool answers;
} guard_calls[] = {
	[_IOC_NR(FP8GUARD_INFO)] = { sizeof(struct fp8guard_info), -1, true },
	[_IOC_NR(FP8GUARD_LEASE_CREATE)] = { sizeof(struct fp8guard_lease), CAP_KILL, true },
	[_IOC_NR(FP8GUARD_LEASE_ADD)] = { sizeof(struct fp8guard_group), CAP_KILL, false },
	[_IOC_NR(FP8GUARD_LEASE_RENEW)] = { sizeof(struct fp8guard_lease), CAP_KILL, true },
	[_IOC_NR(FP8GUARD_LEASE_DROP)] = { sizeof(struct fp8guard_lease), CAP_KILL, false },
	[_IOC_NR(FP8GUARD_LEASE_STAT)] = { sizeof(struct fp8guard_stat), -1, true },
	[_IOC_NR(FP8GUARD_GASP_SET)] = { sizeof(struct fp8guard_gasp), CAP_NET_ADMIN, false },
	[_IOC_NR(FP8GUARD_PATTERN_ADD)] = { sizeof(struct fp8guard_pattern), CAP_SYSLOG, false },
};

static long guard_ioctl(struct file *filp, unsigned int cmd, unsigned long user)
{
	unsigned int nr = _IOC_NR(cmd);
	void __user *to = (void __user *)user;
	union guard_arg arg;
	u32 size;
	int r;

	if (_IOC_TYPE(cmd) != FP8GUARD_IOC || nr >= ARRAY_SIZE(guard_calls))
		return -ENOTTY;
	if (guard_calls[nr].cap >= 0 && !capable(guard_calls[nr].cap))
		return -EPERM;
	if (get_user(size, (u32 __user *)to))
		return -EFAULT;
	if (size < guard_calls[nr].size || size > PAGE_SIZE)
		return -EINVAL;
	memset(&arg, 0, sizeof(arg));
	r = copy_struct_from_user(&arg, guard_calls[nr].size, to, size);
	if (r)
		return r;
	arg.size = size;
	r = guard_call(filp->private_data, nr, &arg);
	if (!r && guard_calls[nr].answers && copy_to_user(to, &arg, guard_calls[nr].size))
		r = -EFAULT;
	memzero_explicit(&arg, sizeof(arg)); /* the key */
	return r;
}

static const struct file_operations guard_fops = {
	.owner = THIS_MODULE,
	.open = guard_open,
	.flush = guard_flush,
	.release = guard_release,
	.read = guard_read,
	.poll = guard_poll,
	.unlocked_ioctl = guard_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice guard_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "fp8guard",
	.mode = 0600,
	.fops = &guard_fops,
};

static int __init guard_init(void)
{
	int r;

	guard_event_init();
	r = guard_lease_init();
	if (r)
		goto err_events;
	r = guard_lines_init();
	if (r)
		goto err_leases;
	r = guard_gasp_init();
	if (r)
		goto err_lines;
	guard_traces_init();
	r = misc_register(&guard_device);
	if (r)
		goto err_traces;
	return 0;

err_traces:
	guard_traces_exit();
	guard_gasp_exit();
err_lines:
	guard_lines_exit();
err_leases:
	guard_lease_exit();
err_events:
	guard_event_exit();
	return r;
}

static void __exit guard_exit(void)
{
	misc_deregister(&guard_device);
	guard_traces_exit();
	guard_gasp_exit();
	guard_lines_exit();
	guard_lease_exit();
	guard_event_exit();
}

module_init(guard_init);
module_exit(guard_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Leases on process groups, kernel events, last gasp");
MODULE_AUTHOR("the fp8ctl authors");
MODULE_VERSION("1");
