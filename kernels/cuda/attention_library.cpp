/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/attention_library.h"

#include <dlfcn.h>
#include <errno.h>
#include <math.h>

#include <map>
#include <memory>
#include <tuple>
#include <unordered_map>

#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

namespace cudnn_frontend {
void *cudnn_dlhandle;
}

namespace {

namespace graph = cudnn_frontend::graph;
using tensor = std::shared_ptr<graph::Tensor_attributes>;

/* Names of the tensors in a plan. */
enum uid : int64_t { Q = 1, K, V, O, STATS, DO, DQ, DK, DV, LENGTH, Q_AT, K_AT, STATS_AT };

constexpr int shortest = 128; /* below that a document fits one or two tiles of attention.cu */

struct key {
        int batch, length, Hq, Hkv, D, tokens;
        bool packed, backward, any_order;

        bool operator<(const key &o) const {
                return std::tie(batch, length, Hq, Hkv, D, tokens, packed, backward, any_order) <
                       std::tie(o.batch, o.length, o.Hq, o.Hkv, o.D, o.tokens, o.packed, o.backward, o.any_order);
        }
};

int up_to_power(int n, int least) {
        while (least < n)
                least *= 2;
        return least;
}

size_t aligned(size_t n) {
        return (n + 255) / 256 * 256;
}

} // namespace

struct attention_plan {
        key k;
        graph::Graph g;
        cudnnHandle_t handle;
        int64_t workspace;
        bool ready;
};

struct attention_library {
        cudnnHandle_t handle;
        std::map<key, std::unique_ptr<attention_plan>> plans;
};

namespace {

/* [batch, heads, length, D] of rows heads * D apart. */
tensor rows(attention_plan &p, uid id, int heads, const tensor &at) {
        const key &k = p.k;
        const int64_t row = (int64_t)heads * k.D;
        auto t = graph::Tensor_attributes();

        t.set_uid(id).set_dim({ k.batch, heads, k.length, k.D }).set_stride({ k.length * row, k.D, row, 1 });
        if (at)
                t.set_ragged_offset(at);
        return p.g.tensor(t);
}

void place(const key &k, const tensor &t, uid id, int heads, const tensor &at) {
        const int64_t row = (int64_t)heads * k.D;

        t->set_output(true).set_uid(id).set_dim({ k.batch, heads, k.length, k.D }).set_stride({ k.length * row, k.D, row, 1 });
        if (at)
                t->set_ragged_offset(at);
}

tensor integers(attention_plan &p, uid id, int64_t n) {
        return p.k.packed ? p.g.tensor(graph::Tensor_attributes().set_uid(id).set_dim({ n, 1, 1, 1 }).set_stride({ 1, 1, 1, 1 }).set_data_type(cudnn_frontend::DataType_t::INT32))
                          : nullptr;
}

std::vector<int64_t> stats_stride(const key &k) {
        const int64_t h = k.Hq, s = k.length;

        return k.packed ? std::vector<int64_t>{ h * s, 1, h, 1 } : std::vector<int64_t>{ h * s, s, 1, 1 };
}

void forward(attention_plan &p, const tensor &length, const tensor &q_at, const tensor &k_at, const tensor &s_at) {
        const key &k = p.k;
        auto how = graph::SDPA_attributes().set_generate_stats(true).set_causal_mask(true).set_attn_scale(1.f / sqrtf((float)k.D));

        if (k.packed)
                how.set_padding_mask(true).set_seq_len_q(length).set_seq_len_kv(length);
        auto [o, stats] = p.g.sdpa(rows(p, Q, k.Hq, q_at), rows(p, K, k.Hkv, k_at), rows(p, V, k.Hkv, k_at), how);

        place(k, o, O, k.Hq, q_at);
        stats->set_output(true).set_uid(STATS).set_data_type(cudnn_frontend::DataType_t::FLOAT).set_dim({ k.batch, k.Hq, k.length, 1 }).set_stride(stats_stride(k));
        if (s_at)
                stats->set_ragged_offset(s_at);
}

void backward(attention_plan &p, const tensor &length, const tensor &q_at, const tensor &k_at, const tensor &s_at) {
        const key &k = p.k;
        auto how = graph::SDPA_backward_attributes().set_causal_mask(true).set_attn_scale(1.f / sqrtf((float)k.D)).set_deterministic_algorithm(!k.any_order);
        auto s = graph::Tensor_attributes();

        if (k.packed)
                how.set_padding_mask(true).set_seq_len_q(length).set_seq_len_kv(length).set_max_total_seq_len_q(k.tokens).set_max_total_seq_len_kv(k.tokens);
        s.set_uid(STATS).set_data_type(cudnn_frontend::DataType_t::FLOAT).set_dim({ k.batch, k.Hq, k.length, 1 }).set_stride(stats_stride(k));
        if (s_at)
                s.set_ragged_offset(s_at);
        auto [dq, dk, dv] = p.g.sdpa_backward(rows(p, Q, k.Hq, q_at), rows(p, K, k.Hkv, k_at), rows(p, V, k.Hkv, k_at), rows(p, O, k.Hq, q_at), rows(p, DO, k.Hq, q_at), p.g.tensor(s), how);

        place(k, dq, DQ, k.Hq, q_at);
        place(k, dk, DK, k.Hkv, k_at);
        place(k, dv, DV, k.Hkv, k_at);
}

bool make(attention_plan &p) {
        const tensor length = integers(p, LENGTH, p.k.batch), q_at = integers(p, Q_AT, p.k.batch + 1), k_at = integers(p, K_AT, p.k.batch + 1), s_at = integers(p, STATS_AT, p.k.batch + 1);

        p.g.set_io_data_type(cudnn_frontend::DataType_t::BFLOAT16)
                .set_intermediate_data_type(cudnn_frontend::DataType_t::FLOAT)
                .set_compute_data_type(cudnn_frontend::DataType_t::FLOAT);
        if (p.k.backward)
                backward(p, length, q_at, k_at, s_at);
        else
                forward(p, length, q_at, k_at, s_at);
        auto r = p.g.build(p.handle, { cudnn_frontend::HeurMode_t::A });

        if (r.is_bad() && getenv("FP8_CUDNN_LOG")) /* for whoever asks why attention is slow: the caller has another way */
                (void)fprintf(stderr, "cuDNN attention: %s\n", r.get_message().c_str());
        return r.is_good() && p.g.get_workspace_size(p.workspace).is_good();
}

} // namespace

