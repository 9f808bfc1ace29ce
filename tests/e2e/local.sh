#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fp8ctl against real daemons: a local cluster, a job from submit to its end, every view of it, cancel, two clusters side by side, nothing left behind.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

job=$dir/job.yaml
cat >"$job" <<EOT
version: 1
name: e2e
model: {preset: tiny, hidden_size: 64, intermediate_size: 128, head_dim: 16}
data: {path: $root/LICENSE, seq_len: 32}
parallel: {tp: 2, dp: 2}
train: {steps: 12, micro_batch: 1, global_batch: 2, eval_every: 6, eval_batches: 1}
optimizer: {lr: 0.003}
checkpoint: {dir: $dir/ckpt, every_steps: 5}
metrics: {digests: true, fp8_every: 6}
EOT

run ctl cluster up --nodes 2 --devices 2; expect 'up' 0; has 'up' out '2 nodes, 4 devices'
is 'mode of the home' "$(stat -c %a "$FP8CTL_HOME")" 700
is 'mode of the socket' "$(stat -c %a "$FP8CTL_HOME/fp8d.sock")" 600
run ctl cluster up; expect 'up again' 0; has 'up again' out '2 nodes, 4 devices'
run ctl cluster up --nodes 3; expect 'up otherwise' 1; has 'up otherwise' err 'cluster down'
run ctl cluster status -o json; expect 'status' 0
is 'status' "$(json "$dir/out" '[j["v"], j["state"], sorted(d["name"] for d in j["daemons"]), j["controller"]["nodes_ready"]]')" \
  "[1, 'up', ['fp8d', 'keeper', 'node-0', 'node-1'], 2]"
for c in 'node list' 'cluster status' 'list --all' 'events'; do
  for o in table wide json yaml name; do
    # shellcheck disable=SC2086
    run ctl $c -o "$o"; expect "$c -o $o" 0
  done
done
is 'names of daemons' "$(ctl cluster status -o name | sort | xargs)" 'fp8d keeper node-0 node-1'
run ctl node list -o json
is 'nodes' "$(json "$dir/out" 'j["v"], [(n["name"], n["state"], len(n["devices"])) for n in j["nodes"]]')" "(1, [('node-0', 'ready', 2), ('node-1', 'ready', 2)])"
run ctl node get node-1 -o name; is 'node get' "$out" node-1
run ctl node describe node-1; expect 'node describe' 0; has 'node describe' out 'DEVICE'
run ctl node get node-9; expect 'an unknown node' 3; one_line 'an unknown node'
for c in 'get 7' 'describe 7' 'cancel 7' 'ckpt ls 7' 'metrics 7' 'logs 7' 'wait 7' 'save 7'; do
  # shellcheck disable=SC2086
  run ctl $c; expect "$c" 3
done

# Plans and dry runs change nothing.
run ctl submit "$job" --plan; expect plan 0; has plan out 'node-1'
run ctl submit "$job" --dry-run -o json; expect 'dry run' 0
is 'dry run' "$(json "$dir/out" 'j["v"], j["job"]["id"], len(j["plan"]["ranks"])')" '(1, 0, 4)'
run ctl submit "$job" --dry-run --set data.path="$dir/none.txt"; expect 'preflight: no data' 2; one_line 'preflight: no data'; has 'preflight: no data' err 'node-0: data.path: '; has 'preflight: no data' err 'none.txt'
run ctl submit "$job" --dry-run --set model.vocab_size=64; expect 'preflight: vocabulary' 2; has 'preflight: vocabulary' err 'expected below model.vocab_size (64)'
run ctl submit "$job" --set parallel.pp=4; expect 'more ranks than devices' 2; one_line 'more ranks than devices'
run ctl list --all -o name; is 'nothing was stored' "$out" ''
run ctl submit "$job" --set test.kill_step=3; expect 'test hooks' 2; has 'test hooks' err 'test'

# A job to its end: exactly one JSON object, with numbers or null.
run ctl submit "$job" --wait -o json; expect 'submit --wait' 0
is 'what it must hold' "$(json "$dir/out" 'sorted({"v","id","state","epoch","step","loss_first","loss_last","val_loss","skipped_steps","restarts","lost_steps","wall_s","tokens_per_s","checkpoint"} - set(j))')" '[]'
is 'what it says' "$(json "$dir/out" 'j["id"], j["state"], j["step"], j["restarts"], j["loss_last"] < j["loss_first"], j["val_loss"] > 0, j["tokens_per_s"] > 0')" \
  "(1, 'COMPLETED', 12, 0, True, True, True)"
