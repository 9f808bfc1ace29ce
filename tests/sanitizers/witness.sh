#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# witness.sh WITNESS SANITIZERS: a report in a process that a test only started, exit code unseen, fails that test; no report, no failure.
set -uo pipefail
run=$(dirname "$0")/run
failed=0
# expect WHAT TEXT
expect() {
  local out rc=0
  out=$("$run" sh -c '"$1" "$2" 2>/dev/null; true' _ "$witness" "$1" 2>&1) || rc=$?
  case "$rc $out" in
    "1 "*"$2"*) echo "ok  $1" ;;
    *) failed=1; printf 'FAILED: %s: found exit code %s, expected 1 and "%s" in:\n%s\n' "$1" "$rc" "$2" "$out" ;;
  esac
}
witness=$1
case ",$2," in *,address,*) expect leak 'detected memory leaks'; expect use-after-free 'heap-use-after-free' ;; esac
case ",$2," in *,undefined,*) expect overflow 'signed integer overflow' ;; esac
case ",$2," in *,thread,*) expect race 'data race' ;; esac
"$run" "$witness" nothing || { failed=1; echo "FAILED: nothing was done, and yet the test failed"; }
exit $failed
