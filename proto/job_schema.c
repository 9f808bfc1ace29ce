/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/job_schema.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/text.h"

#define AT(field) offsetof(struct job_spec, field)
#define GROUP_AT(field) offsetof(struct job_param_group, field)
#define INTS(lo, hi) .type = KEY_I64, .min = (lo), .max = (hi)
#define FLOATS(lo, hi) .type = KEY_F64, .fmin = (lo), .fmax = (hi)
#define CHOOSE(list) .type = KEY_CHOICE, .choices = (list)

static const char *const recipes[] = { "block", "delayed", "tensor", "bf16", "fp32", NULL };
static const char *const dtypes[] = { "fp32", "bf16", NULL };
static const char *const pow2s[] = { "cached", "all", "none", NULL };
static const char *const amax_algos[] = { "max", "most_recent", NULL };
static const char *const loss_scales[] = { "off", "dynamic", "gentle", NULL };
static const char *const overflows[] = { "skip", "stop", NULL };
static const char *const schedules[] = { "cosine", "wsd", "constant", NULL };
static const char *const formats[] = { "auto", "text", "indexed", NULL };
static const char *const kill_points[] = { "forward", "agreed", "updated", "gathered", "snapshot", "prepared", NULL };

const struct job_key job_keys[] = {
        { "version", KEY_INT, AT(version), .def = "1", .min = 1, .max = 1, .doc = "Version of this format." },
        { "name", KEY_STRING, AT(name), .required = true,
          .doc = "Name of the job, for people: 1 to 63 letters, digits, `.`, `_` or `-`, a letter or digit first." },
        { "priority", INTS(-1000, 1000), .offset = AT(priority), .def = "0",
          .doc = "Waiting jobs of higher priority are placed first, and when devices are short running jobs of lower priority save and wait for them." },

        { "model.preset", KEY_STRING, AT(preset),
          .doc = "A named model (listed below). Other `model` keys change single values of it. One of `model.preset`, `model.config` or the sizes themselves must be given." },
        { "model.config", KEY_PATH, AT(config_path),
          .doc = "A Hugging Face `config.json` of a Llama-style model (LlamaForCausalLM, MistralForCausalLM). Read by `fp8ctl submit` and stored with the job. "
                 "Other `model` keys change single values of it." },
        { "model.vocab_size", KEY_I64, AT(model.vocab_size), .derived = "the preset's or config's", .min = 2, .max = 1 << 24,
          .doc = "Size of the vocabulary; a multiple of `parallel.tp`, so pad it. Token ids of the data must be below it." },
        { "model.hidden_size", KEY_I64, AT(model.hidden_size), .derived = "the preset's or config's", .min = 8, .max = 131072, .doc = "Width of the residual stream." },
        { "model.intermediate_size", KEY_I64, AT(model.intermediate_size), .derived = "the preset's or config's", .min = 8, .max = 1048576,
          .doc = "Width of the SwiGLU layer; a multiple of `parallel.tp`." },
        { "model.num_hidden_layers", KEY_I64, AT(model.num_hidden_layers), .derived = "the preset's or config's", .min = 1, .max = JOB_MAX_LAYERS,
          .doc = "Transformer layers; a multiple of `parallel.pp`." },
        { "model.num_attention_heads", KEY_I64, AT(model.num_attention_heads), .derived = "the preset's or config's", .min = 1, .max = 4096,
          .doc = "Attention heads; a multiple of `parallel.tp`." },
        { "model.num_key_value_heads", KEY_I64, AT(model.num_key_value_heads), .derived = "`model.num_attention_heads`", .min = 1, .max = 4096,
          .doc = "Heads of keys and values (grouped-query attention); a divisor of `model.num_attention_heads` and a multiple of `parallel.tp`." },
        { "model.head_dim", KEY_I64, AT(model.head_dim), .derived = "`model.hidden_size / model.num_attention_heads`", .min = 2, .max = MODEL_HEAD_DIM_MAX,
          .doc = "Width of a head, even." },
        { "model.max_position_embeddings", KEY_I64, AT(model.max_position_embeddings), .derived = "2048", .min = 8, .max = 16777216,
          .doc = "Longest sequence the model is made for." },
        { "model.rms_norm_eps", KEY_F64, AT(model.rms_norm_eps), .derived = "1e-5", .fmin = 0, .above = true, .fmax = 1, .doc = "Epsilon of RMSNorm." },
        { "model.rope_theta", KEY_F64, AT(model.rope_theta), .derived = "10000", .fmin = 1, .fmax = 1e12, .doc = "Base of the rotary embedding." },
        { "model.initializer_range", KEY_F64, AT(model.initializer_range), .derived = "0.02", .fmin = 0, .above = true, .fmax = 1,
          .doc = "Standard deviation of the initial weights." },
        { "model.tie_word_embeddings", KEY_BOOL, AT(model.tie_word_embeddings), .derived = "false", .doc = "Whether the output head is the embedding." },

        { "data.path", KEY_PATH, AT(data.path), .required = true,
          .doc = "A UTF-8 text file (byte tokenizer, vocabulary 256, documents are blocks between blank lines), or the prefix of a Megatron-LM `.bin`/`.idx` pair "
                 "(`fp8ctl data prepare` makes them)." },
        { "data.format", CHOOSE(formats), .offset = AT(data.format), .def = "auto", .doc = "`auto`: indexed when there is a `.idx` file beside it." },
        { "data.seq_len", INTS(8, 1048576), .offset = AT(data.seq_len), .required = true,
          .doc = "Tokens of a sequence; at most `model.max_position_embeddings`; a multiple of `parallel.tp` with sequence parallelism." },
        { "data.validation_split", FLOATS(0, 0.5), .offset = AT(data.validation_split), .def = "0.05",
          .doc = "Share of the documents, from the end, that is kept for the validation loss. 0: none." },
        { "data.seed", INTS(0, INT64_MAX), .offset = AT(data.seed), .def = "1", .doc = "Seed of the order in which documents are read." },
        { "data.pack", KEY_BOOL, AT(data.pack), .def = "true",
          .doc = "Whether documents share sequences (attention does not cross from one to the next). Without it each sequence holds tokens of one document." },

        { "parallel.tp", KEY_INT, AT(parallel.tp), .def = "1", .min = 1, .max = 64, .doc = "Tensor parallelism: ranks that share each layer; all on one node." },
        { "parallel.pp", KEY_INT, AT(parallel.pp), .def = "1", .min = 1, .max = JOB_MAX_LAYERS, .doc = "Pipeline parallelism: stages of consecutive layers." },
        { "parallel.dp", KEY_INT, AT(parallel.dp), .def = "1", .min = 1, .max = JOB_MAX_RANKS,
          .doc = "Data parallelism: replicas; the optimizer state is sharded over them. tp * pp * dp ranks in all, at most 4096." },
        { "parallel.sequence_parallel", KEY_BOOL, AT(parallel.sequence_parallel), .derived = "true with `parallel.tp` > 1",
          .doc = "Splits norms and the residual stream over the tp ranks along the sequence. Without effect when `parallel.tp` is 1." },
        { "parallel.equal_nodes", KEY_BOOL, AT(parallel.equal_nodes), .def = "false",
          .doc = "All ranks on nodes with one fingerprint (`docs/health.md`): the same models, firmware, kernel, drivers and settings. The job waits, or goes on with fewer replicas, rather than mix them." },

        { "train.steps", INTS(1, 1000000000), .offset = AT(train.steps), .required = true, .doc = "Optimizer steps in all." },
        { "train.micro_batch", INTS(1, 65536), .offset = AT(train.micro_batch), .def = "1", .doc = "Sequences in one pass of one replica." },
        { "train.global_batch", INTS(1, 1 << 24), .offset = AT(train.global_batch), .derived = "`train.micro_batch * parallel.dp`",
          .doc = "Sequences of a step over all replicas; a multiple of `train.micro_batch * parallel.dp` (the factor is the number of gradient accumulation passes)." },
        { "train.seed", INTS(0, INT64_MAX), .offset = AT(train.seed), .def = "1", .doc = "Seed of the initial weights and of stochastic rounding." },
        { "train.eval_every", INTS(0, 1000000000), .offset = AT(train.eval_every), .def = "100",
          .doc = "Steps between validation losses; 0: never. With a `data.validation_split` the last step is always evaluated unless this is 0." },
        { "train.eval_batches", INTS(1, 1000000), .offset = AT(train.eval_batches), .def = "8", .doc = "Micro-batches of each replica in one validation loss." },
        { "train.recompute", KEY_LAYERS, 0, .def = "none",
          .doc = "Layers whose activations are computed again in the backward pass instead of being kept: `none`, `all`, or a list of layer numbers from 0." },

        { "precision.recipe", CHOOSE(recipes), .offset = AT(precision.recipe), .def = "block",
          .doc = "`block`: FP8 with 1x128 and 128x128 scales (DeepSeek-V3). `delayed`: FP8 with per-tensor scales from an amax history. `tensor`: FP8 with per-tensor "
                 "current scales (of what a rank holds: with `parallel.tp` each shard of a weight has its own, as in TransformerEngine). `bf16`: no FP8. `fp32`: everything in FP32 (CPU only)." },
        { "precision.pow2_scales", CHOOSE(pow2s), .offset = AT(precision.pow2), .def = "cached",
          .doc = "Where scales are rounded to powers of two: where a tensor is cached and quantised again later, everywhere, or nowhere." },
        { "precision.bf16_first_layers", INTS(0, JOB_MAX_LAYERS), .offset = AT(precision.bf16_first_layers), .def = "0",
          .doc = "So many layers at the start keep BF16 products." },
        { "precision.bf16_last_layers", INTS(0, JOB_MAX_LAYERS), .offset = AT(precision.bf16_last_layers), .def = "0",
          .doc = "So many layers at the end keep BF16 products." },
        { "precision.moments", CHOOSE(dtypes), .offset = AT(precision.moments), .def = "fp32",
          .doc = "Type of Adam's moments. `bf16` needs `optimizer.beta2` of at most 0.95: with a larger one its updates vanish in rounding." },
        { "precision.reduce", CHOOSE(dtypes), .offset = AT(precision.reduce), .def = "fp32", .doc = "Type in which partial sums of tensor-parallel products are added." },
        { "precision.any_order", KEY_BOOL, AT(precision.any_order), .def = "false",
          .doc = "GPUs: attention's backward may add in whatever order is fastest (1 to 3% of a step). The same job twice then gives other bits, also after a recovery; the fingerprint says so." },
        { "precision.amax_history", INTS(1, 65536), .offset = AT(precision.amax_history), .def = "1024", .doc = "`delayed`: steps of amax history." },
        { "precision.amax_algo", CHOOSE(amax_algos), .offset = AT(precision.amax_algo), .def = "max", .doc = "`delayed`: which amax of the history makes the scale." },
        { "precision.margin", INTS(0, 16), .offset = AT(precision.margin), .def = "0", .doc = "`delayed`: powers of two of headroom in the scale." },
        { "precision.loss_scale", CHOOSE(loss_scales), .offset = AT(precision.loss_scale), .def = "off",
          .doc = "Loss scaling. `dynamic`: halved on overflow, doubled after 2000 clean steps. `gentle`: halved on overflow, times 1.01 every 100 clean steps, at most 512." },
        { "precision.loss_scale_init", FLOATS(0, 1099511627776.0), .offset = AT(precision.loss_scale_init), .def = "0",
          .doc = "First loss scale; 0: the scaler's own (`dynamic` 65536, `gentle` 128)." },
        { "precision.max_consecutive_skips", INTS(1, 1000000), .offset = AT(precision.max_consecutive_skips), .def = "8",
          .doc = "Skipped (non-finite) steps in a row after which `precision.on_overflow` acts." },
        { "precision.on_overflow", CHOOSE(overflows), .offset = AT(precision.on_overflow), .def = "skip",
          .doc = "`skip`: a non-finite step is skipped; after `precision.max_consecutive_skips` in a row the job goes back to the last commit and passes over those batches, and "
                 "stops if it happens again. `stop`: it stops at once then." },

        { "optimizer.lr", FLOATS(0, 10), .above = true, .offset = AT(optimizer.lr), .def = "3e-4", .doc = "Highest learning rate (AdamW)." },
        { "optimizer.min_lr", FLOATS(0, 10), .offset = AT(optimizer.min_lr), .derived = "a tenth of `optimizer.lr`", .doc = "Learning rate at the end of the schedule; at most `optimizer.lr`." },
        { "optimizer.beta1", FLOATS(0, 0.9999), .offset = AT(optimizer.beta1), .def = "0.9", .doc = "Adam's decay of the first moment." },
        { "optimizer.beta2", FLOATS(0, 0.999999), .offset = AT(optimizer.beta2), .def = "0.95", .doc = "Adam's decay of the second moment." },
        { "optimizer.eps", FLOATS(0, 1), .above = true, .offset = AT(optimizer.eps), .def = "1e-8", .doc = "Adam's epsilon." },
        { "optimizer.weight_decay", FLOATS(0, 10), .offset = AT(optimizer.weight_decay), .def = "0.1",
          .doc = "Decoupled weight decay; norms have none unless a group says so." },
        { "optimizer.clip", FLOATS(0, 1e6), .offset = AT(optimizer.clip), .def = "1.0", .doc = "Global gradient norm above which gradients are scaled down; 0: off." },
        { "optimizer.schedule", CHOOSE(schedules), .offset = AT(optimizer.schedule), .def = "cosine",
          .doc = "After the warm-up: `cosine` down to `optimizer.min_lr`, `wsd` (stable, then a linear decay over the last `optimizer.decay_steps`), or `constant`." },
        { "optimizer.warmup_steps", INTS(0, 1000000000), .offset = AT(optimizer.warmup_steps), .derived = "a twentieth of `train.steps`, at most 2000",
          .doc = "Steps of linear warm-up; at most `train.steps`." },
        { "optimizer.decay_steps", INTS(0, 1000000000), .offset = AT(optimizer.decay_steps), .derived = "a fifth of `train.steps`, 0 unless `wsd`",
          .doc = "`wsd`: steps of the decay at the end; warm-up and decay together at most `train.steps`." },
        { "optimizer.groups", KEY_GROUPS, 0, .doc = "Settings for some parameters: a list of at most 16 maps with the keys below; the first whose `match` fits a tensor's name wins." },

        { "checkpoint.dir", KEY_PATH, AT(checkpoint.dir), .required = true, .doc = "Folder of the job's checkpoints, the same on all nodes." },
        { "checkpoint.every_steps", INTS(0, 1000000000), .offset = AT(checkpoint.every_steps), .def = "100", .doc = "Steps between checkpoints; 0: none but the last." },
        { "checkpoint.keep_last", INTS(1, 1000000), .offset = AT(checkpoint.keep_last), .def = "2", .doc = "How many committed checkpoints are kept." },
        { "checkpoint.keep_every", INTS(0, 1000000000), .offset = AT(checkpoint.keep_every), .def = "0",
          .doc = "Committed checkpoints of steps that are multiples of this are kept for good, besides the last ones; 0: none." },
        { "checkpoint.bandwidth", INTS(0, INT64_MAX), .offset = AT(checkpoint.bandwidth), .def = "0",
          .doc = "Bytes per second that each rank writes at most; 0: no limit." },
        { "checkpoint.stall_timeout_ms", INTS(100, 86400000), .offset = AT(checkpoint.stall_timeout_ms), .def = "60000",
          .doc = "A write without progress for so long (a manifest: at least 5 s) is told as stalled storage; training goes on, and its end does not wait for it any longer." },
        { "checkpoint.replica_every", INTS(1, 1000000), .offset = AT(checkpoint.replica_every), .def = "1",
          .doc = "Steps between snapshots into replica memory, from which a job resumes after a lost rank; each is also sent to another node's memory, for the loss of a whole node, unless an earlier one is still on its way." },
        { "checkpoint.local_every", INTS(0, 1000000000), .offset = AT(checkpoint.local_every), .def = "0",
          .doc = "Steps between copies of each rank's snapshot on its node's own disk (`fp8-worker --local-dir`), from which a job resumes when replica memory is lost, a rack without power for example; written in the "
                 "background, and not while a checkpoint is; 0: none." },
        { "checkpoint.local_keep", INTS(1, 16), .offset = AT(checkpoint.local_keep), .def = "2",
          .doc = "How many of them that all ranks have are kept; there is room on disk for one more while it is written." },
        { "checkpoint.at_end", KEY_BOOL, AT(checkpoint.at_end), .def = "true", .doc = "Whether the last step is saved." },

        { "recovery.max_restarts", INTS(-1, 1000000), .offset = AT(recovery.max_restarts), .def = "-1", .doc = "Recoveries allowed in all; -1: any number." },
        { "recovery.same_cause_limit", INTS(1, 1000), .offset = AT(recovery.same_cause_limit), .def = "3",
          .doc = "So many failures of the same cause without a step gained stop the job." },
        { "recovery.collective_timeout_ms", INTS(100, 86400000), .offset = AT(recovery.collective_timeout_ms), .def = "30000",
          .doc = "How long a rank waits in a collective before it reports a fault." },
        { "recovery.start_timeout_ms", INTS(1000, 86400000), .offset = AT(recovery.start_timeout_ms), .def = "60000", .doc = "How long ranks may take to start and load." },
        { "recovery.grace_ms", INTS(0, 86400000), .offset = AT(recovery.grace_ms), .def = "30000", .doc = "Time for the last save when the job is cancelled or its node leaves." },
        { "recovery.min_dp", INTS(0, JOB_MAX_RANKS), .offset = AT(recovery.min_dp), .def = "0",
          .doc = "When devices are lost and no others are free the job goes on with fewer replicas, at least so many, and the same global batch; 0: it waits for devices." },
        { "recovery.grow_delay_ms", INTS(0, 86400000), .offset = AT(recovery.grow_delay_ms), .def = "10000",
          .doc = "How long it runs with fewer replicas before it takes free devices again, at the end of a step." },
        { "recovery.park_timeout_ms", INTS(100, 86400000), .offset = AT(recovery.park_timeout_ms), .def = "5000",
          .doc = "How long a surviving rank may take to leave an epoch that is over; then it is killed and replaced." },
        { "recovery.peer_grace_ms", INTS(0, 86400000), .offset = AT(recovery.peer_grace_ms), .def = "2000",
          .doc = "When a rank has lost its connection to another: how long that one's own worker has to say what happened, before all begin a new round." },
        { "recovery.inventory_timeout_ms", INTS(100, 86400000), .offset = AT(recovery.inventory_timeout_ms), .def = "5000",
          .doc = "How long a node may take to list what it has in replica memory; then the others' lists decide." },
        { "recovery.rescue_ms", INTS(0, 86400000), .offset = AT(recovery.rescue_ms), .def = "60000",
          .doc = "How long it may take to save what only replica memory has, when the job must leave its devices while it recovers, or goes on with fewer replicas; then, and with 0, the last checkpoint is what "
                 "is left." },
        { "recovery.in_place", INTS(0, 1000), .offset = AT(recovery.in_place), .def = "1",
          .doc = "So often a rank that died is started on its device without a step gained; then it goes elsewhere if devices are free." },
        { "recovery.standby", INTS(0, 64), .offset = AT(recovery.standby), .def = "0",
          .doc = "Processes kept ready to become ranks: so many warm ones (device opened, buffers made) on free devices, which other jobs get when they need them, and one a device, at most so "
                 "many, with the program loaded on each node where the job runs." },
        { "recovery.checksum_every", INTS(0, 1000000000), .offset = AT(recovery.checksum_every), .def = "100",
          .doc = "Every so many steps replicas compare checksums of their parameters, before the step counts: silent corruption; 0: never." },
        { "recovery.drills", KEY_BOOL, AT(recovery.drills), .def = "false", .doc = "Whether `fp8ctl inject` may send its ranks signals." },

        { "nccl.ib_timeout", INTS(1, 31), .offset = AT(nccl.ib_timeout), .def = "22",
          .doc = "GPUs: `NCCL_IB_TIMEOUT`; a try over InfiniBand takes 4.096 us times two to the power of this (22: 17 s). With the retries it must last longer than a flap to be ridden out." },
        { "nccl.ib_retry_cnt", INTS(0, 7), .offset = AT(nccl.ib_retry_cnt), .def = "7", .doc = "GPUs: `NCCL_IB_RETRY_CNT`, tries over InfiniBand." },
        { "nccl.ib_hca", KEY_STRING, AT(nccl.ib_hca), .doc = "GPUs: `NCCL_IB_HCA`, the network ports of all ranks; empty: those nearest to each rank's GPU (docs/health.md), or what the worker's environment says." },
        { "nccl.channels", INTS(0, 64), .offset = AT(nccl.channels), .def = "32",
          .doc = "GPUs: channels (thread blocks) to each peer (`NCCL_NCHANNELS_PER_PEER`); 0: NCCL's choice. No bit depends on it." },
        { "nccl.nvls", KEY_BOOL, AT(nccl.nvls), .def = "false", .doc = "GPUs: whether NCCL may use multicast over NVLink (`NCCL_NVLS_ENABLE`)." },
        { "nccl.peer_copies", KEY_BOOL, AT(nccl.peer_copies), .def = "true",
          .doc = "GPUs: whether ranks of one host move data by copies into each other's memory, where the GPUs can, instead of by NCCL. No bit depends on it." },
        { "nccl.scratch", INTS(1048576, INT64_C(1) << 34), .offset = AT(nccl.scratch), .def = "268435456",
          .doc = "GPUs: bytes of device memory for what a rank receives before it is summed." },

        { "metrics.digests", KEY_BOOL, AT(metrics.digests), .def = "false", .doc = "Whether each step's row holds a digest of master weights and moments." },
        { "metrics.fp8_every", INTS(0, 1000000000), .offset = AT(metrics.fp8_every), .def = "0",
          .doc = "Every so many steps each FP8 tensor tells what quantising did to it (`fp8ctl metrics JOB --fp8`); no bit depends on it, the step takes longer. 0: never." },
        { "metrics.max_bytes", INTS(65536, INT64_C(1) << 40), .offset = AT(metrics.max_bytes), .def = "16777216", .doc = "Bound of a rank's log and of the metrics file, each." },
        { "metrics.loss_spike", INTS(0, 1000000), .offset = AT(metrics.loss_spike), .def = "10",
          .doc = "A loss so many robust standard deviations (1.4826 times the median absolute deviation) above the median of the last 64 is told by the event `loss_spike`; 0: never." },

        { "metrics.straggler_percent", INTS(0, 100000), .offset = AT(metrics.straggler_percent), .def = "30",
          .doc = "A rank whose own part of a step takes so much longer than the median of the others of its stage is told by the event `straggler`; 0: never." },
        { "metrics.straggler_steps", INTS(1, 1000000), .offset = AT(metrics.straggler_steps), .def = "20",
          .doc = "Steps of a window in which ranks are compared so; three windows in a row make a straggler, and three end it." },

        { "test.overflow_step", INTS(-1, 1000000000), .offset = AT(test.overflow_step), .def = "-1",
          .doc = "Puts an infinity into the gradient of `test.overflow_tensor` in this step; -1: off." },
        { "test.overflow_steps", INTS(1, 1000000000), .offset = AT(test.overflow_steps), .def = "1", .doc = "... for so many steps." },
        { "test.overflow_rank", INTS(0, JOB_MAX_RANKS - 1), .offset = AT(test.overflow_rank), .def = "0", .doc = "... on this rank." },
        { "test.overflow_tensor", KEY_STRING, AT(test.overflow_tensor), .doc = "... global name of the tensor." },
        { "test.kill_step", INTS(-1, 1000000000), .offset = AT(test.kill_step), .def = "-1", .doc = "A rank kills itself in this step, once; -1: off." },
        { "test.kill_rank", INTS(-1, JOB_MAX_RANKS - 1), .offset = AT(test.kill_rank), .def = "-1", .doc = "... which one." },
        { "test.kill_point", KEY_STRING, AT(test.kill_point), .choices = kill_points, .doc = "... and where in the step." },
        { "test.flip_step", INTS(-1, 1000000000), .offset = AT(test.flip_step), .def = "-1", .doc = "A bit of a parameter is flipped in this step, once; -1: off." },
        { "test.flip_rank", INTS(0, JOB_MAX_RANKS - 1), .offset = AT(test.flip_rank), .def = "0", .doc = "... on this rank." },
        { "test.slow_rank", INTS(-1, JOB_MAX_RANKS - 1), .offset = AT(test.slow_rank), .def = "-1", .doc = "The rank that `test.slow_ms` is for; -1: all." },
        { "test.slow_ms", INTS(0, 86400000), .offset = AT(test.slow_ms), .def = "0", .doc = "Every step sleeps so long." },
};
const size_t job_keys_n = ARRAY_SIZE(job_keys);