checkpoint=$(json "$dir/out" 'j["checkpoint"]')
is 'the checkpoint is there' "$([ -f "$checkpoint/manifest.json" ] && echo there)" there
run ctl get 1 -o yaml; has 'get as YAML' out 'state: COMPLETED'
run ctl describe 1; expect describe 0; has describe out 'checkpoint_committed'
run ctl describe 1 -o json
is 'describe' "$(json "$dir/out" 'j["id"], j["job_file"]["train"]["steps"], j["checkpoints"][-1]["step"], j["events"][0]["kind"]')" "(1, 12, 12, 'submitted')"
run ctl list; has 'list without ended jobs' err 'no jobs wait or run'
run ctl list -a -o json; is 'list' "$(json "$dir/out" 'j["v"], [x["id"] for x in j["jobs"]]')" '(1, [1])'
# Which came before the last: a save that is due while others are under way is passed over.
run ctl ckpt ls 1 -o json; is 'ckpt ls' "$(json "$dir/out" 'len(j["checkpoints"]), j["checkpoints"][-1]["step"], j["checkpoints"][0]["step"] in (5, 10)')" '(2, 12, True)'
run ctl ckpt ls 1 -o name; has 'ckpt names' out "$checkpoint"
run ctl wait 1; expect 'wait for an ended job' 0
run ctl cancel 1; is 'cancel of an ended job changes nothing' "$(ctl get 1 -o yaml | grep ^state)" 'state: COMPLETED'

# Metrics: one row a step, in three forms that agree.
run ctl metrics 1 -o json; expect 'metrics' 0; cp "$dir/out" "$dir/metrics.json"
is 'rows' "$(json "$dir/metrics.json" 'j["v"], j["job"], [r["step"] for r in j["rows"]] == list(range(1, 13))')" '(1, 1, True)'
is 'the bits are those of the loss' \
  "$(json "$dir/metrics.json" 'all(__import__("struct").unpack(">f", bytes.fromhex(r["loss_hex"]))[0] == r["loss"] for r in j["rows"])')" True
is 'digests' "$(json "$dir/metrics.json" 'len({r["digest"] for r in j["rows"]}), {len(r["digest"]) for r in j["rows"]}')" '(12, {32})'
ctl metrics 1 -o csv >"$dir/metrics.csv"
is 'csv and json agree' "$("$python" - "$dir" <<'EOT'
import csv, json, sys
rows = json.load(open(sys.argv[1] + "/metrics.json"))["rows"]
lines = list(csv.DictReader(open(sys.argv[1] + "/metrics.csv")))
print(len(rows) == len(lines) and all(int(l["step"]) == r["step"] and l["loss_hex"] == r["loss_hex"] and float(l["loss"]) == r["loss"] for l, r in zip(lines, rows)))
EOT
)" True
run ctl metrics 1; is 'the table has a head and 12 rows' "$(wc -l <"$dir/out")" 13
run ctl metrics 1 --fp8 -o json; expect 'metrics --fp8' 0
is 'FP8 tensors' "$(json "$dir/out" 'j["v"], sorted({r["step"] for r in j["rows"]}), {len(r["tensors"]) for r in j["rows"]}, all(t["amax"] > 0 and t["saturated"] == 0 and 0 <= t["flushed"] < 1 for r in j["rows"] for t in r["tensors"])')" \
  '(1, [6, 12], {20}, True)'
lines=$(json "$dir/out" 'sum(len(r["tensors"]) for r in j["rows"]) + 1')
run ctl metrics 1 --fp8; is 'the table of FP8 tensors' "$(wc -l <"$dir/out")" "$lines"; has 'FP8 tensors by name' out 'mlp.down_proj.grad_output'
is 'and as csv' "$(ctl metrics 1 --fp8 -o csv | wc -l)" "$lines"
run ctl metrics 1 --follow -o json; is 'followed to the end' "$(wc -l <"$dir/out")" 12
run ctl logs 1; expect logs 0; has logs out '0: '; has logs out '3: '
run ctl logs 1 --rank 2 -f; expect 'logs -f of an ended job' 0; has 'logs of one rank' out 'rank 2'
run ctl logs --node node-0; expect 'logs of a worker' 0; has 'logs of a worker' out 'joined'
run ctl events 1 -f -o json; expect 'events -f of an ended job' 0
is 'the last event' "$(tail -n 1 "$dir/out" | "$python" -c 'import json, sys; j = json.load(sys.stdin); print(j["v"], j["kind"])')" '1 completed'
run ctl events -o json; is 'events of all' "$(json "$dir/out" 'j["v"], len(j["events"]) > 5')" '(1, True)'

# A checkpoint starts another job, under another layout.
run ctl submit "$job" --from "$checkpoint" --set train.steps=14 --set parallel.tp=1 --set checkpoint.dir="$dir/ckpt2" --wait -o json; expect 'from a checkpoint' 0
is 'it goes on' "$(json "$dir/out" 'j["id"], j["step"], j["tp"]')" '(2, 14, 1)'
is 'its first step' "$(ctl metrics 2 -o csv | sed -n 2p | cut -d, -f1)" 13

