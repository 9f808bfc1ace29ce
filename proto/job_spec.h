/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The job file: YAML (JSON is YAML too) -> struct job_spec, through one table of keys (job_schema.c) that also prints
 * docs/job-file.md.  Parsed by fp8ctl, again by fp8d (nothing a peer says is trusted), and by each rank.
 *
 * Every refusal is one line: "FILE:LINE: key 'parallel.tp': found 3, allowed: a divisor of model.num_attention_heads (4)".
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define JOB_FILE_MAX 262144u /* 256 KiB */
#define JOB_MAX_GROUPS 16
#define JOB_MAX_LAYERS 512
#define JOB_MAX_RANKS 4096

enum job_recipe { RECIPE_BLOCK, RECIPE_DELAYED, RECIPE_TENSOR, RECIPE_BF16, RECIPE_FP32 };
enum job_dtype { JOB_DTYPE_FP32, JOB_DTYPE_BF16 };
enum job_pow2 { POW2_CACHED, POW2_ALL, POW2_NONE };       /* power-of-two scales: where cached and requantised (default), everywhere, nowhere */
enum job_amax_algo { AMAX_MAX, AMAX_MOST_RECENT };
enum job_loss_scale { LOSS_SCALE_OFF, LOSS_SCALE_DYNAMIC, LOSS_SCALE_GENTLE };
enum job_overflow { OVERFLOW_SKIP, OVERFLOW_STOP };       /* what happens after max_consecutive: rollback first, then stop | stop at once */
enum job_schedule { SCHEDULE_COSINE, SCHEDULE_WSD, SCHEDULE_CONSTANT };
enum job_data_format { DATA_AUTO, DATA_TEXT, DATA_INDEXED };

#define MODEL_HEAD_DIM_MAX 1024

/* A Llama-style model, with the names of Hugging Face's config.json (LlamaConfig). */
struct model_config {
        int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers;
        int64_t num_attention_heads, num_key_value_heads, head_dim, max_position_embeddings;
        double rms_norm_eps, rope_theta, initializer_range;
        bool tie_word_embeddings;
};

struct job_param_group {
        char *match;          /* fnmatch(3) pattern on global tensor names; the first group that matches wins */
        double lr_scale;      /* times the schedule's rate */
        double weight_decay;  /* NaN: the optimizer's */
};

struct job_spec {
        int version;          /* 1 */
        char *name;
        int64_t priority;     /* higher ones are placed first, and take devices from lower ones */
        char *preset;         /* model.preset, or NULL when model.config was given or fields are inline */
        char *config_path;    /* model.config: a config.json, or NULL. Read by whoever parses the file *first* (fp8ctl) and inlined */
        struct model_config model;

