#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# sweep.sh BUILD_DIR [FIRST] [COUNT]: many seeds of the simulated cluster; a failing seed is printed and replays with `test-sim --seed N -v`.
set -eu
exec "${1:?usage: sweep.sh BUILD_DIR [FIRST] [COUNT]}/tests/sim/test-sim" --seed "${2:-1000}" --seeds "${3:-10000}"
