# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by scenarios: rxe0, Soft-RoCE on the dummy device d0.  The nodes' sockets are on the loopback, so they outlive d0's link.
modprobe crc32_generic # without it rdma_rxe's link cannot be made, and says ENOENT
modprobe -a ib_uverbs rdma_rxe dummy
ip link add d0 type dummy
ip addr add 10.1.0.1/24 dev d0
ip link set d0 mtu 4200 up
rdma link add rxe0 type rxe netdev d0
