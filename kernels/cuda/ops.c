/* SPDX-License-Identifier: Apache-2.0 */
/* The table of dev.h for Hopper GPUs, and the plug-in's one symbol.  Activations in BF16 only: recipe fp32 is the CPU's. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cublasLt.h>

#include "kernels/cuda/attention_library.h"
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/ops.h"

static int done(cudaError_t r) {
        return r == cudaSuccess ? 0 : r == cudaErrorMemoryAllocation ? -ENOMEM : -EIO;
}

/* ------------------------------------------------------------------ the device */

/*
 * Makes the device the only one that this process sees, so that no thread of it, whatever it calls first, makes a context on another.  Works until CUDA is first called, and where it comes too
 * late (*index is left) the device is chosen by number.  What the variable listed before is what its numbers are of.
 */
static void see_only(int *index) {
        const char *all = getenv("CUDA_VISIBLE_DEVICES"), *at = all;
        static bool done_before;
        char one[80];

        if (done_before)
                return;
        if (all) {
                for (int i = 0; i < *index && at; i++)
                        at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL;
                if (!at)
                        return; /* refused below */
                (void)snprintf(one, sizeof one, "%.*s", (int)strcspn(at, ","), at);
        } else {
                (void)snprintf(one, sizeof one, "%d", *index);
        }
        done_before = setenv("CUDA_VISIBLE_DEVICES", one, 1) == 0;
        if (done_before)
                *index = 0;
}

static int gpu_open(const struct dev_config *c, struct dev **ret, struct error *e) {
        struct cudaDeviceProp p;
        struct dev *d;
        int runtime = 0, count = 0, index = c->index;
        cudaError_t r;

        if (index >= 0)
                see_only(&index);
        r = cudaGetDeviceCount(&count);
        if (c->act != DT_BF16)
                return error_set(e, -EINVAL, "cuda device: found activations in %s, expected bf16 (recipe fp32 needs the cpu)", dtype_name(c->act));
        if (r != cudaSuccess)
                return error_set(e, -ENODEV, "cuda device: %s", cudaGetErrorString(r));
        if (index < 0 || index >= count)
                return error_set(e, -ENODEV, "cuda device: found %d, expected below %d", c->index, count);
        r = cudaSetDevice(index);
        if (r == cudaSuccess)
                r = cudaGetDeviceProperties(&p, index);
        if (r == cudaSuccess)
                r = cudaRuntimeGetVersion(&runtime);
        if (r != cudaSuccess)
                return error_set(e, -ENODEV, "cuda device %d: %s", c->index, cudaGetErrorString(r));
        if (p.major != 9 || p.minor != 0)
                return error_set(e, -ENODEV, "cuda device %d: found compute capability %d.%d, expected 9.0", c->index, p.major, p.minor);
        d = calloc(1, sizeof *d);
        if (!d)
                return error_errno(e, ENOMEM, "cuda device");
        d->index = index;
        d->any_order = c->any_order;
        (void)snprintf(d->fingerprint, sizeof d->fingerprint, "cuda/%.80s/sm%d/rt%d/lt%zu/v%d%s", p.name, p.multiProcessorCount, runtime, cublasLtGetVersion(), DEV_VERSION,
                       c->any_order ? "/any-order" : "");
        *ret = d;
        return 0;
}

static void gpu_close(struct dev *d) {
        free(d);
}

static const char *gpu_fingerprint(struct dev *d) {
        return d->fingerprint;
}

static int gpu_alloc(struct dev *d, size_t bytes, void **ret, struct error *e) {
        void *p = NULL;
        cudaError_t r = cudaSetDevice(d->index);

        if (r == cudaSuccess)
                r = cudaMalloc(&p, bytes ? bytes : 256);
        if (r == cudaSuccess)
                r = cudaMemset(p, 0, bytes);
        if (r == cudaSuccess)
                r = cudaDeviceSynchronize(); /* streams do not wait for the default one */
        if (r != cudaSuccess) {
                (void)cudaFree(p);
                return error_set(e, done(r), "cuda device %d: %zu bytes: %s", d->index, bytes, cudaGetErrorString(r));
        }
        *ret = p;
        return 0;
}

