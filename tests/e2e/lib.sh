# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034
# For the scripts beside it: a cluster in a folder of its own, and checks that say what was found and what was expected.
build=$(cd "$1" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=$(mktemp -d /tmp/fp8e-XXXXXX)
export FP8CTL_HOME=$dir/home NO_COLOR=1
unset FP8CTL_CONTROLLER FP8CTL_BINDIR
checks=0
failed=0
slowdown=${FP8_TEST_SLOWDOWN:-1}
python=/usr/bin/python3 # the python3 of a PATH may be a program that looks for one, ten times as slow
[ -x "$python" ] || python=python3

ctl() { "$build/fp8ctl" "$@"; }

# run COMMAND...: leaves its exit code in $rc, its output in $out and $err.
run() {
  rc=0
  "$@" >"$dir/out" 2>"$dir/err" || rc=$?
  out=$(cat "$dir/out")
  err=$(cat "$dir/err")
}

ok() { checks=$((checks + 1)); }
bad() {
  failed=$((failed + 1))
  echo "FAILED: $1"
  printf '  exit code %s\n  stdout: %.1500s\n  stderr: %.1500s\n' "$rc" "$out" "$err"
}
# expect NAME CODE: the exit code of the last run.
expect() { if [ "$rc" -eq "$2" ]; then ok; else bad "$1: found exit code $rc, expected $2"; fi; }
# has NAME WHERE TEXT: $out or $err holds TEXT.
has() {
  local text=$out
  [ "$2" = err ] && text=$err
  case "$text" in *"$3"*) ok ;; *) bad "$1: expected '$3' in $2" ;; esac
}
is() { if [ "$2" = "$3" ]; then ok; else bad "$1: found '$2', expected '$3'"; fi; }
one_line() { if [ "$(wc -l <"$dir/err")" -eq 1 ]; then ok; else bad "$1: expected one line on stderr"; fi; }

# json FILE EXPRESSION: a Python expression over the JSON object j.
json() { "$python" -ISc 'import json, sys; j = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$1" "$2"; }

# until NAME SECONDS COMMAND...: tries again until it succeeds.
until_true() {
  local name=$1 end=$((SECONDS + $2 * slowdown))
  shift 2
  while ! "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$end" ]; then rc=1 out='' err=''; bad "$name: waited in vain"; return 1; fi
    sleep 0.1
  done
  ok
}

# Processes of this test's clusters: daemons have the folder in their arguments.
processes() { pgrep -f -- "$dir" | grep -vx "$$" || true; }

finish() {
  local code=$?
  trap - EXIT
  for h in "$dir"/*/keeper.pid; do
    [ -e "$h" ] && ctl --dir "$(dirname "$h")" cluster down --now >/dev/null 2>&1
  done
  if [ "$code" -ne 0 ] || [ "$failed" -ne 0 ]; then
    tail -n 15 "$dir"/*/fp8d.log "$dir"/*/keeper.log "$dir"/*/nodes/*/worker.log 2>/dev/null
  fi
  rm -rf "$dir"
  echo "$checks checks, $failed failed"
  [ "$code" -eq 0 ] && [ "$failed" -eq 0 ] || exit 1
}
trap finish EXIT
