// SPDX-License-Identifier: GPL-2.0
/*
 * The last gasp: one datagram, sent three times, when the kernel panics.
 *
 * All that can fail or allocate is done when the worker sets it: the packets, the device's netpoll, the addresses. In the panic the reason and
 * the time are filled in, the signature and the checksum made, and the driver is asked to send. The device may go at any time before: its
 * notifier takes the netpoll down. With kdump armed the notifiers run only under crash_kexec_post_notifiers.
 */
#include <crypto/sha2.h>
#include <linux/etherdevice.h>
#include <linux/ip.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/netpoll.h>
#include <linux/panic_notifier.h>
#include <linux/rtnetlink.h>
#include <linux/timekeeping.h>
#include <linux/udp.h>
#include <net/checksum.h>
#include <net/ip.h>
#include "guard.h"

#define GASP_COPIES 3
#define HMAC_BLOCK 64
#define GASP_BODY sizeof(struct fp8guard_gasp_datagram)
#define GASP_FRAME (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr) + GASP_BODY)

static struct {
	bool on; /* set last, cleared first; all under the rtnl */
	struct netpoll np;
	struct fp8guard_gasp to;
	struct sk_buff *skb[GASP_COPIES];
} gasp;

/* HMAC-SHA256 by the one-shot function, whose shape is the same in all kernels: no allocation, no lock. */
static void gasp_sign(const u8 key[32], const u8 *text, size_t n, u8 mac[SHA256_DIGEST_SIZE])
{
	static u8 inner[HMAC_BLOCK + GASP_BODY];
	static u8 outer[HMAC_BLOCK + SHA256_DIGEST_SIZE];
	size_t i;

	for (i = 0; i < HMAC_BLOCK; i++) {
		inner[i] = (i < 32 ? key[i] : 0) ^ 0x36;
		outer[i] = (i < 32 ? key[i] : 0) ^ 0x5c;
	}
	memcpy(inner + HMAC_BLOCK, text, n);
	sha256(inner, HMAC_BLOCK + n, outer + HMAC_BLOCK);
	sha256(outer, sizeof(outer), mac);
}

static void gasp_fill(struct sk_buff *skb, const char *reason)
{
	struct fp8guard_gasp_datagram *d;
	struct udphdr *udp;
	struct iphdr *ip;
	struct ethhdr *eth;
	size_t len = sizeof(*udp) + sizeof(*d);

	skb_reserve(skb, GASP_FRAME - GASP_BODY);
	d = skb_put_zero(skb, sizeof(*d));
	memcpy(d->magic, FP8GUARD_GASP_MAGIC, sizeof(d->magic));
	d->realtime_ns = (__force u64)cpu_to_be64(ktime_get_real_fast_ns());
	strscpy(d->node, gasp.to.node, sizeof(d->node));
	strscpy(d->boot_id, gasp.to.boot_id, sizeof(d->boot_id));
	strscpy(d->reason, reason, sizeof(d->reason));
	gasp_sign(gasp.to.key, (const u8 *)d, offsetof(struct fp8guard_gasp_datagram, mac), d->mac);

	udp = skb_push(skb, sizeof(*udp));
	skb_reset_transport_header(skb);
	udp->source = (__force __be16)gasp.to.local_port;
	udp->dest = (__force __be16)gasp.to.remote_port;
	udp->len = htons(len);
	udp->check = 0;
	udp->check = csum_tcpudp_magic((__force __be32)gasp.to.local_ip, (__force __be32)gasp.to.remote_ip, len, IPPROTO_UDP,
				       csum_partial(udp, len, 0));
	if (!udp->check)
		udp->check = CSUM_MANGLED_0;

	ip = skb_push(skb, sizeof(*ip));
	skb_reset_network_header(skb);
	memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = htons(sizeof(*ip) + len);
	ip->ttl = 64;
	ip->protocol = IPPROTO_UDP;
	ip->saddr = (__force __be32)gasp.to.local_ip;
	ip->daddr = (__force __be32)gasp.to.remote_ip;
	ip->check = ip_fast_csum((u8 *)ip, ip->ihl);

	eth = skb_push(skb, ETH_HLEN);
	skb_reset_mac_header(skb);
	ether_addr_copy(eth->h_source, gasp.np.dev->dev_addr);
	ether_addr_copy(eth->h_dest, gasp.to.remote_mac);
	eth->h_proto = htons(ETH_P_IP);
	skb->protocol = eth->h_proto;
	skb->dev = gasp.np.dev;
}