static void gpu_free(struct dev *d, void *p) {
        (void)cudaFree(p);
}

static int gpu_stream_new(struct dev *d, struct dev_stream **ret) {
        struct error e = { 0 };
        struct dev_stream *s;
        int r;

        if (cudaSetDevice(d->index) != cudaSuccess)
                return -EIO;
        r = cuda_stream_new(&s, &e);
        if (r < 0)
                return r;
        r = cuda_scratch_reserve(s);
        if (r < 0) {
                (void)cuda_stream_free(s);
                return r;
        }
        s->dev = d;
        *ret = s;
        return 0;
}

static void gpu_stream_free(struct dev_stream *s) {
        (void)cuda_stream_free(s);
}

static int gpu_stream_sync(struct dev_stream *s) {
        return done(cudaStreamSynchronize(s->stream));
}

static int gpu_copy_in(void *dst, const void *src, size_t bytes, struct dev_stream *s) {
        return bytes ? done(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, s->stream)) : 0;
}

static int gpu_copy_out(void *dst, const void *src, size_t bytes, struct dev_stream *s) {
        return bytes ? done(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, s->stream)) : 0;
}

static int gpu_copy(void *dst, const void *src, size_t bytes, struct dev_stream *s) {
        return bytes ? done(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, s->stream)) : 0;
}

static int gpu_zero(void *dst, size_t bytes, struct dev_stream *s) {
        return bytes ? done(cudaMemsetAsync(dst, 0, bytes, s->stream)) : 0;
}

/* ------------------------------------------------------------------ elementwise */

static bool is_act(enum dtype t) {
        return t == DT_BF16 || t == DT_F32;
}

static bool is_float(enum dtype t) {
        return is_act(t) || t == DT_E4M3 || t == DT_E5M2;
}

static int gpu_cast(void *dst, enum dtype dt, const void *src, enum dtype st, int64_t n, struct dev_stream *s) {
        if (!is_float(dt) || !is_float(st))
                return -EOPNOTSUPP;
        if (dt == st)
                return gpu_copy(dst, src, (size_t)n * dtype_size(dt), s);
        return cuda_launch_cast(dst, dt, src, st, n, s->stream);
}

static int gpu_add(void *dst, const void *src, enum dtype t, int64_t n, struct dev_stream *s) {
        return is_act(t) ? cuda_launch_add(dst, src, t, n, s->stream) : -EOPNOTSUPP;
}

static int gpu_scale(dev_real *dst, double factor, int64_t n, struct dev_stream *s) {
        return cuda_launch_scale(dst, (float)factor, n, s->stream);
}

static int gpu_init_normal(dev_real *dst, int64_t rows, int64_t cols, int64_t row0, int64_t col0, int64_t global_cols, uint64_t seed, uint64_t name_hash, double mean, double std,
                           struct dev_stream *s) {
        if (rows < 0 || cols < 0 || row0 < 0 || col0 < 0 || col0 + cols > global_cols)
                return -EINVAL;
        return cuda_launch_init(dst, rows, cols, row0, col0, seed, name_hash, mean, std, s->stream);
}

/* ------------------------------------------------------------------ layers */

static int gpu_rmsnorm_fwd(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H, struct dev_stream *s) {
        if (!is_act(act) || T < 0 || H <= 0)
                return -EINVAL;
        return cuda_launch_norm_fwd(residual, from, delta, w, (float)eps, y, rstd, act, T, H, s->stream);
}

