/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * fp8guard: leases on groups of processes, the kernel's events, a datagram when it dies.
 *
 * Every structure begins with its size as the caller knows it. A longer one is taken when the bytes beyond the kernel's are zero, a
 * shorter one is filled up with zeros. ioctls that answer write at most `size` bytes back.
 */
#ifndef _UAPI_FP8GUARD_H
#define _UAPI_FP8GUARD_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define FP8GUARD_DEVICE "/dev/fp8guard"
#define FP8GUARD_VERSION 1

struct fp8guard_info {
	__u32 size;
	__u32 version;
	__u32 max_leases; /* in all */
	__u32 max_groups; /* of one lease */
	__u32 leases; /* armed now, of all holders */
	__u32 sources; /* bit n: events of type n are being watched */
	__u64 lapsed; /* leases since the module was loaded */
	__u64 dropped;
	__u64 closed; /* by a holder that closed or died */
	__u64 posted; /* events */
	__u64 lost_in_nmi;
};

/*
 * A lease is armed by CREATE and kills its groups when the time to live has run out (CLOCK_MONOTONIC), when its file is closed, or when the
 * process that opened the file exits. `id` names a slot, `generation` the life of it: a call with an old generation gets ESTALE and does
 * nothing. A lease that has lapsed stays until it is dropped, for STAT.
 */
struct fp8guard_lease {
	__u32 size;
	__u32 id; /* out of CREATE */
	__u64 generation; /* out of CREATE */
	__u64 ttl_ns; /* CREATE, RENEW: 1 ms to 1 h */
	__u64 deadline_ns; /* out of CREATE, RENEW */
};

#define FP8GUARD_GROUP_PGRP 1 /* target: a process group's id in the caller's pid namespace */
#define FP8GUARD_GROUP_CGROUP 2 /* target: a file descriptor of a cgroup v2 folder; all below it too */

struct fp8guard_group {
	__u32 size;
	__u32 id;
	__u64 generation;
	__u32 kind;
	__s32 target;
};

#define FP8GUARD_LEASE_ARMED 1
#define FP8GUARD_LEASE_LAPSED 2

struct fp8guard_stat {
	__u32 size;
	__u32 id;
	__u64 generation;
	__u32 state;
	__u32 groups;
	__u64 deadline_ns;
	__u64 lapsed_ns; /* when the kill began; 0: not */
	__u64 emptied_ns; /* when the last cgroup was seen empty; 0: not (yet) */
	__u64 renewals;
	__u64 stale; /* calls refused for an old generation */
	__u64 signals; /* sent to tasks of cgroups */
};

/* A datagram to `remote` when the kernel panics. An empty `device` turns it off. */
struct fp8guard_gasp {
	__u32 size;
	__u32 local_ip; /* IPv4, network byte order */
	__u32 remote_ip;
	__u16 local_port; /* network byte order */
	__u16 remote_port;
	__u8 remote_mac[6]; /* of the next hop */
	__u8 reserved[2];
	char device[16];
	char node[64];
	char boot_id[40];
	__u8 key[32];
};

#define FP8GUARD_GASP_MAGIC "FP8GASP1"

/* What is sent: `mac` is HMAC-SHA256 under the key over all before it. */
struct fp8guard_gasp_datagram {
	char magic[8];
	__u64 realtime_ns; /* big endian */
	char node[64];
	char boot_id[40];
	char reason[136];
	__u8 mac[32];
};

/* One more pattern: a kernel line that contains `text` is an event of type LINE. 32 in all; they go with the file. */
struct fp8guard_pattern {
	__u32 size;
	__u32 reserved;
	char text[64];
};

#define FP8GUARD_EVENT_LOST 0 /* arg[0]: so many events this reader was too slow for */
#define FP8GUARD_EVENT_LEASE 1 /* lapsed or closed; arg: id, generation, 1 = lapsed 2 = closed, lateness in ns */
#define FP8GUARD_EVENT_MCE 2 /* arg: status, addr, misc, bank << 32 | cpu */
#define FP8GUARD_EVENT_OOM 3 /* arg[0]: pid; text: its name where known */
#define FP8GUARD_EVENT_AER 4 /* arg: status, severity (0 non-fatal, 1 fatal, 2 corrected); text: device */
#define FP8GUARD_EVENT_XID 5 /* arg[0]: the Xid; text: the line */
#define FP8GUARD_EVENT_BLOCK 6 /* arg: errno, sector, bytes, operation; text: disk */
#define FP8GUARD_EVENT_HUNG 7 /* arg[0]: pid; text: its name */
#define FP8GUARD_EVENT_IB 8 /* arg: enum ib_event_type, port, 1 = device came 2 = device went 0 = event; text: device */
#define FP8GUARD_EVENT_LINE 9 /* text: the line, arg[0]: its syslog priority */
#define FP8GUARD_EVENT_TYPES 10

#define FP8GUARD_EVENT_USER 1 /* flags: the line was written to /dev/kmsg by a process */

#define FP8GUARD_EVENT_TEXT 192

/* read() gives whole records, as many as fit; poll() says POLLIN when there is one. */
struct fp8guard_event {
	__u16 size;
	__u16 type;
	__u32 flags;
	__u64 sequence; /* from 1, since the module was loaded */
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 arg[4];
	char text[FP8GUARD_EVENT_TEXT]; /* ends with a zero */
};

#define FP8GUARD_IOC 0xf8
#define FP8GUARD_INFO _IOWR(FP8GUARD_IOC, 0, struct fp8guard_info)
#define FP8GUARD_LEASE_CREATE _IOWR(FP8GUARD_IOC, 1, struct fp8guard_lease)
#define FP8GUARD_LEASE_ADD _IOW(FP8GUARD_IOC, 2, struct fp8guard_group)
#define FP8GUARD_LEASE_RENEW _IOWR(FP8GUARD_IOC, 3, struct fp8guard_lease)
#define FP8GUARD_LEASE_DROP _IOW(FP8GUARD_IOC, 4, struct fp8guard_lease)
#define FP8GUARD_LEASE_STAT _IOWR(FP8GUARD_IOC, 5, struct fp8guard_stat)
#define FP8GUARD_GASP_SET _IOW(FP8GUARD_IOC, 6, struct fp8guard_gasp)
#define FP8GUARD_PATTERN_ADD _IOW(FP8GUARD_IOC, 7, struct fp8guard_pattern)

#endif
