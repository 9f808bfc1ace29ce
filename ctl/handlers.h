/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Handlers and option tables of the subcommands: one file a noun, all listed in commands.c. */
#include "ctl/ctl.h"

/* Option tables end with a row without a name. */
extern const struct opt submit_opts[];
extern const struct opt wait_opts[];
extern const struct opt list_opts[];
extern const struct opt cancel_opts[];
extern const struct opt scale_opts[];
extern const struct opt node_cordon_opts[];
extern const struct opt node_drain_opts[];
extern const struct opt node_test_opts[];
extern const struct opt rollout_start_opts[];
extern const struct opt rollout_set_opts[];
extern const struct opt logs_opts[];
extern const struct opt events_opts[];
extern const struct opt metrics_opts[];
extern const struct opt checkpoint_diff_opts[];
extern const struct opt checkpoint_export_opts[];
extern const struct opt checkpoint_rm_opts[];
extern const struct opt data_prepare_opts[];
extern const struct opt cluster_up_opts[];
extern const struct opt cluster_down_opts[];
extern const struct opt cluster_keep_opts[];
extern const struct opt admin_certs_opts[];
extern const struct opt diagnose_opts[];
extern const struct opt inject_opts[];

int submit_run(struct ctl *c, int n, char **args);
int wait_run(struct ctl *c, int n, char **args);
int job_list_run(struct ctl *c, int n, char **args);
int job_get_run(struct ctl *c, int n, char **args);
int job_describe_run(struct ctl *c, int n, char **args);
int job_cancel_run(struct ctl *c, int n, char **args);
int job_save_run(struct ctl *c, int n, char **args);
int job_scale_run(struct ctl *c, int n, char **args);
int logs_run(struct ctl *c, int n, char **args);
int events_run(struct ctl *c, int n, char **args);
int why_run(struct ctl *c, int n, char **args);
int diagnose_run(struct ctl *c, int n, char **args);
int goodput_run(struct ctl *c, int n, char **args);
int metrics_run(struct ctl *c, int n, char **args);
int node_list_run(struct ctl *c, int n, char **args);
int node_get_run(struct ctl *c, int n, char **args);
int node_cordon_run(struct ctl *c, int n, char **args);
int node_drain_run(struct ctl *c, int n, char **args);
int node_uncordon_run(struct ctl *c, int n, char **args);
int node_describe_run(struct ctl *c, int n, char **args);
int node_diff_run(struct ctl *c, int n, char **args);
int node_test_run(struct ctl *c, int n, char **args);
int rollout_start_run(struct ctl *c, int n, char **args);
int rollout_list_run(struct ctl *c, int n, char **args);
int rollout_status_run(struct ctl *c, int n, char **args);
int rollout_stop_run(struct ctl *c, int n, char **args);
int rollout_resume_run(struct ctl *c, int n, char **args);
int rollout_abort_run(struct ctl *c, int n, char **args);
int checkpoint_list_run(struct ctl *c, int n, char **args);
int checkpoint_show_run(struct ctl *c, int n, char **args);
int checkpoint_verify_run(struct ctl *c, int n, char **args);
int checkpoint_diff_run(struct ctl *c, int n, char **args);
int checkpoint_rm_run(struct ctl *c, int n, char **args);
int checkpoint_export_run(struct ctl *c, int n, char **args);
int checkpoint_import_run(struct ctl *c, int n, char **args);
int data_prepare_run(struct ctl *c, int n, char **args);
int cluster_up_run(struct ctl *c, int n, char **args);
int cluster_down_run(struct ctl *c, int n, char **args);
int cluster_status_run(struct ctl *c, int n, char **args);
int cluster_keep_run(struct ctl *c, int n, char **args);
int inject_run(struct ctl *c, int n, char **args);
int admin_certs_run(struct ctl *c, int n, char **args);
int admin_schema_run(struct ctl *c, int n, char **args);
int completion_run(struct ctl *c, int n, char **args);
int version_run(struct ctl *c, int n, char **args);
int help_run(struct ctl *c, int n, char **args);