const struct job_key job_group_keys[] = {
        { "match", KEY_STRING, GROUP_AT(match), .required = true, .doc = "fnmatch(3) pattern on global tensor names, `*.mlp.*` for example." },
        { "lr_scale", FLOATS(0, 1e6), .offset = GROUP_AT(lr_scale), .def = "1", .doc = "Times the schedule's learning rate; 0 freezes." },
        { "weight_decay", FLOATS(0, 10), .offset = GROUP_AT(weight_decay), .derived = "`optimizer.weight_decay`", .doc = "Weight decay of these parameters." },
};
const size_t job_group_keys_n = ARRAY_SIZE(job_group_keys);

const char *job_recipe_name(enum job_recipe r) {
        return (size_t)r < ARRAY_SIZE(recipes) - 1 ? recipes[r] : "unknown";
}

int job_refuse(const struct job_source *src, int line, const char *path, const char *found, struct error *e, const char *allowed, ...) {
        char text[512];
        va_list ap;

        va_start(ap, allowed);
        vsnprintf(text, sizeof(text), allowed, ap);
        va_end(ap);
        return error_set(e, -EINVAL, "%s:%d: key '%s': found %s, allowed: %s", src->file, line, path, found, text);
}

const struct job_key *job_key_find(const char *path) {
        for (size_t i = 0; i < job_keys_n; i++)
                if (strcmp(job_keys[i].path, path) == 0)
                        return &job_keys[i];
        return NULL;
}