static int gpu_rmsnorm_quant_fwd(void *residual, const void *from, const void *delta, const dev_real *w, double eps, void *y, dev_real *rstd, enum dtype act, int64_t T, int64_t H,
                                 const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        void *to = y;
        int r;

        if (!is_act(act) || T < 0 || H <= 0 || out->rows != T || out->cols != H || (q->scaling == Q_NONE && !y))
                return -EINVAL;
        if (!y && act == DT_BF16 && q->scaling == Q_1X128 && q->dtype == DT_E4M3) { /* the sum, then its normalised value straight into the quantiser */
                r = gpu_rmsnorm_fwd(residual, from, delta, w, eps, NULL, rstd, act, T, H, s);
                return r < 0 ? r : cuda_norm_quant(residual, rstd, w, q, out, s);
        }
        if (!to)
                to = cuda_scratch(s, CUDA_SLOT_OUT0, (size_t)(T * H) * dtype_size(act));
        if (!to)
                return -ENOMEM;
        r = gpu_rmsnorm_fwd(residual, from, delta, w, eps, to, rstd, act, T, H, s);
        return r < 0 ? r : cuda_quantize(to, act, q, out, s);
}

static int gpu_rmsnorm_bwd(void *dresidual, dev_real *dw, const void *dy, enum dtype dyt, const void *x, const dev_real *w, const dev_real *rstd, enum dtype act, int64_t T, int64_t H,
                           struct dev_stream *s) {
        float *partial;
        int parts;

        if (!is_act(act) || !is_act(dyt) || T < 0 || H <= 0)
                return -EINVAL;
        parts = cuda_norm_parts(T, H, s->multiprocessors);
        partial = cuda_scratch(s, CUDA_SLOT_NORM, (size_t)H * (size_t)parts * sizeof *partial);
        if (!partial)
                return -ENOMEM;
        return cuda_launch_norm_bwd(dresidual, dw, dy, dyt, x, w, rstd, act, T, H, partial, parts, s->stream);
}

static int gpu_rope(void *q, void *k, const struct doc_bounds *docs, double theta, int64_t Hq, int64_t Hkv, int64_t D, bool backward, enum dtype act, struct dev_stream *s) {
        if (!is_act(act) || D <= 0 || D % 2 || (Hq <= 0 && Hkv <= 0) || !(theta > 0))
                return -EINVAL;
        return cuda_launch_rope(q, k, docs->pos, docs->tokens, theta, Hq, Hkv, D, backward, act, s->stream);
}

/* What the caller's workspace holds: backward's rowsum(dout * out), and with cuDNN dQ in F32, both in rows rounded up to its tiles, and a little for each document. */
static size_t attention_room(int64_t T, int64_t Hq, int64_t D) {
        const size_t rows = (size_t)(T + T / 8 + 256) * (size_t)Hq;

        return rows * sizeof(float) * (size_t)(D + 2) + ((size_t)1 << 20);
}

static size_t gpu_attention_workspace(int64_t T, int64_t Hq, int64_t Hkv, int64_t D) {
        return attention_room(T, Hq, D);
}

static int attention_valid(const struct doc_bounds *d, int64_t Hq, int64_t Hkv, int64_t D, enum dtype act) {
        if (act != DT_BF16)
                return -EOPNOTSUPP;
        return Hkv > 0 && Hq > 0 && Hq % Hkv == 0 && D > 0 && Hq < 65536 && d->tokens >= 0 ? 0 : -EINVAL;
}

/* 0: done by the library; -EOPNOTSUPP: not for it. */
static int library_attention(const struct attention_launch *a, const struct doc_bounds *docs, bool backward, void *workspace, struct dev_stream *s) {
        struct attention_plan *p;
        size_t bytes;
        int r;

        if (!docs->host_cu || a->T == 0)
                return -EOPNOTSUPP;
        if (!s->attention_tried) {
                s->attention_tried = true;
                (void)attention_library_new(&s->attention);
        }
        if (!s->attention)
                return -EOPNOTSUPP;
        r = attention_library_find(s->attention, a, docs->host_cu, docs->n, backward, s->dev && s->dev->any_order, &p);
        if (r < 0)
                return r;
        bytes = attention_plan_workspace(p);
        if (!workspace || bytes > attention_room(a->T, a->Hq, a->D))
                workspace = cuda_scratch(s, CUDA_SLOT_ATTENTION, bytes);
        return workspace ? attention_plan_run(p, a, docs->n, workspace, s->stream) : -ENOMEM;
}

