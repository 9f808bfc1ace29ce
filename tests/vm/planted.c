// SPDX-License-Identifier: GPL-2.0
/*
 * Bugs of four kinds, one a load (`insmod planted.ko bug=N`), for the kernel of `tests/vm/run --debug` to find: a checker that finds nothing in the
 * driver must be one that finds something. Never loaded anywhere else.
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static int bug;
module_param(bug, int, 0);

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(spin);

static void use_after_free(void)
{
	char *p = kmalloc(64, GFP_KERNEL);

	kfree(p);
	WRITE_ONCE(p[8], 1);
}

static void sleep_under_spinlock(void)
{
	spin_lock(&spin);
	mutex_lock(&first);
	mutex_unlock(&first);
	spin_unlock(&spin);
}

static void two_orders(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static void leak(void)
{
	int i;

	for (i = 0; i < 16; i++) { /* one of them may be found by chance in a stale register or stack */
		char *p = kmalloc(96, GFP_KERNEL);

		if (p)
			memset(p, i, 96);
		OPTIMIZER_HIDE_VAR(p);
	}
}

static int __init planted_init(void)
{
	switch (bug) {
	case 1: use_after_free(); break;
	case 2: sleep_under_spinlock(); break;
	case 3: two_orders(); break;
	case 4: leak(); break;
	default: return -EINVAL;
	}
	return 0;
}

static void __exit planted_exit(void)
{
}

module_init(planted_init);
module_exit(planted_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("bugs for a debug kernel to find");