        struct {
                char *path;             /* text file, or prefix of PATH.bin / PATH.idx */
                enum job_data_format format;
                int64_t seq_len;        /* tokens a sequence */
                double validation_split;/* 0 .. 0.5, taken from the end */
                int64_t seed;
                bool pack;              /* documents packed; attention does not cross them */
        } data;
        struct {
                int tp, pp, dp;
                bool sequence_parallel; /* with tp > 1 */
                bool equal_nodes;       /* all on nodes of one fingerprint */
        } parallel;
        struct {
                int64_t steps, micro_batch /* sequences */, global_batch /* sequences; = micro_batch * dp * accumulation */;
                int64_t seed, eval_every /* steps, 0 never */, eval_batches;
                bool recompute_all;
                int64_t recompute_layers[JOB_MAX_LAYERS];
                int n_recompute_layers;
        } train;
        struct {
                enum job_recipe recipe;
                enum job_pow2 pow2;
                int64_t bf16_first_layers, bf16_last_layers; /* Linears of these layers stay BF16 */
                enum job_dtype moments, reduce;              /* Adam m, v; row-parallel partial sums */
                bool any_order;        /* dev_config.any_order */
                int64_t amax_history;  /* delayed: 1024 */
                enum job_amax_algo amax_algo;
                int64_t margin;
                enum job_loss_scale loss_scale;
                double loss_scale_init; /* 0: the scaler's own default */
                int64_t max_consecutive_skips;
                enum job_overflow on_overflow;
        } precision;
        struct {
                double lr, min_lr, beta1, beta2, eps, weight_decay, clip /* 0: off */;
                enum job_schedule schedule;
                int64_t warmup_steps, decay_steps /* wsd: length of the decay at the end */;
                struct job_param_group groups[JOB_MAX_GROUPS];
                int n_groups;
        } optimizer;
        struct {
                char *dir;             /* absolute after parsing (relative to the job file's folder) */
                int64_t every_steps;   /* 0: only at the end */
                int64_t keep_last, keep_every /* 0: no others */;
                int64_t bandwidth;     /* bytes per second and rank; 0: no limit */
                int64_t stall_timeout_ms;
                int64_t replica_every; /* snapshot into replica memory every N steps; 1 */
                int64_t local_every, local_keep; /* copies on the node's own disk; every 0: none */
                bool at_end;
        } checkpoint;
        struct {
                int64_t max_restarts;       /* recoveries allowed in all; -1 unlimited */
                int64_t same_cause_limit;   /* 3: the same cause without a step gained stops the job */
                int64_t collective_timeout_ms;
                int64_t start_timeout_ms;
                int64_t grace_ms;           /* for the last save on SIGTERM or cancel */
                int64_t min_dp;             /* replicas it goes on with when devices are lost and none are free; 0: parallel.dp */
                int64_t grow_delay_ms;      /* so long it must have run with fewer before it takes free devices again */
                int64_t park_timeout_ms;    /* for a survivor to leave its epoch */
                int64_t peer_grace_ms;      /* for a lost peer's own worker to say what happened */
                int64_t inventory_timeout_ms; /* for a node to list its replica memory */
                int64_t rescue_ms;          /* so long what only replica memory has may take to be saved; 0: it is not */
                int64_t in_place;           /* so often a rank that died is started on its device without a step gained */
                int64_t standby;            /* processes kept ready to become ranks */
                bool drills;
                int64_t checksum_every; /* steps; 0: never */                /* fp8ctl inject may hurt its ranks */
        } recovery;
        struct {
                int64_t ib_timeout, ib_retry_cnt, channels, scratch;
                bool nvls, peer_copies;
                char *ib_hca;
        } nccl;
        struct {
                bool digests;      /* per-step digest of master weights and moments in the metrics */
                int64_t max_bytes; /* bound of a rank's log and metrics file each */
                int64_t straggler_percent, straggler_steps;
                int64_t fp8_every;  /* statistics of the FP8 tensors in every so manieth step; 0: never */
                int64_t loss_spike; /* robust standard deviations above the median; 0: off */
        } metrics;
        /* Refused unless fp8d runs with --allow-test-hooks. -1 / NULL: off. */
        struct {
                int64_t overflow_step;   /* the gradient of overflow_tensor gets an infinity on rank overflow_rank in this step */
                int64_t overflow_steps;  /* for that many steps */
                int64_t overflow_rank;
                char *overflow_tensor;   /* global name */
                int64_t kill_step, kill_rank; /* raise(SIGKILL) at kill_point of that step, once (only in incarnation of epoch 1) */
                char *kill_point;        /* "forward", "agreed", "updated" (optimizer done, before the parameter all-gather), "gathered", "snapshot", "prepared" */
                int64_t flip_step;       /* a bit of a parameter is flipped in this step; -1: off */
                int64_t flip_rank;
                int64_t slow_rank;       /* -1: all */
                int64_t slow_ms;         /* sleep so long in every step */
        } test;
};

/* Parses and checks everything that does not need the cluster. base_dir: relative paths are taken from there (NULL: refused). */
int job_spec_parse(const char *text, size_t len, const char *file_name, const char *base_dir, struct job_spec **ret, struct error *e);
struct job_spec *job_spec_free(struct job_spec *s);
/* Canonical JSON with every key, paths absolute, config.json inlined; parses to an equal spec. free() it. */
int job_spec_to_json(const struct job_spec *s, char **ret, struct error *e);
bool job_spec_uses_test_hooks(const struct job_spec *s);
/*
 * Another number of replicas; the global batch stays, so each makes more or fewer micro-batches.  -EINVAL when it does not divide the batch, or is none; test hooks of ranks that are
 * no more are off from then on.
 */
int job_spec_set_dp(struct job_spec *s, int dp);
/* Parameters of the model in all (tied head counted once). */
int64_t model_parameters(const struct model_config *m);
/* Every parameter tensor under its Hugging Face name, in the order of the forward pass; a vector is [1, n]. A tied head is not among them. */
int64_t model_tensors(const struct model_config *m);
void model_tensor(const struct model_config *m, int64_t i, char *name, size_t size, int64_t *ret_rows, int64_t *ret_cols);
/*
 * Upper estimate of one rank's memory in bytes: weights, master, moments, gradients, activations, workspaces, and its snapshots.  *ret_snapshots is what of it is the host's whatever the
 * device is: replica memory of REPLICA_SLOTS generations (proto/replica.h).  Copies held for ranks of other nodes are not in it: they take what a worker's --replica-percent allows, or are not kept.
 */
uint64_t job_spec_bytes_per_rank(const struct job_spec *s, uint64_t *ret_snapshots);
/* Fills *ret from a named preset; NULL-terminated list of names. */
int model_preset(const char *name, struct model_config *ret, struct error *e);
const char *const *model_preset_names(void);
/* Reads a Hugging Face config.json (architectures LlamaForCausalLM-like; unknown keys ignored, wrong types refused). */
int model_config_from_json(const char *text, size_t len, const char *file_name, struct model_config *ret, struct error *e);
int model_config_to_json(const struct model_config *m, char **ret, struct error *e);
/* Prints docs/job-file.md's table from the schema. */
int job_schema_print_markdown(void *file /* FILE * */);

const char *job_recipe_name(enum job_recipe r);
/* The trainer's small state (JSON) with what a reader of a checkpoint's manifest wants to know besides: recipe, layout, data, model. free() it; NULL: no memory, or that is no JSON. */
char *job_manifest_state(const struct job_spec *s, const char *layout, const char *state);
