/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Where a rank's state comes from at the start of an epoch: the controller says which, the same for all ranks. */
#include "base/error.h"
#include "proto/fp8ctl.pb-c.h"
#include "worker/rank/snapshot.h"
#include "worker/train/trainer.h"

int source_load(const Fp8ctl__V1__LoadSource *l, struct trainer *t, struct snapshot *s, const struct dev_ops *ops, struct dev *dev, struct error *e);