static void print_choices(const char *const *choices, char *buf, size_t size) {
        size_t len = 0;

        for (; *choices && len < size; choices++)
                len += (size_t)snprintf(buf + len, size - len, "%s%s", len ? ", " : "", *choices);
}

void job_key_allowed(const struct job_key *k, char *buf, size_t size) {
        char list[256];

        switch (k->type) {
        case KEY_INT:
        case KEY_I64:
                if (k->max == INT64_MAX)
                        snprintf(buf, size, "an integer of at least %" PRId64, k->min);
                else if (k->min == k->max)
                        snprintf(buf, size, "%" PRId64, k->min);
                else
                        snprintf(buf, size, "an integer from %" PRId64 " to %" PRId64, k->min, k->max);
                break;
        case KEY_F64:
                snprintf(buf, size, "a number %s %.10g %s %.10g", k->above ? "above" : "from", k->fmin, k->above ? "up to" : "to", k->fmax);
                break;
        case KEY_BOOL:
                snprintf(buf, size, "true or false");
                break;
        case KEY_STRING:
        case KEY_CHOICE:
                if (k->choices) {
                        print_choices(k->choices, list, sizeof(list));
                        snprintf(buf, size, "one of %s", list);
                } else
                        snprintf(buf, size, "text");
                break;
        case KEY_PATH:
                snprintf(buf, size, "a path");
                break;
        case KEY_LAYERS:
                snprintf(buf, size, "none, all, or a list of layer numbers");
                break;
        case KEY_GROUPS:
                snprintf(buf, size, "a list of at most %d maps", JOB_MAX_GROUPS);
                break;
        }
}

