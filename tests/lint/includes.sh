#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Dependencies point down only (ARCHITECTURE.md). Fails, naming file and line, when an include points up or across, and when gRPC's
# headers are included anywhere but in proto/rpc_*.c, proto/tls.c and proto/peercred.c's callers.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}"

bad=0
# check FOLDER ALLOWED...: quoted includes of FOLDER's files may begin with one of these words only.
check() {
  local folder=$1; shift
  local allowed; allowed=$(IFS='|'; echo "$*")
  [ -d "$folder" ] || return 0
  local hits
  hits=$(grep -rnE --include='*.[ch]' --include='*.cu' --include='*.cuh' '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$folder" |
    grep -vE "include[[:space:]]*\"($allowed)" || true)
  if [ -n "$hits" ]; then
    echo "$folder/ may include only: $*. Found:"; echo "$hits"; bad=1
  fi
}
rank='worker/(rank|comm|model|train|ckpt|data)/'
agent='worker/(agent|health)/'
check base base/ version.h
check format format/ base/ version.h
check proto proto/ base/ driver/fp8guard_uapi.h version.h
check kernels kernels/ base/ version.h
check daemon daemon/ proto/ base/ version.h
check ctl ctl/ proto/ format/ base/ version.h
for d in rank comm model train ckpt data; do check "worker/$d" "$rank" kernels/ proto/ format/ base/ version.h; done
for d in agent health; do check "worker/$d" "$agent" kernels/ proto/ format/ base/ driver/fp8guard_uapi.h version.h; done
check daemon/core daemon/core/ daemon/store/store.h proto/ base/ version.h

grpc=$(grep -rlE --include='*.[ch]' 'include[[:space:]]*[<"]grpc/' base format proto kernels daemon worker ctl tests bench 2>/dev/null |
  grep -vE '^proto/(rpc_[a-z_]+|tls)\.[ch]$' || true)
[ -z "$grpc" ] || { echo "only proto/rpc_*.c and proto/tls.c may include <grpc/...>. Found:"; echo "$grpc"; bad=1; }

# No I/O, clock or threads in the controller's core.
io=$(grep -rnE --include='*.[ch]' 'include[[:space:]]*<(pthread|sys/socket|sys/epoll|fcntl|time|threads|sqlite3)\.h>' daemon/core || true)
[ -z "$io" ] || { echo "daemon/core has no I/O, clock or threads. Found:"; echo "$io"; bad=1; }
exit $bad