static int gpu_attention_fwd(const void *q, const void *k, const void *v, const struct doc_bounds *docs, void *out, dev_real *lse, int64_t Hq, int64_t Hkv, int64_t D, enum dtype act,
                             void *workspace, struct dev_stream *s) {
        const struct attention_launch a = { .q = q, .k = k, .v = v, .o = out, .lse = lse, .cu = docs->cu, .doc = docs->doc, .T = docs->tokens, .Hq = (int)Hq, .Hkv = (int)Hkv, .D = (int)D };
        int r = attention_valid(docs, Hq, Hkv, D, act);

        if (r < 0)
                return r;
        r = library_attention(&a, docs, false, workspace, s);
        return r == -EOPNOTSUPP ? cuda_launch_attention_fwd(&a, s->stream) : r;
}

static int gpu_attention_bwd(const void *q, const void *k, const void *v, const void *out, const dev_real *lse, const void *dout, const struct doc_bounds *docs, void *dq, void *dk,
                             void *dv, int64_t Hq, int64_t Hkv, int64_t D, enum dtype act, void *workspace, struct dev_stream *s) {
        const struct attention_launch a = {
                .q = q, .k = k, .v = v, .out = out, .dout = dout, .dq = dq, .dk = dk, .dv = dv, .lse = (float *)(uintptr_t)lse, .delta = workspace, .cu = docs->cu, .doc = docs->doc,
                .T = docs->tokens, .Hq = (int)Hq, .Hkv = (int)Hkv, .D = (int)D,
        };
        int r = attention_valid(docs, Hq, Hkv, D, act);

        if (r == 0 && !workspace)
                r = -EINVAL;
        if (r < 0)
                return r;
        r = library_attention(&a, docs, true, workspace, s);
        return r == -EOPNOTSUPP ? cuda_launch_attention_bwd(&a, s->stream) : r;
}

static int gpu_swiglu_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I, struct dev_stream *s) {
        return is_act(act) && T >= 0 && I >= 0 ? cuda_launch_swiglu_fwd(g, u, a, act, T * I, s->stream) : -EINVAL;
}

static int gpu_swiglu_quant_fwd(const void *g, const void *u, void *a, enum dtype act, int64_t T, int64_t I, const struct quant_spec *q, struct qtensor *out, struct dev_stream *s) {
        void *to = a;
        int r;

        if (!is_act(act) || T < 0 || I < 0 || out->rows != T || out->cols != I || (q->scaling == Q_NONE && !a))
                return -EINVAL;
        if (!to)
                to = cuda_scratch(s, CUDA_SLOT_OUT0, (size_t)(T * I) * dtype_size(act));
        if (!to)
                return -ENOMEM;
        r = gpu_swiglu_fwd(g, u, to, act, T, I, s);
        return r < 0 ? r : cuda_quantize(to, act, q, out, s);
}

static int gpu_swiglu_bwd(const void *g, const void *u, const void *da, enum dtype dat, void *dg, void *du, enum dtype act, int64_t T, int64_t I, const struct quant_spec *qsg,
                          struct qtensor *qg, const struct quant_spec *qsu, struct qtensor *qu, struct dev_stream *s) {
        int r;

        if (!is_act(act) || !is_act(dat) || T < 0 || I < 0 || (!dg && (!qg || qsg->scaling == Q_NONE)) || (!du && (!qu || qsu->scaling == Q_NONE)))
                return -EINVAL;
        if ((qg && (qg->rows != T || qg->cols != I)) || (qu && (qu->rows != T || qu->cols != I)))
                return -EINVAL;
        dg = dg ? dg : cuda_scratch(s, CUDA_SLOT_OUT0, (size_t)(T * I) * dtype_size(act));
        du = du ? du : cuda_scratch(s, CUDA_SLOT_OUT1, (size_t)(T * I) * dtype_size(act));
        if (!dg || !du)
                return -ENOMEM;
        r = cuda_launch_swiglu_bwd(g, u, da, dat, dg, du, act, T * I, s->stream);
        if (r == 0 && qg)
                r = cuda_quantize(dg, act, qsg, qg, s);
        if (r == 0 && qu)
                r = cuda_quantize(du, act, qsu, qu, s);
        return r;
}