static int refuse_node(const struct job_key *k, const struct yaml_node *n, const struct job_source *src, const char *path, struct error *e) {
        char found[128], allowed[384];

        yaml_node_describe(n, found, sizeof(found));
        job_key_allowed(k, allowed, sizeof(allowed));
        if (n->kind == YAML_TREE_SCALAR && !n->plain && k->type != KEY_STRING && k->type != KEY_PATH)
                snprintf(found, sizeof(found), "a quoted text");
        return job_refuse(src, n->line, path, found, e, "%s", allowed);
}

static bool set_number(const struct job_key *k, const char *text, void *target) {
        int64_t i;
        double d;

        if (k->type == KEY_F64) {
                if (text_parse_double(text, &d) < 0 || d < k->fmin || d > k->fmax || (k->above && d <= k->fmin))
                        return false;
                *(double *)target = d == 0 ? 0 : d; /* no negative zero */
                return true;
        }
        if (text_parse_i64(text, &i) < 0 || i < k->min || i > k->max)
                return false;
        if (k->type == KEY_INT)
                *(int *)target = (int)i;
        else
                *(int64_t *)target = i;
        return true;
}

static bool set_word(const struct job_key *k, const char *text, void *target) {
        if (k->type == KEY_BOOL) {
                bool yes = strcmp(text, "true") == 0;

                if (!yes && strcmp(text, "false") != 0)
                        return false;
                *(bool *)target = yes;
                return true;
        }
        for (unsigned i = 0; k->choices[i]; i++)
                if (strcmp(k->choices[i], text) == 0) {
                        *(unsigned *)target = i; /* enums without negative values are unsigned int (gcc and clang on Linux) */
                        return true;
                }
        return false;
}