static int on_panic(struct notifier_block *nb, unsigned long val, void *reason)
{
	unsigned long irq;
	size_t i;

	if (!READ_ONCE(gasp.on))
		return NOTIFY_DONE;
	local_irq_save(irq);
	for (i = 0; i < GASP_COPIES; i++) {
		gasp_fill(gasp.skb[i], reason ?: "");
		netpoll_send_skb(&gasp.np, gasp.skb[i]);
	}
	local_irq_restore(irq);
	return NOTIFY_DONE;
}

/* Before those of other modules, which may hang. */
static struct notifier_block panic_block = { .notifier_call = on_panic, .priority = INT_MAX - 1 };

static void gasp_off(void)
{
	size_t i;

	ASSERT_RTNL();
	WRITE_ONCE(gasp.on, false);
	if (gasp.np.dev) {
		__netpoll_cleanup(&gasp.np);
		netdev_put(gasp.np.dev, &gasp.np.dev_tracker);
		gasp.np.dev = NULL;
	}
	for (i = 0; i < GASP_COPIES; i++) {
		kfree_skb(gasp.skb[i]);
		gasp.skb[i] = NULL;
	}
	memzero_explicit(&gasp.to, sizeof(gasp.to));
}

static int on_netdev(struct notifier_block *nb, unsigned long event, void *ptr)
{
	if (event == NETDEV_UNREGISTER && netdev_notifier_info_to_dev(ptr) == gasp.np.dev)
		gasp_off();
	return NOTIFY_DONE;
}

static struct notifier_block netdev_block = { .notifier_call = on_netdev };

static int gasp_on(const struct fp8guard_gasp *arg)
{
	struct net_device *dev;
	size_t i;
	int r;

	ASSERT_RTNL();
	dev = __dev_get_by_name(&init_net, arg->device);
	if (!dev)
		return -ENODEV;
	if (dev->type != ARPHRD_ETHER || !is_valid_ether_addr(arg->remote_mac))
		return -EINVAL;
	for (i = 0; i < GASP_COPIES; i++) {
		gasp.skb[i] = alloc_skb(GASP_FRAME + dev->needed_headroom + dev->needed_tailroom, GFP_KERNEL);
		if (!gasp.skb[i])
			return -ENOMEM;
		skb_reserve(gasp.skb[i], dev->needed_headroom);
	}
	memset(&gasp.np, 0, sizeof(gasp.np));
	gasp.np.name = "fp8guard";
	strscpy(gasp.np.dev_name, arg->device, sizeof(gasp.np.dev_name));
	r = __netpoll_setup(&gasp.np, dev);
	if (r) {
		gasp.np.dev = NULL;
		return r;
	}
	netdev_hold(dev, &gasp.np.dev_tracker, GFP_KERNEL);
	gasp.to = *arg;
	WRITE_ONCE(gasp.on, true);
	return 0;
}

int guard_gasp_set(const struct fp8guard_gasp *arg)
{
	int r = 0;

	if (strnlen(arg->device, sizeof(arg->device)) == sizeof(arg->device) ||
	    strnlen(arg->node, sizeof(arg->node)) == sizeof(arg->node) ||
	    strnlen(arg->boot_id, sizeof(arg->boot_id)) == sizeof(arg->boot_id))
		return -EINVAL;
	rtnl_lock();
	gasp_off();
	if (arg->device[0]) {
		r = gasp_on(arg);
		if (r)
			gasp_off();
	}
	rtnl_unlock();
	return r;
}

int guard_gasp_init(void)
{
	int r = register_netdevice_notifier(&netdev_block);

	if (r)
		return r;
	r = atomic_notifier_chain_register(&panic_notifier_list, &panic_block);
	if (r)
		unregister_netdevice_notifier(&netdev_block);
	return r;
}

void guard_gasp_exit(void)
{
	atomic_notifier_chain_unregister(&panic_notifier_list, &panic_block);
	rtnl_lock();
	gasp_off();
	rtnl_unlock();
	unregister_netdevice_notifier(&netdev_block);
}
