#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fp8d and fp8-worker under valgrind: a job runs and is cancelled, both get SIGTERM, both exit 0 with no error and nothing lost.
set -euo pipefail
build=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d /tmp/fp8v-XXXXXX)
pids=()
cleanup() {
  for p in "${pids[@]}" $(cut -d ' ' -f 1 "$dir/nodes/node-0/spawner.pid" 2>/dev/null); do kill -KILL "$p" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap cleanup EXIT

# Not in ranks: what is checked is the daemons' shutdown. Reachable memory at exit is that of libraries.
# shellcheck disable=SC2054 # the commas are valgrind's
vg=(valgrind --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite,possible --show-leak-kinds=definite,possible --trace-children=no
  --child-silent-after-fork=no --quiet "--suppressions=$root/tests/lint/valgrind.supp")
export FP8CTL_HOME=$dir
mkdir -p "$dir/nodes/node-0"
"${vg[@]}" --log-file="$dir/fp8d.valgrind.%p" "$build/fp8d" --socket "$dir/fp8d.sock" --state "$dir" >"$dir/fp8d.log" 2>&1 &
pids+=($!)
for _ in $(seq 300); do [ -S "$dir/fp8d.sock" ] && break; sleep 0.1; done
# valgrind knows no pidfd_open(2), without which a spawner starts no ranks: the spawner is that of a worker before, which crashed.
worker=("$build/fp8-worker" --name node-0 --dir "$dir/nodes/node-0" --controller "unix:$dir/fp8d.sock" --devices 2)
"${worker[@]}" >"$dir/worker.log" 2>&1 &
before=$!
pids+=("$before")
for _ in $(seq 300); do [ -S "$dir/nodes/node-0/spawner.sock" ] && grep -q joined "$dir/worker.log" && break; sleep 0.1; done
kill -KILL "$before"
wait "$before" 2>/dev/null || true
unset 'pids[1]'
"${vg[@]}" --log-file="$dir/worker.valgrind.%p" "${worker[@]}" >>"$dir/worker.log" 2>&1 &
pids[1]=$!
ctl() { "$build/fp8ctl" --controller "unix:$dir/fp8d.sock" "$@"; }
for _ in $(seq 300); do [ "$(grep -c joined "$dir/worker.log")" -eq 2 ] && break; sleep 0.1; done
ctl submit "$root/tests/fault/job.yaml" --set parallel.tp=1 --set parallel.pp=1 --set train.steps=1000000 --set "checkpoint.dir=$dir/ckpt" >/dev/null
for _ in $(seq 600); do ctl get 1 -o json | grep -qi '"state": *"running"' && break; sleep 0.1; done
ctl get 1 -o json | grep -qi '"state": *"running"' || { echo "the job did not run:"; ctl describe 1; cat "$dir"/*.log; exit 1; }
ctl cancel 1 >/dev/null
for _ in $(seq 600); do ctl get 1 -o json | grep -qi cancelled && break; sleep 0.1; done
rc=0
for i in 1 0; do
  kill -TERM "${pids[$i]}"
  wait "${pids[$i]}" || { rc=$?; echo "daemon $i: exit $rc"; }
done
pids=()
cat "$dir"/*.valgrind.* | head -200
[ "$rc" -eq 0 ] && [ ! -s "$(find "$dir" -name '*.valgrind.*' -size +0 | head -1)" ]