# Followed from the first moment, before there is a file, through rotations, to the job's end.
run ctl submit "$job" --set parallel.tp=1 --set parallel.dp=1 --set train.steps=400 --set data.seq_len=16 --set metrics.max_bytes=65536 --set checkpoint.dir="$dir/ckpt5" -o name; id=$out
ctl metrics "$id" -f -o csv >"$dir/followed.csv" 2>"$dir/followed.err" & follow=$!
ctl logs "$id" -f >"$dir/followed.log" 2>>"$dir/followed.err" & follow_log=$!
ctl events "$id" -f >"$dir/followed.events" 2>>"$dir/followed.err" & follow_events=$!
wait "$follow"; is 'metrics -f from the start' "$?" 0
wait "$follow_log"; is 'logs -f from the start' "$?" 0
wait "$follow_events"; is 'events -f from the start' "$?" 0
is 'nothing to complain of' "$(cat "$dir/followed.err")" ''
is 'the last row followed' "$(tail -n 1 "$dir/followed.csv" | cut -d, -f1)" 400
is 'the last line followed' "$(grep -c 'step 400' "$dir/followed.log" | sed 's/[1-9][0-9]*/some/')" some
is 'the last event followed' "$(tail -n 1 "$dir/followed.events" | grep -c completed)" 1
ctl metrics "$id" -o csv >"$dir/rotated.csv"
is 'rotation left the newest rows' "$(tail -n 1 "$dir/rotated.csv" | cut -d, -f1)" 400
is 'and bounded the file' "$(find "$FP8CTL_HOME"/nodes/*/jobs/"$id" -name 'metrics.jsonl*' -size +64k | wc -l)" 0
is 'a job folder is its user'"'"'s own' "$(stat -c %a "$FP8CTL_HOME"/nodes/*/jobs/"$id" | sort -u)" 700

# A second cluster beside it, a long job there: save, a rank killed, cancel.
other=(--dir "$dir/other")
run ctl "${other[@]}" cluster up --nodes 1 --devices 2 --allow-test-hooks; expect 'a second cluster' 0
run ctl "${other[@]}" submit "$job" --set parallel.dp=1 --set train.steps=1000000 --set test.slow_ms=20 --set recovery.drills=true --set checkpoint.dir="$dir/ckpt3" -o name; expect 'submit there' 0; is 'its number' "$out" 1
stepped() { [ "$(ctl "${other[@]}" get 1 -o yaml | sed -n 's/^step: //p')" -ge "$1" ]; }
until_true 'a few steps' 60 stepped 3
run ctl "${other[@]}" save 1 -o json; expect save 0
is 'saved' "$(json "$dir/out" 'j["step"] > 0 and str(j["step"]) in j["checkpoint"]')" True
run ctl inject "$id" --rank 1; expect 'inject without leave' 4; has 'inject without leave' err 'recovery.drills'
run ctl "${other[@]}" inject 1 --rank 1; expect inject 0; has inject out 'SIGKILL to rank 1'
recovered() { [ "$(ctl "${other[@]}" get 1 -o yaml | sed -n 's/^restarts: //p')" -eq 1 ]; }
until_true 'the recovery' 30 recovered
at=$(ctl "${other[@]}" get 1 -o yaml | sed -n 's/^step: //p')
until_true 'it goes on' 30 stepped $((at + 3))
run ctl "${other[@]}" wait 1 --timeout 1s; expect 'wait with a timeout' 6; has 'wait with a timeout' err 'it goes on'
run ctl list -o name; is 'the first cluster knows nothing of it' "$out" ''
# A controller that dies is started again, and clients wait for it, also while its socket is not there.
rm "$dir/other/fp8d.sock"
kill -KILL "$(ctl "${other[@]}" cluster status -o yaml | grep -A 1 'name: fp8d' | sed -n 's/.*pid: //p')"
run ctl "${other[@]}" get 1 -o name; expect 'a controller that was killed' 0
run ctl "${other[@]}" cancel 1 --reason 'enough of it'; expect cancel 0
run ctl "${other[@]}" wait 1 -o json; expect 'the end of a cancelled job' 7
is 'cancelled' "$(json "$dir/out" 'j["state"]')" CANCELLED

run ctl "${other[@]}" cluster down; expect 'down' 0
run ctl cluster status; expect 'the first still runs' 0
# Down with a job that runs, up again: it goes on from its last checkpoint.
run ctl submit "$job" --set train.steps=1000000 --set checkpoint.dir="$dir/ckpt4" -o name; id=$out
stepped_here() { [ "$(ctl get "$id" -o yaml | sed -n 's/^step: //p')" -ge "$1" ]; }
until_true 'steps' 60 stepped_here 3
run ctl cluster down; expect 'down with a job' 0
until_true 'no process left' 5 test -z "$(processes)"
run ctl cluster up; expect 'up with a job' 0
until_true 'it runs again' 30 stepped_here 6
run ctl cluster down --now; expect 'down at once' 0
is 'no process left' "$(processes)" ''
run ctl list; expect 'nobody answers' 5