int attention_library_new(struct attention_library **ret) {
        if (!cudnn_frontend::cudnn_dlhandle)
                cudnn_frontend::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
        if (!cudnn_frontend::cudnn_dlhandle)
                return -EOPNOTSUPP;
        try {
                auto l = std::make_unique<attention_library>();

                if (cudnn_frontend::detail::create_handle(&l->handle) != CUDNN_STATUS_SUCCESS)
                        return -EOPNOTSUPP;
                *ret = l.release();
                return 0;
        } catch (const std::exception &) {
                return -EOPNOTSUPP;
        }
}

struct attention_library *attention_library_free(struct attention_library *l) {
        if (!l)
                return nullptr;
        l->plans.clear();
        (void)cudnn_frontend::detail::destroy_handle(l->handle);
        delete l;
        return nullptr;
}

int attention_library_find(struct attention_library *l, const struct attention_launch *a, const int32_t *bounds, int n, bool back, bool any_order, struct attention_plan **ret) {
        int longest = 0;
        bool even = true;

        for (int i = 0; i < n; i++) {
                const int length = bounds[i + 1] - bounds[i];

                longest = length > longest ? length : longest;
                even = even && length == bounds[1] - bounds[0];
        }
        if (longest < shortest || a->D > 128 || a->D % 8 != 0 || (!even && a->T / n < shortest / 2) || (int64_t)a->T * a->Hq * a->D > INT32_MAX)
                return -EOPNOTSUPP;
        const key k = { even ? n : up_to_power(n, 8), even ? longest : up_to_power(longest, shortest), a->Hq, a->Hkv, a->D, even ? 0 : a->T, !even, back, any_order };

        try {
                std::unique_ptr<attention_plan> &p = l->plans[k];

                if (!p) {
                        p = std::make_unique<attention_plan>();
                        p->k = k;
                        p->handle = l->handle;
                        p->ready = make(*p);
                }
                *ret = p.get();
                return p->ready ? 0 : -EOPNOTSUPP;
        } catch (const std::exception &) {
                return -EOPNOTSUPP;
        }
}

/* Before cuDNN's part: lengths and offsets of a packed batch. */
static size_t integers_bytes(const key &k) {
        return k.packed ? aligned(sizeof(int32_t) * 4 * ((size_t)k.batch + 1)) : 0;
}

size_t attention_plan_workspace(const struct attention_plan *p) {
        return integers_bytes(p->k) + (size_t)p->workspace;
}

int attention_plan_run(struct attention_plan *p, const struct attention_launch *a, int n, void *workspace, cudaStream_t s) {
        const key &k = p->k;
        int32_t *length = (int32_t *)workspace, *q = length + k.batch, *at = q + k.batch + 1, *stats = at + k.batch + 1;
        const auto in = [](const void *x) { return const_cast<void *>(x); };
        std::unordered_map<int64_t, void *> v = { { Q, in(a->q) }, { K, in(a->k) }, { V, in(a->v) }, { STATS, a->lse } };

        if (k.packed) {
                const int r = cuda_launch_attention_docs(a->cu, n, k.batch, k.Hq * k.D, k.Hkv * k.D, k.Hq, length, q, at, stats, s);

                if (r < 0)
                        return r;
                v.insert({ { LENGTH, length }, { Q_AT, q }, { K_AT, at }, { STATS_AT, stats } });
        }
        if (k.backward)
                v.insert({ { O, in(a->out) }, { DO, in(a->dout) }, { DQ, a->dq }, { DK, a->dk }, { DV, a->dv } });
        else
                v.insert({ { O, a->o } });
        try {
                if (cudnn_frontend::detail::set_stream(p->handle, s) != CUDNN_STATUS_SUCCESS)
                        return -EIO;
                return p->g.execute(p->handle, v, (char *)workspace + integers_bytes(k)).is_good() ? 0 : -EIO;
        } catch (const std::exception &) {
                return -EIO;
        }
}