/* Replaces the string at target. */
static int put_string(char *value, void *target, struct error *e) {
        if (!value)
                return error_set(e, -ENOMEM, "no memory");
        free(*(char **)target);
        *(char **)target = value;
        return 0;
}

static int set_string(const struct job_key *k, const struct yaml_node *n, const struct job_source *src, const char *path, void *target, struct error *e) {
        bool ok = *n->text && strlen(n->text) < PATH_MAX;

        for (const unsigned char *s = (const unsigned char *)n->text; *s; s++)
                ok &= *s >= 0x20 && *s != 0x7f;
        if (ok && k->choices) {
                ok = false;
                for (const char *const *c = k->choices; *c; c++)
                        ok |= strcmp(*c, n->text) == 0;
        }
        return ok ? put_string(strdup(n->text), target, e) : refuse_node(k, n, src, path, e);
}

/* "/a/./b//../c" becomes "/a/c" in place: what is compared and removed later by name has one name. (A ".." behind a symbolic link is taken by its text.) */
static char *tidy_path(char *path) {
        char *to = path;

        for (const char *from = path; path && *from;) {
                size_t len;

                from += strspn(from, "/");
                len = strcspn(from, "/");
                if (len == 2 && from[0] == '.' && from[1] == '.') {
                        while (to > path && *--to != '/')
                                ;
                } else if (len && !(len == 1 && from[0] == '.')) {
                        *to++ = '/';
                        memmove(to, from, len);
                        to += len;
                }
                from += len;
        }
        if (path && to == path)
                *to++ = '/';
        if (path)
                *to = 0;
        return path;
}

