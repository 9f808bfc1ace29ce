/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of subcommands.  Dispatch (dispatch.c), help and completion all read it: a command that is not here does not exist.
 */
#include "base/cleanup.h"
#include "ctl/handlers.h"

#define CKPT_HELP                                                                                                                        \
        "CKPT is a checkpoint's folder, a folder of step folders (its newest), JOB (its newest) or JOB:STEP; a job's folders must be reachable\n" \
        "from here."

const struct command commands[] = {
        { "submit", "FILE", 1, 1, FORMATS_USUAL, submit_opts, submit_run, "send a job file (YAML) to the controller",
          "FILE is a job file (docs/job-file.md lists its keys), or - for standard input. It is checked here first: a mistake in it is one line\n"
          "on stderr and exit code 2, and nothing is sent. Relative paths in it are taken from its folder.\n"
          "--wait follows the job to its end: exit code 0 completed, 1 failed, 7 cancelled.", false },
        { "wait", "JOB", 1, 1, FORMATS_USUAL, wait_opts, wait_run, "follow a job to its end",
          "Exit code 0 completed, 1 failed, 7 cancelled, 6 when --timeout passed first.", false },
        { "list", "", 0, 0, FORMATS_USUAL, list_opts, job_list_run, "list jobs that wait or run", NULL, false },
        { "get", "JOB", 1, 1, FORMATS_USUAL, NULL, job_get_run, "show one job", NULL, false },
        { "describe", "JOB", 1, 1, FORMATS_PLAIN, NULL, job_describe_run, "show all about one job: ranks, checkpoints, events", NULL, false },
        { "cancel", "JOB...", 1, -1, FORMATS_USUAL, cancel_opts, job_cancel_run, "end jobs, after a last checkpoint", NULL, false },
        { "save", "JOB", 1, 1, FORMATS_PLAIN, NULL, job_save_run, "make a checkpoint now; returns when it is committed", NULL, false },
        { "scale", "JOB", 1, 1, FORMATS_USUAL, scale_opts, job_scale_run, "give a job another number of replicas (parallel.dp)",
          "It saves at the end of a step and goes on from there, with the same global batch. With too few free devices it takes those there are, and the rest later.", false },
        { "logs", "[JOB]", 0, 1, FORMATS_TEXT, logs_opts, logs_run, "print what ranks (or with --node a worker) wrote",
          "Lines of several ranks begin with the rank's number. -f goes on until the job is over.", false },
        { "events", "[JOB]", 0, 1, FORMATS_USUAL, events_opts, events_run, "list what happened: decisions, failures, recoveries, commits",
          "With -f and -o json each event is one JSON object on a line of its own.", false },
        { "why", "JOB", 1, 1, FORMATS_PLAIN, NULL, why_run, "tell what went wrong: each incident, what was decided and done, what it cost",
          "An incident begins with the first word of trouble and ends with the first new step, or with the job.", false },
        { "diagnose", "JOB", 1, 1, FORMATS_PLAIN, diagnose_opts, diagnose_run, "tell where every rank of a job is, and who holds the others up",
          "The flight recorders of all ranks side by side: who is inside which collective and who has not entered it; then each rank's process and the stacks\n"
          "of its threads, the culprit first. Taking stacks makes each rank stand still for some milliseconds; --quick leaves them out.", false },
        { "goodput", "JOB", 1, 1, FORMATS_PLAIN, NULL, goodput_run, "tell where a job's time went",
          "Productive (new steps at the median time), lost (steps done again), recovering, checkpointing, skipped, waiting, other.", false },
        { "metrics", "JOB", 1, 1, FORMATS_METRICS, metrics_opts, metrics_run, "print one row a step",
          "Columns: step, epoch, loss in decimal and as the 8 hexadecimal digits of its 32 bits, gradient norm, learning rate, loss scale,\n"
          "skipped, tokens/s, ms, memory, state digest. A step that was done again after a failure is printed once, from its highest epoch.", false },
        { "node list", "", 0, 0, FORMATS_USUAL, NULL, node_list_run, "list nodes and their devices", NULL, false },
        { "node get", "NODE", 1, 1, FORMATS_USUAL, NULL, node_get_run, "show one node", NULL, false },
        { "node describe", "NODE", 1, 1, FORMATS_PLAIN, NULL, node_describe_run, "show all about one node", NULL, false },
        { "node diff", "[NODE...]", 0, -1, FORMATS_PLAIN, NULL, node_diff_run, "tell in what nodes are not made alike: versions, firmware, models, settings",
          "Of the nodes given, or of all; what is a node's own, as serial numbers are, is left out. Exit code 0: made alike; 1: not.", false },
        { "node test", "NODE...", 1, -1, FORMATS_PLAIN, node_test_opts, node_test_run, "test a node's arithmetic, memory, copies, disk and clock; or the network between nodes",
          "Its ranks compute beside the test, so it should have none: drain it first. A part that fails keeps the node from ranks until `node uncordon`.\n"
          "--pairwise: two or more nodes measure what is between them, in rounds of pairs; what is slow with most others is a bad node, else a bad link.\n"
          "--all-reduce: sums as ranks make them, every bit compared; who makes wrong ones with most others gets no ranks until `node uncordon`.\n"
          "Exit code 0: passed; 1: not.", false },
        { "node cordon", "NODE", 1, 1, FORMATS_USUAL, node_cordon_opts, node_cordon_run, "give a node no new ranks", NULL, false },
        { "node drain", "NODE", 1, 1, FORMATS_USUAL, node_drain_opts, node_drain_run, "give a node no new ranks, and move those it has to other nodes",
          "Each of its jobs saves at the end of a step and goes on from there on free devices of other nodes, or with fewer replicas if recovery.min_dp\n"
          "allows it; else it stays until devices are free. --in and --for make a maintenance window.", false },
        { "node uncordon", "NODE", 1, 1, FORMATS_USUAL, NULL, node_uncordon_run, "give a node ranks again", NULL, false },
        { "rollout start", "", 0, 0, FORMATS_USUAL, rollout_start_opts, rollout_start_run, "bring a change to a share of the nodes first, and to all if they stay as well as the others",
          "Node by node: emptied, changed (by its worker's --rollout-hook, or by hand), tested, watched. The change is known by a fact of the node (fp8ctl node\n"
          "describe NODE lists them): --fact gpu.driver=550.54. It stops when a node cannot be changed, or changed nodes fail more often than the others.", false },
        { "rollout list", "", 0, 0, FORMATS_USUAL, NULL, rollout_list_run, "list rollouts, the newest last", NULL, false },
        { "rollout status", "[ROLLOUT]", 0, 1, FORMATS_USUAL, NULL, rollout_status_run, "show a rollout and its nodes (the newest one)", NULL, false },
        { "rollout stop", "[ROLLOUT]", 0, 1, FORMATS_USUAL, rollout_set_opts, rollout_stop_run, "change no other node; what is being changed goes on until it is tested", NULL, false },
        { "rollout resume", "[ROLLOUT]", 0, 1, FORMATS_USUAL, rollout_set_opts, rollout_resume_run, "go on after a stop",
          "Failures count anew; nodes that failed begin again as soon as they are well; those that are not are passed over.", false },
        { "rollout abort", "[ROLLOUT]", 0, 1, FORMATS_USUAL, rollout_set_opts, rollout_abort_run, "end a rollout; nodes that are being changed stay drained", NULL, false },
        { "ckpt ls", "JOB|DIR", 1, 1, FORMATS_USUAL, NULL, checkpoint_list_run, "list a job's committed checkpoints, or those in a folder", NULL, false },
        { "ckpt show", "CKPT", 1, 1, FORMATS_USUAL, NULL, checkpoint_show_run, "show a checkpoint's manifest and tensors", CKPT_HELP, false },
        { "ckpt verify", "CKPT", 1, 1, FORMATS_PLAIN, NULL, checkpoint_verify_run, "read all of a checkpoint and name what is bad in it",
          CKPT_HELP "\nExit code 0: whole; 1: not.", false },
        { "ckpt diff", "CKPT CKPT", 2, 2, FORMATS_PLAIN, checkpoint_diff_opts, checkpoint_diff_run, "compare two checkpoints, of any layouts, tensor by tensor",
          CKPT_HELP "\nExit code 0: every tensor has the same bits; 1: not.", false },
        { "ckpt rm", "CKPT...", 1, -1, FORMATS_PLAIN, checkpoint_rm_opts, checkpoint_rm_run, "remove checkpoints",
          "CKPT is a checkpoint's folder or JOB:STEP. The newest of a job that has not ended, one that is being loaded, and one that a job starts from stay,\n"
          "unless --force is given. Nothing is asked.", false },
        { "ckpt export", "CKPT DIR", 2, 2, FORMATS_PLAIN, checkpoint_export_opts, checkpoint_export_run, "write its weights as a Hugging Face folder",
          CKPT_HELP "\nDIR gets config.json, generation_config.json and safetensors files that transformers loads as LlamaForCausalLM. It appears when all is written.", false },
        { "ckpt import", "DIR CKPT", 2, 2, FORMATS_PLAIN, NULL, checkpoint_import_run, "make a checkpoint of a Hugging Face folder's weights",
          "DIR holds config.json and safetensors (one file or an index; BF16, F16 or F32) of a Llama model. CKPT, a new folder, is what\n"
          "`submit --from CKPT` starts from, with a job file whose model is that config.json (model.config).", false },
        { "data prepare", "FILES...", 1, -1, FORMATS_PLAIN, data_prepare_opts, data_prepare_run, "make PREFIX.bin and PREFIX.idx from text files",
          "Byte tokenizer (ids 0 to 255, 0 ends a document); documents are blocks between blank lines, or lines with --lines.", false },
        { "cluster up", "", 0, 0, FORMATS_PLAIN, cluster_up_opts, cluster_up_run, "start a whole cluster on this machine",
          "All of its state is in one folder (--dir, FP8CTL_HOME, or ~/.fp8ctl), so several clusters live side by side. What already runs is left\n"
          "alone. Returns when all nodes are ready.", false },
        { "cluster down", "", 0, 0, FORMATS_TEXT, cluster_down_opts, cluster_down_run, "stop that cluster, jobs saved first",
          "Jobs that run get a last checkpoint and go on at the next `cluster up`.", false },
        { "cluster status", "", 0, 0, FORMATS_USUAL, NULL, cluster_status_run, "show its daemons and the controller",
          "Exit code 0 when the controller answers, 5 when it does not.", false },
        { "cluster keep", "", 0, 0, FORMATS_TEXT, cluster_keep_opts, cluster_keep_run, "the process that `cluster up` leaves behind", NULL, true },
        { "inject", "JOB", 1, 1, FORMATS_TEXT, inject_opts, inject_run, "a drill: send a signal to one rank of a job on this machine", NULL, false },
        { "admin certs", "", 0, 0, FORMATS_TEXT, admin_certs_opts, admin_certs_run, "make a CA and certificates for mTLS",
          "Makes the CA when the folder has none, then a certificate for each name that has none yet. The controller's carries the --ip addresses.", false },
        { "admin schema", "", 0, 0, FORMATS_TEXT, NULL, admin_schema_run, "print the job file's keys (Markdown)", NULL, false },
        { "completion", "SHELL", 1, 1, FORMATS_TEXT, NULL, completion_run, "print a completion script for bash or zsh",
          "bash: source <(fp8ctl completion bash)\nzsh:  fp8ctl completion zsh >\"${fpath[1]}/_fp8ctl\"", false },
        { "version", "", 0, 0, FORMATS_PLAIN, NULL, version_run, "print the version", NULL, false },
        { "help", "[COMMAND]", 0, 2, FORMATS_TEXT, NULL, help_run, "explain a command", NULL, false },
};
const size_t n_commands = ARRAY_SIZE(commands);
