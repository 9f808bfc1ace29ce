#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# compare_bits.sh PROGRAM...: each prints a line "digest ..."; all of them must be equal. A program that this processor cannot run (SIGILL) is left out.
set -u
first=
for p in "$@"; do
        line=$("$p")
        rc=$?
        line=$(printf '%s\n' "$line" | grep '^digest ')
        if [ "$rc" -eq 132 ]; then
                echo "left out (this processor has not got its instructions): $p"
                continue
        fi
        [ "$rc" -eq 0 ] && [ -n "$line" ] || { echo "$p: exit status $rc, line '$line'"; exit 1; }
        first=${first:-$line}
        echo "$line $p"
        [ "$line" = "$first" ] || { echo "found $line, expected $first"; exit 1; }
done