static int set_path(const struct job_key *k, const struct yaml_node *n, const struct job_source *src, const char *path, void *target, struct error *e) {
        _cleanup_free_ char *cwd = NULL;
        const char *text = n->text;
        char *value = NULL;
        int r = set_string(k, n, src, path, &value, e);

        if (r < 0)
                return r;
        if (*text == '/')
                return put_string(tidy_path(value), target, e);
        free(value);
        if (!src->base_dir) {
                char found[128];

                yaml_node_describe(n, found, sizeof(found));
                return job_refuse(src, n->line, path, found, e, "an absolute path");
        }
        while (strncmp(text, "./", 2) == 0)
                text += 2;
        if (*src->base_dir == '/')
                return put_string(tidy_path(file_path("%s%s%s", src->base_dir, src->base_dir[1] ? "/" : "", text)), target, e);
        cwd = getcwd(NULL, 0);
        if (!cwd)
                return error_errno(e, errno, "cannot tell the current folder");
        if (strcmp(src->base_dir, ".") == 0)
                return put_string(tidy_path(file_path("%s/%s", cwd, text)), target, e);
        return put_string(tidy_path(file_path("%s/%s/%s", cwd, src->base_dir, text)), target, e);
}

static int compare_i64(const void *a, const void *b) {
        int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

        return (x > y) - (x < y);
}