/* ------------------------------------------------------------------ embedding and loss */

static int gpu_embed_fwd(const void *table, const int32_t *ids, void *out, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s) {
        return is_act(act) && T >= 0 && H >= 0 ? cuda_launch_embed_fwd(table, ids, out, act, T, H, v0, V, s->stream) : -EINVAL;
}

static int gpu_embed_bwd(dev_real *dtable, const int32_t *ids, const void *dout, enum dtype act, int64_t T, int64_t H, int64_t v0, int64_t V, struct dev_stream *s) {
        return is_act(act) && T >= 0 && H >= 0 ? cuda_launch_embed_bwd(dtable, ids, dout, act, T, H, v0, V, s->stream) : -EINVAL;
}

static int gpu_ce_max(const void *logits, enum dtype lt, dev_real *rowmax, int64_t T, int64_t V, struct dev_stream *s) {
        return is_act(lt) && T >= 0 && V >= 0 ? cuda_launch_ce_max(logits, lt, rowmax, T, V, s->stream) : -EINVAL;
}

static int gpu_ce_sum(const void *logits, enum dtype lt, const dev_real *rowmax, const int32_t *labels, dev_real *sumexp, dev_real *target, int64_t T, int64_t v0, int64_t V,
                      struct dev_stream *s) {
        return is_act(lt) && T >= 0 && V >= 0 ? cuda_launch_ce_sum(logits, lt, rowmax, labels, sumexp, target, T, v0, V, s->stream) : -EINVAL;
}

static int gpu_ce_bwd(const void *logits, enum dtype lt, const dev_real *rowmax, const dev_real *sumexp, const dev_real *target, const int32_t *labels, double gscale, dev_real *loss_sum,
                      void *dlogits, enum dtype act, int64_t T, int64_t v0, int64_t V, struct dev_stream *s) {
        /* Rows are written while others are still read: in place only where a row stays where it is. */
        if (!is_act(lt) || !is_act(act) || T < 0 || V < 0 || (dlogits == logits && lt != act))
                return -EINVAL;
        return cuda_launch_ce_bwd(logits, lt, rowmax, sumexp, target, labels, gscale, loss_sum, dlogits, act, T, v0, V, s->stream);
}

static int gpu_cross_entropy(const void *logits, enum dtype lt, const int32_t *labels, double gscale, dev_real *loss_sum, void *dlogits, enum dtype act, dev_real *losses, int64_t T,
                             int64_t V, struct dev_stream *s) {
        if (T < 0 || V <= 0 || !losses)
                return -EINVAL;
        if (lt != DT_F32 || act != DT_BF16)
                return -EOPNOTSUPP;
        return cuda_launch_cross_entropy(logits, labels, gscale, loss_sum, dlogits, losses, T, V, s->stream);
}

/* ------------------------------------------------------------------ optimizer */

static int gpu_grad_stats(int n, const dev_real *const *grads, const int64_t *counts, const double *factors, const uint64_t *indices, double *sumsq, uint64_t *bad, struct dev_stream *s) {
        double *partial = cuda_scratch(s, CUDA_SLOT_STATS, sizeof(double) * CUDA_STATS_BATCH * CUDA_STATS_BLOCKS);

        return partial ? cuda_launch_grad_stats(n, grads, counts, factors, indices, sumsq, (unsigned long long *)bad, partial, s->stream) : -ENOMEM;
}

