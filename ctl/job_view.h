/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* One job as people and programs see it. */
#include "ctl/client.h"
#include "ctl/print.h"

const char *job_state_name(Fp8ctl__V1__JobState s);
bool job_state_is_end(Fp8ctl__V1__JobState s);
/* Of a job that ended: 0 completed, 1 failed, 7 cancelled; EXIT_DONE for one that goes on. */
enum ctl_exit job_exit(const Fp8ctl__V1__Job *j);
/* The short form: all of Job but plan and job file. With "v". */
json_t *job_to_json(const Fp8ctl__V1__Job *j);
/* As -o asks: table or wide (one row), json, yaml, name. */
void job_print(const struct ctl *c, const Fp8ctl__V1__Job *j);
void jobs_print_sheet(const struct ctl *c, Fp8ctl__V1__Job *const *jobs, size_t n);
void plan_print(const Fp8ctl__V1__Plan *p, FILE *f);
void event_print(const Fp8ctl__V1__Event *ev, FILE *f);
