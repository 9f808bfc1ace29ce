#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What fp8ctl does without any controller: usage, job-file errors, help, completion, documents.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

job=$dir/job.yaml
cat >"$job" <<EOT
version: 1
name: e2e
model: {preset: tiny}
data:
  path: $root/LICENSE
  seq_len: 64
parallel: {tp: 2}
train: {steps: 4, micro_batch: 2, global_batch: 2}
checkpoint: {dir: $dir/ckpt}
EOT

# refused NAME TEXT ARGUMENTS...: exit 2, one line, names TEXT.
refused() {
  local name=$1 text=$2
  shift 2
  run ctl "$@"
  expect "$name" 2; has "$name" err "$text"; one_line "$name"; is "$name: stdout" "$out" ""
}
refused 'no command' 'found no command'
refused 'unknown command' "did you mean 'submit'" submti
refused 'unknown subcommand' 'expected node and one of: list, get, describe, diff, test' node lst
refused 'unknown option' 'did you mean --all' list --al
refused 'missing argument' 'expected: fp8ctl get JOB' get
refused 'too many arguments' 'expected: fp8ctl get JOB' get 1 2
refused 'bad job number' "found '0x1'" get 0x1
refused 'format' 'allowed: table, wide, json, yaml, name' list -o csv
refused 'bad number' 'from 1 to' cluster up --nodes 0
refused 'two wishes' '--wait with --dry-run' submit "$job" --wait --dry-run
refused 'completion' 'bash or zsh' completion fish
refused 'certs without folder' '--out' admin certs
refused 'data without prefix' '--out' data prepare "$job"

# Job files: file, line, key, what was found, what is allowed.
broken() {
  local name=$1 from=$2 to=$3
  shift 3
  sed "s|$from|$to|" "$job" >"$dir/broken.yaml"
  run ctl submit "$dir/broken.yaml"
  expect "$name" 2; one_line "$name"
  for text in "$dir/broken.yaml:" "$@"; do has "$name" err "$text"; done
}
broken 'unknown key' 'seq_len: 64' 'seq_len: 64\n  seqlen: 64' ':7:' 'seqlen'
broken 'wrong type' 'seq_len: 64' 'seq_len: many' ':6:' "'data.seq_len'" "'many'" 'integer'
broken 'bad layout' 'tp: 2' 'tp: 3' ':7:' "'parallel.tp'" "'3'" 'allowed'
broken 'bad batch' 'global_batch: 2' 'global_batch: 3' ':8:' 'train.global_batch'
broken 'no YAML' 'name: e2e' 'name: [e2e' 'YAML'
refused 'no such file' 'nothing.yaml' submit "$dir/nothing.yaml"
refused '--set of an unknown key' 'train.step' submit "$job" --set train.step=5
refused '--set out of range' "'train.steps'" submit "$job" --set train.steps=0
refused '--set without value' 'KEY=VALUE' submit "$job" --set train.steps
head -c 300000 /dev/zero | tr '\0' '#' >"$dir/large.yaml"
refused 'a file too large' 'large.yaml' submit "$dir/large.yaml"

# A good file needs a controller.
run ctl submit "$job"; expect 'no controller' 5; has 'no controller' err 'cluster up'; one_line 'no controller'
run ctl --controller "unix:$dir/none.sock" list; expect 'no controller there' 5
run ctl submit "$job" --set train.steps=5 --name other; expect 'a good --set' 5
run ctl submit "$job" --set 'optimizer.groups=[{match: "*.mlp.*", lr_scale: 0.5}]' --set 'train.recompute=[0, 2]'; expect '--set of lists' 5
run ctl cluster status; expect 'no cluster' 5; has 'no cluster' out 'is down'
run ctl cluster down; expect 'down twice' 0
run ctl --dir "$dir/$(printf 'x%.0s' {1..120})" cluster up; expect 'a long folder' 1; has 'a long folder' err '--dir'

# Help and completion come from the table of commands; the manual and docs/cli.md name every command.
run ctl help; expect help 0
commands=$(sed -n '/^Commands:/,/^$/p' "$dir/out" | cut -c3-26 | sed 's/ [A-Z[].*//; s/ *$//; /^$/d; /:$/d')
is 'commands found' "$([ "$(wc -l <<<"$commands")" -ge 20 ] && echo enough)" enough
ctl completion bash >"$dir/completion.bash"
run bash -n "$dir/completion.bash"; expect 'completion is bash' 0
while read -r c; do
  # shellcheck disable=SC2086
  run ctl help $c; expect "help $c" 0; has "help $c" out "usage: fp8ctl $c"
  # shellcheck disable=SC2086
  run ctl $c --help; expect "$c --help" 0
  run grep "fp8ctl $c" "$root/docs/cli.md"; expect "docs/cli.md names fp8ctl $c" 0
  run grep -E "^\.(B|BI|BR) \"?$c" "$root/docs/man/fp8ctl.1"; expect "fp8ctl.1 names $c" 0
done <<<"$commands"
# complete WORDS...: what bash would offer for the last one.
complete_words() {
  bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fp8ctl; printf "%s " "${COMPREPLY[@]}"' _ "$dir/completion.bash" "$build/fp8ctl" "$@"
}
is 'completes after help' "$(complete_words help clus)" 'cluster '
is 'completes a group after help' "$(complete_words help node desc)" 'describe '
is 'completes a word' "$(complete_words subm)" 'submit '
is 'completes a second word' "$(complete_words cluster "do")" 'down '
is 'completes an option' "$(complete_words submit --dry)" '--dry-run '
is 'completes a value' "$(complete_words list -o js)" 'json '
is 'completes behind options' "$(complete_words --dir /tmp node desc)" 'describe '
is 'completes a file' "$(complete_words submit "$dir/jo")" "$dir/job.yaml "

run ctl version -o json; expect version 0; is 'version' "$(json "$dir/out" 'j["v"], j["name"]')" "(1, 'fp8ctl')"
run ctl -o yaml version; has 'options before the command' out 'name: fp8ctl'
run ctl admin schema; expect schema 0; has schema out 'parallel.tp'

# data prepare, read back.
printf 'one\ntwo\n\nthree\n' >"$dir/text.txt"
run ctl data prepare "$dir/text.txt" --out "$dir/tokens" -o json; expect 'data prepare' 0
is 'documents' "$(json "$dir/out" 'j["v"], j["documents"], j["vocab"]')" '(1, 2, 120)'
run ctl data prepare "$dir/text.txt" --out "$dir/lines" --lines -o json
is 'documents by lines' "$(json "$dir/out" 'j["documents"] in (3, 4)')" True
run ctl data prepare "$dir/none.txt" --out "$dir/x"; is 'data prepare of nothing' "$([ "$rc" -ne 0 ] && echo refused)" refused

# Certificates that OpenSSL's own program accepts.
run ctl admin certs --out "$dir/certs" --ip 127.0.0.1 --node node-0 --user alice; expect 'certs' 0
if command -v openssl >/dev/null; then
  for c in "$dir"/certs/*.pem; do
    case "$c" in */ca.pem) continue ;; esac
    run openssl verify -CAfile "$dir/certs/ca.pem" "$c"; expect "openssl verify $(basename "$c")" 0
  done
fi
is 'keys are private' "$(find "$dir/certs" -name '*.key' ! -perm 600 | wc -l)" 0
run ctl admin certs --out "$dir/certs" --ip 127.0.0.1 --node node-0; expect 'certs again' 0; has 'certs again' out 'using the CA'