static int set_layers(const struct job_key *k, const struct yaml_node *n, const struct job_source *src, const char *path, struct job_spec *s, struct error *e) {
        static const struct job_key number = { .path = "", .type = KEY_I64, .min = 0, .max = JOB_MAX_LAYERS - 1 };

        s->train.n_recompute_layers = 0;
        s->train.recompute_all = n->kind == YAML_TREE_SCALAR && strcmp(n->text, "all") == 0;
        if (n->kind == YAML_TREE_SCALAR)
                return s->train.recompute_all || strcmp(n->text, "none") == 0 ? 0 : refuse_node(k, n, src, path, e);
        if (n->kind == YAML_TREE_MAP || n->n > JOB_MAX_LAYERS)
                return refuse_node(k, n, src, path, e);
        for (size_t i = 0; i < n->n; i++) {
                int r = job_key_set(&number, n->items[i], src, path, &s->train.recompute_layers[i], e);

                if (r < 0)
                        return r;
        }
        s->train.n_recompute_layers = (int)n->n;
        qsort(s->train.recompute_layers, n->n, sizeof(int64_t), compare_i64);
        return 0;
}

static int refuse_group_key(const struct yaml_node *name, const struct job_source *src, const char *path, struct error *e) {
        char names[256] = "";
        size_t len = 0;

        for (size_t i = 0; i < job_group_keys_n; i++)
                len += (size_t)snprintf(names + len, sizeof(names) - len, "%s%s", len ? ", " : "", job_group_keys[i].path);
        return job_refuse(src, name->line, path, "an unknown key", e, "%s", names);
}