static int gpu_adamw(int n, const struct adamw_tensor *t, enum dtype moments, enum dtype param, const struct step_params *p, struct dev_stream *s) {
        return is_act(moments) && is_act(param) ? cuda_launch_adamw(n, t, moments, param, p, s->multiprocessors, s->stream) : -EINVAL;
}

static int gpu_amax_update(int n, int len, dev_real *history, const dev_real *amax, dev_real *scale, const double *fp8_max, int use_max, int margin, const uint64_t *skip,
                           struct dev_stream *s) {
        return len < 1 ? -EINVAL : cuda_launch_amax_update(n, len, history, amax, scale, fp8_max, use_max, margin, skip, s->stream);
}

/* For every device of the process (portable): whichever thread copies may have another one current. */
static int gpu_host_pin(struct dev *d, void *p, size_t bytes, struct error *e) {
        cudaError_t r = cudaSetDevice(d->index);

        if (r == cudaSuccess)
                r = cudaHostRegister(p, bytes, cudaHostRegisterPortable);
        if (r == cudaSuccess)
                return 0;
        (void)cudaGetLastError(); /* it is no failure of the device */
        return error_set(e, r == cudaErrorMemoryAllocation ? -ENOMEM : -EIO, "%zu bytes of host memory cannot be kept in place for the device: %s", bytes, cudaGetErrorString(r));
}

static int gpu_host_unpin(struct dev *d, void *p) {
        cudaError_t r = cudaSetDevice(d->index);

        return done(r == cudaSuccess ? cudaHostUnregister(p) : r);
}

static const struct dev_ops table = {
        .size = sizeof(struct dev_ops), .version = DEV_VERSION, .kind = "cuda",
        .open = gpu_open, .close = gpu_close, .fingerprint = gpu_fingerprint, .alloc = gpu_alloc, .free = gpu_free,
        .stream_new = gpu_stream_new, .stream_free = gpu_stream_free, .stream_sync = gpu_stream_sync,
        .copy_in = gpu_copy_in, .copy_out = gpu_copy_out, .copy = gpu_copy, .zero = gpu_zero, .cast = gpu_cast, .add = gpu_add, .scale = gpu_scale, .init_normal = gpu_init_normal,
        .quantize = cuda_quantize, .requantize_col = cuda_requantize_col, .dequantize = cuda_dequantize,
        .gemm_fprop = cuda_gemm_fprop, .gemm_dgrad = cuda_gemm_dgrad, .gemm_dgrad_sum = cuda_gemm_dgrad_sum, .gemm_wgrad = cuda_gemm_wgrad,
        .rmsnorm_fwd = gpu_rmsnorm_fwd, .rmsnorm_quant_fwd = gpu_rmsnorm_quant_fwd, .rmsnorm_bwd = gpu_rmsnorm_bwd,
        .rope = gpu_rope, .attention_fwd = gpu_attention_fwd, .attention_bwd = gpu_attention_bwd, .attention_workspace = gpu_attention_workspace,
        .swiglu_fwd = gpu_swiglu_fwd, .swiglu_quant_fwd = gpu_swiglu_quant_fwd, .swiglu_bwd = gpu_swiglu_bwd, .swiglu_cache_fwd = cuda_swiglu_cache_fwd, .swiglu_cached_bwd = cuda_swiglu_cached_bwd,
        .embed_fwd = gpu_embed_fwd, .embed_bwd = gpu_embed_bwd, .ce_max = gpu_ce_max, .ce_sum = gpu_ce_sum, .ce_bwd = gpu_ce_bwd,
        .cross_entropy = gpu_cross_entropy, .gemm_wgrad_many = cuda_gemm_wgrad_many, .rope_quant_bwd = cuda_rope_quant_bwd, .quantize_many = cuda_quantize_many,
        .grad_stats = gpu_grad_stats, .adamw = gpu_adamw, .amax_update = gpu_amax_update,
        .host_pin = gpu_host_pin, .host_unpin = gpu_host_unpin, .quant_stats = cuda_quant_stats,
};

const struct dev_ops *fp8_device_plugin(void) {
        return &table;
}
