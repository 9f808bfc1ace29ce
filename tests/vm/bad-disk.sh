# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by scenarios: `disk NAME KEY=VALUE...` makes /dev/NAME, a disk of the kernel's null_blk; /dev/bad has a bad sector, 8192 and the seven behind it.
modprobe null_blk nr_devices=0
mount -t configfs configfs /sys/kernel/config 2>/dev/null || true
disk() { mkdir "/sys/kernel/config/nullb/$1"; for kv in "${@:2}"; do echo "${kv#*=}" >"/sys/kernel/config/nullb/$1/${kv%%=*}"; done; echo 1 >"/sys/kernel/config/nullb/$1/power"; }
disk bad size=16 badblocks=+8192-8199