static int set_group(const struct yaml_node *n, const struct job_source *src, size_t at, struct job_param_group *g, struct error *e) {
        bool seen[8] = { false };
        char path[256];
        int r;

        for (size_t i = 0; i < n->n; i++) {
                const struct yaml_node *name = yaml_map_key(n, i);
                size_t k = 0;

                snprintf(path, sizeof(path), "optimizer.groups[%zu].%.128s", at, name->text);
                while (k < job_group_keys_n && strcmp(job_group_keys[k].path, name->text) != 0)
                        k++;
                if (k == job_group_keys_n)
                        return refuse_group_key(name, src, path, e);
                if (seen[k])
                        return job_refuse(src, name->line, path, "it twice", e, "once");
                seen[k] = true;
                r = job_key_set(&job_group_keys[k], yaml_map_value(n, i), src, path, g, e);
                if (r < 0)
                        return r;
        }
        if (!g->match) {
                snprintf(path, sizeof(path), "optimizer.groups[%zu].match", at);
                return job_refuse(src, n->line, path, "nothing", e, "a pattern of tensor names");
        }
        return 0;
}

static int set_groups(const struct job_key *k, const struct yaml_node *n, const struct job_source *src, const char *path, struct job_spec *s, struct error *e) {
        if (n->kind != YAML_TREE_LIST || n->n > JOB_MAX_GROUPS)
                return refuse_node(k, n, src, path, e);
        for (size_t i = 0; i < n->n; i++) {
                struct job_param_group *g = &s->optimizer.groups[i];
                int r;

                if (n->items[i]->kind != YAML_TREE_MAP)
                        return refuse_node(k, n->items[i], src, path, e);
                *g = (struct job_param_group){ .lr_scale = 1, .weight_decay = NAN };
                s->optimizer.n_groups = (int)i + 1; /* so that what was read is freed whatever comes */
                r = set_group(n->items[i], src, i, g, e);
                if (r < 0)
                        return r;
        }
        return 0;
}

int job_key_set(const struct job_key *k, const struct yaml_node *n, const struct job_source *src, const char *path, void *base, struct error *e) {
        void *target = (char *)base + k->offset;
        bool ok = false;

        if (k->type == KEY_LAYERS)
                return set_layers(k, n, src, path, base, e);
        if (k->type == KEY_GROUPS)
                return set_groups(k, n, src, path, base, e);
        if (n->kind != YAML_TREE_SCALAR)
                return refuse_node(k, n, src, path, e);
        if (k->type == KEY_STRING)
                return set_string(k, n, src, path, target, e);
        if (k->type == KEY_PATH)
                return set_path(k, n, src, path, target, e);
        if (k->type == KEY_INT || k->type == KEY_I64 || k->type == KEY_F64)
                ok = n->plain && set_number(k, n->text, target);
        else if (k->type == KEY_CHOICE)
                ok = set_word(k, n->text, target); /* a word is a word, quoted or not (in JSON it is) */
        else
                ok = n->plain && set_word(k, n->text, target);
        return ok ? 0 : refuse_node(k, n, src, path, e);
}

int job_key_set_default(const struct job_key *k, void *base, struct error *e) {
        static const struct job_source builtin = { .file = "defaults" };
        struct yaml_node n = { .kind = YAML_TREE_SCALAR, .plain = true, .text = (char *)k->def };

        return k->def ? job_key_set(k, &n, &builtin, k->path, base, e) : 0;
}

void job_key_describe(const struct job_key *k, const void *base, char *buf, size_t size) {
        const void *p = (const char *)base + k->offset;

        switch (k->type) {
        case KEY_INT:
                snprintf(buf, size, "'%d'", *(const int *)p);
                break;
        case KEY_I64:
                snprintf(buf, size, "'%" PRId64 "'", *(const int64_t *)p);
                break;
        case KEY_F64:
                snprintf(buf, size, "'%.10g'", *(const double *)p);
                break;
        case KEY_BOOL:
                snprintf(buf, size, "'%s'", *(const bool *)p ? "true" : "false");
                break;
        case KEY_STRING:
        case KEY_PATH:
                if (*(char *const *)p)
                        snprintf(buf, size, "'%.100s'", *(char *const *)p);
                else
                        snprintf(buf, size, "nothing");
                break;
        case KEY_CHOICE:
                snprintf(buf, size, "'%s'", k->choices[*(const unsigned *)p]);
                break;
        case KEY_LAYERS:
        case KEY_GROUPS:
                snprintf(buf, size, "a list");
                break;
        }
}
