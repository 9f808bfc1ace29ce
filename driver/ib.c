// SPDX-License-Identifier: GPL-2.0
/* fp8guard_ib: ports and devices of InfiniBand and RoCE. A module of its own, because it needs ib_core. */
#include <linux/module.h>
#include <linux/slab.h>
#include <rdma/ib_verbs.h>
#include "guard.h"

static struct ib_client ib_guard;

static void ib_post(struct ib_device *device, u32 event, u32 port, u32 change)
{
	u64 arg[4] = { event, port, change };

	guard_event_post(FP8GUARD_EVENT_IB, 0, arg, dev_name(&device->dev));
}

/* In the driver's interrupt, or a work item. */
static void ib_on_event(struct ib_event_handler *handler, struct ib_event *e)
{
	bool port = e->event >= IB_EVENT_PORT_ACTIVE && e->event <= IB_EVENT_SM_CHANGE;

	if (e->event == IB_EVENT_CLIENT_REREGISTER || e->event == IB_EVENT_GID_CHANGE)
		port = true;
	ib_post(e->device, e->event, port ? e->element.port_num : 0, 0);
}

static int ib_add(struct ib_device *device)
{
	struct ib_event_handler *handler = kzalloc(sizeof(*handler), GFP_KERNEL);

	if (!handler)
		return -ENOMEM;
	INIT_IB_EVENT_HANDLER(handler, device, ib_on_event);
	ib_set_client_data(device, &ib_guard, handler);
	ib_register_event_handler(handler);
	ib_post(device, 0, 0, 1);
	return 0;
}

static void ib_remove(struct ib_device *device, void *data)
{
	struct ib_event_handler *handler = data;

	ib_unregister_event_handler(handler);
	kfree(handler);
	ib_post(device, 0, 0, 2);
}

static struct ib_client ib_guard = { .name = "fp8guard", .add = ib_add, .remove = ib_remove };

static int __init ib_guard_init(void)
{
	int r = ib_register_client(&ib_guard);

	if (!r)
		guard_event_source(FP8GUARD_EVENT_IB, true);
	return r;
}

static void __exit ib_guard_exit(void)
{
	guard_event_source(FP8GUARD_EVENT_IB, false);
	ib_unregister_client(&ib_guard);
}

module_init(ib_guard_init);
module_exit(ib_guard_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("fp8guard: InfiniBand events");
MODULE_AUTHOR("the fp8ctl authors");
MODULE_VERSION("1");
