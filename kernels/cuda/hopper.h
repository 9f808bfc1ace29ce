/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Hopper kernels behind the signatures of dev.h: what of the CUDA backend exists (quantisers of recipe `block` and its three matrix products).  Everything else, and with it the table
 * of dev_ops, is not here yet.
 */
#include <cuda_runtime_api.h>

#include "kernels/dev.h"

#ifdef FP8_FP64
#error "there is no FP64 build of the CUDA kernels"
#endif

struct dev_stream {
        cudaStream_t stream;
        int multiprocessors;
        int tile; /* enum gemm_tile that all products shall have (tests, measurements); -1: by plan */
};

/* A stream on the current device; -ENODEV unless that has compute capability 9.0. */
int cuda_stream_new(struct dev_stream **ret, struct error *e);
struct dev_stream *cuda_stream_free(struct dev_stream *s);

/* Q_1X128 and Q_128X128 only, else -EOPNOTSUPP. */
int cuda_quantize(const void *x, enum dtype xt, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s);

/*
 * E4M3 with scales of 1x128 by 128x128 (fprop, dgrad) and 1x128 by 1x128 (wgrad), else -EOPNOTSUPP.  The copy engine wants rows of a multiple of 16 bytes and the results leave 16
 * bytes at a time: the contraction must be a multiple of 16, and the output's columns too, else -EINVAL.  dgrad takes w.col, and adds (beta 1) into sum only: with dx too it is -EOPNOTSUPP.
 * Where the output is added to, subnormal sums become zero (PTX ISA, red.f32 on global memory).
 */
int cuda_gemm_fprop(const struct qtensor *x, const struct qtensor *w, void *y, enum dtype yt, struct dev_stream *s);
int cuda_gemm_dgrad(const struct qtensor *dy, const struct qtensor *w, dev_real *sum, int beta, void *dx, enum dtype xt, struct dev_stream *s);
int cuda_gemm_wgrad(const struct qtensor *dy, const struct qtensor *x, dev_real *dw, struct dev_stream *s);
