/* SPDX-License-Identifier: Apache-2.0 */
/* SwiGLU, RMSNorm, attention, embedding and loss. */
#include "tests/gpu/both.h"

/* Its values are within one rounding of the CPU's: the sigmoid is made by the special-function unit. */
TEST(swiglu) {
        static const int64_t shapes[][2] = { { 1, 16 }, { 5, 100 }, { 130, 384 } };

        both_open();
        for (int k = 0; k < 6; k++) {
                const int64_t T = shapes[k % 3][0], I = shapes[k % 3][1], n = T * I;
                const size_t bytes = (size_t)n * 2;
                const struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
                uint16_t *g = mixed_bf16(n, k < 3 ? 0 : 7), *u = mixed_bf16(n, k < 3 ? 0 : 11), *da = mixed_bf16(n, 0), *a = fresh(bytes), *dg = fresh(bytes), *du = fresh(bytes);
                void *gg = up(g, bytes), *gu = up(u, bytes), *gda = up(da, bytes), *ga = up(a, bytes), *gdg = up(dg, bytes), *gdu = up(du, bytes);
                struct qtensor w1 = qtensor_new(&q, T, I), w2 = qtensor_new(&q, T, I), g1 = up_parts(&q, &w1), g2 = up_parts(&q, &w2);

                OK(ops->swiglu_fwd(g, u, a, DT_BF16, T, I, stream));
                OK(gpu_ops->swiglu_fwd(gg, gu, ga, DT_BF16, T, I, gpu));
                compare("swiglu", a, ga, DT_BF16, n, 0x1p-7, 1e-35);
                device_bf16(a, ga, n);
                OK(ops->quantize(a, DT_BF16, &q, &w1, stream));
                OK(gpu_ops->swiglu_quant_fwd(gg, gu, NULL, DT_BF16, T, I, &q, &g1, gpu));
                compare_parts("swiglu quantised", &q, &w1, &g1);
                OK(ops->swiglu_bwd(g, u, da, DT_BF16, dg, du, DT_BF16, T, I, NULL, NULL, NULL, NULL, stream));
                OK(gpu_ops->swiglu_bwd(gg, gu, gda, DT_BF16, gdg, gdu, DT_BF16, T, I, &q, &g1, &q, &g2, gpu));
                compare("swiglu dg", dg, gdg, DT_BF16, n, 0x1p-7, 1e-5);
                compare("swiglu du", du, gdu, DT_BF16, n, 0x1p-7, 1e-35);
                device_bf16(dg, gdg, n);
                device_bf16(du, gdu, n);
                OK(ops->quantize(dg, DT_BF16, &q, &w1, stream));
                OK(ops->quantize(du, DT_BF16, &q, &w2, stream));
                compare_parts("swiglu dg quantised", &q, &w1, &g1);
                compare_parts("swiglu du quantised", &q, &w2, &g2);
                xfree(g), xfree(u), xfree(da), xfree(a), xfree(dg), xfree(du);
                down(gg), down(gu), down(gda), down(ga), down(gdg), down(gdu);
                qtensor_free(&w1), qtensor_free(&w2), down_parts(&g1), down_parts(&g2);
        }
        both_close();
}

/* The operations that keep SwiGLU's inputs in FP8 beside the device's own plain ones and the CPU's quantiser: the same bits. */
TEST(cached_swiglu) {
        static const int64_t shapes[][2] = { { 1, 16 }, { 5, 104 }, { 130, 384 }, { 272, 328 } };

        both_open();
        for (int k = 0; k < 8; k++) {
                const int64_t T = shapes[k % 4][0], I = shapes[k % 4][1], n = T * I;
                const size_t bytes = (size_t)n * 2;
                const struct quant_spec row = { .scaling = Q_1X128, .dtype = DT_E4M3, .pow2 = true, .want_row = true }, col = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_col = true };
                const struct quant_spec plain = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true }, both = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
                uint16_t *g = mixed_bf16(n, k < 4 ? 0 : 7), *u = mixed_bf16(n, k < 4 ? 0 : 11), *da = mixed_bf16(n, 0), *a = fresh(bytes), *d = fresh(bytes), *e = fresh(bytes);
                void *gg = up(g, bytes), *gu = up(u, bytes), *gda = up(da, bytes), *ga = up(a, bytes), *gd = up(d, bytes), *ge = up(e, bytes);
                float seen[6] = { 0 }, *gseen = up(seen, sizeof seen);
                struct quant_spec noted[6] = { row, row, plain, col, both, both };
                struct qtensor gq = qtensor_new(&both, T, I), uq = qtensor_new(&both, T, I), aq = qtensor_new(&both, T, I), dg = qtensor_new(&both, T, I), du = qtensor_new(&both, T, I);
                struct qtensor ggq = up_parts(&both, &gq), guq = up_parts(&both, &uq), gaq = up_parts(&both, &aq), gdg = up_parts(&both, &dg), gdu = up_parts(&both, &du);

                OK(ops->quantize(g, DT_BF16, &row, &gq, stream));
                OK(ops->quantize(u, DT_BF16, &row, &uq, stream));
                for (int i = 0; i < 6; i++)
                        noted[i].amax = gseen + i;
                OK(gpu_ops->swiglu_fwd(gg, gu, ga, DT_BF16, T, I, gpu));
                device_bf16(a, ga, n);
                OK(ops->quantize(a, DT_BF16, &plain, &aq, stream));
                seen[0] = greatest(g, n), seen[1] = greatest(u, n), seen[2] = greatest(a, n);
                OK(gpu_ops->swiglu_cache_fwd(gg, gu, DT_BF16, &noted[0], &ggq, &noted[1], &guq, &noted[2], &gaq, gpu));
                compare_parts("cached g", &row, &gq, &ggq);
                compare_parts("cached u", &row, &uq, &guq);
                compare_parts("cached swiglu", &plain, &aq, &gaq);
                OK(gpu_ops->dequantize(&ggq, gg, DT_BF16, gpu));
                OK(gpu_ops->dequantize(&guq, gu, DT_BF16, gpu));
                OK(gpu_ops->swiglu_fwd(gg, gu, ga, DT_BF16, T, I, gpu));
                OK(gpu_ops->swiglu_bwd(gg, gu, gda, DT_BF16, gd, ge, DT_BF16, T, I, NULL, NULL, NULL, NULL, gpu));
                device_bf16(a, ga, n), device_bf16(d, gd, n), device_bf16(e, ge, n);
                OK(ops->quantize(a, DT_BF16, &col, &aq, stream));
                OK(ops->quantize(d, DT_BF16, &both, &dg, stream));
                OK(ops->quantize(e, DT_BF16, &both, &du, stream));
                seen[3] = greatest(a, n), seen[4] = greatest(d, n), seen[5] = greatest(e, n);
                OK(gpu_ops->swiglu_cached_bwd(&ggq, &guq, gda, DT_BF16, &noted[3], &gaq, &noted[4], &gdg, &noted[5], &gdu, gpu));
                compare("amaxes noted", seen, gseen, DT_F32, 6, 0, 0);
                compare_parts("swiglu again", &col, &aq, &gaq);
                compare_parts("cached dg", &both, &dg, &gdg);
                compare_parts("cached du", &both, &du, &gdu);
                xfree(g), xfree(u), xfree(da), xfree(a), xfree(d), xfree(e), down(gg), down(gu), down(gda), down(ga), down(gd), down(ge), down(gseen);
                qtensor_free(&gq), qtensor_free(&uq), qtensor_free(&aq), qtensor_free(&dg), qtensor_free(&du);
                down_parts(&ggq), down_parts(&guq), down_parts(&gaq), down_parts(&gdg), down_parts(&gdu);
        }
        both_close();
}

/* Norm and quantiser in one operation beside the device's own two. */
static void norm_quant_case(const void *gx, const dev_real *gw, int64_t T, int64_t H) {
        const struct quant_spec q = { .scaling = Q_1X128, .dtype = DT_E4M3, .want_row = true, .want_col = true };
        uint16_t *y = fresh((size_t)(T * H) * 2), *x = xalloc((size_t)(T * H) * 2);
        void *gy = up(y, (size_t)(T * H) * 2), *rstd = up(y, (size_t)T * 4), *gx2;
        struct qtensor host = qtensor_new(&q, T, H), one, two;

        memset(host.row_scale, 0, part_bytes(&q, T, H, 1)), memset(host.col_scale, 0, part_bytes(&q, T, H, 3));
        one = up_parts(&q, &host), two = up_parts(&q, &host);
        OK(gpu_ops->copy_out(x, gx, (size_t)(T * H) * 2, gpu));
        OK(gpu_ops->stream_sync(gpu));
        gx2 = up(x, (size_t)(T * H) * 2);
        OK(gpu_ops->rmsnorm_fwd(gx2, gx2, NULL, gw, 1e-5, gy, rstd, DT_BF16, T, H, gpu));
        OK(gpu_ops->quantize(gy, DT_BF16, &q, &one, gpu));
        OK(gpu_ops->rmsnorm_quant_fwd(gx2, gx2, NULL, gw, 1e-5, NULL, rstd, DT_BF16, T, H, &q, &two, gpu));
        OK(gpu_ops->copy_out(host.row, one.row, (size_t)(T * H), gpu));
        OK(gpu_ops->copy_out(host.col, one.col, (size_t)(T * H), gpu));
        OK(gpu_ops->copy_out(host.row_scale, one.row_scale, part_bytes(&q, T, H, 1), gpu));
        OK(gpu_ops->copy_out(host.col_scale, one.col_scale, part_bytes(&q, T, H, 3), gpu));
        OK(gpu_ops->stream_sync(gpu));
        compare_parts("norm quantised", &q, &host, &two);
        xfree(y), xfree(x), down(gy), down(rstd), down(gx2), qtensor_free(&host), down_parts(&one), down_parts(&two);
}

TEST(norm) {
        static const int64_t shapes[][2] = { { 1, 16 }, { 5, 100 }, { 300, 768 }, { 9, 4096 } };

        both_open();
        for (int k = 0; k < 4; k++) {
                const int64_t T = shapes[k][0], H = shapes[k][1], n = T * H;
                const size_t bytes = (size_t)n * 2;
                uint16_t *x = mixed_bf16(n, 0), *d = mixed_bf16(n, 0), *y = fresh(bytes), *dy = mixed_bf16(n, 0), *dr = mixed_bf16(n, 0);
                dev_real *w = random_reals(H, 1), *rstd = fresh((size_t)T * 4), *dw = random_reals(H, 1);
                void *gx = up(x, bytes), *gd = up(d, bytes), *gy = up(y, bytes), *gdy = up(dy, bytes), *gdr = up(dr, bytes), *gw = up(w, (size_t)H * 4), *grstd = up(rstd, (size_t)T * 4),
                     *gdw = up(dw, (size_t)H * 4);

                OK(gpu_ops->rmsnorm_fwd(gy, gx, NULL, gw, 1e-5, NULL, grstd, DT_BF16, T, H, gpu));
                compare("norm residual of nothing added", x, gy, DT_BF16, n, 0, 0);
                OK(ops->rmsnorm_fwd(y, x, d, w, 1e-5, NULL, rstd, DT_BF16, T, H, stream));
                OK(gpu_ops->rmsnorm_fwd(gy, gx, gd, gw, 1e-5, NULL, grstd, DT_BF16, T, H, gpu));
                compare("norm residual elsewhere", y, gy, DT_BF16, n, 0, 0);
                OK(ops->rmsnorm_fwd(x, x, d, w, 1e-5, y, rstd, DT_BF16, T, H, stream));
                OK(gpu_ops->rmsnorm_fwd(gx, gx, gd, gw, 1e-5, gy, grstd, DT_BF16, T, H, gpu));
                compare("norm residual", x, gx, DT_BF16, n, 0, 0);
                compare("norm rstd", rstd, grstd, DT_F32, T, 1e-6, 0);
                compare("norm y", y, gy, DT_BF16, n, 0x1p-7, 0);
                OK(ops->rmsnorm_bwd(dr, dw, dy, DT_BF16, x, w, rstd, DT_BF16, T, H, stream));
                OK(gpu_ops->rmsnorm_bwd(gdr, gdw, gdy, DT_BF16, gx, gw, grstd, DT_BF16, T, H, gpu));
                compare("norm dresidual", dr, gdr, DT_BF16, n, 0x1p-7, 1e-4);
                compare("norm dw", dw, gdw, DT_F32, H, 1e-5, 1e-4);
                norm_quant_case(gx, gw, T, H);
                xfree(x), xfree(d), xfree(y), xfree(dy), xfree(dr), xfree(w), xfree(rstd), xfree(dw);
                down(gx), down(gd), down(gy), down(gdy), down(gdr), down(gw), down(grstd), down(gdw);
        }
        both_close();
}

/* known: the backend is told the bounds of documents and may take another way, twice with the same bits. */
static void attention_case(int32_t T, int32_t longest, int64_t Hq, int64_t Hkv, int64_t D, bool known) {
        const int64_t nq = T * Hq * D, nk = T * Hkv * D;
        const size_t bq = (size_t)nq * 2, bk = (size_t)nk * 2;
        struct doc_bounds docs = docs_new(T, longest), gdocs = docs_up(&docs);
        uint16_t *q = mixed_bf16(nq, 0), *k = mixed_bf16(nk, 0), *v = mixed_bf16(nk, 0), *dout = mixed_bf16(nq, 0), *out = fresh(bq), *dq = fresh(bq), *dk = fresh(bk), *dv = fresh(bk);
        dev_real *lse = fresh((size_t)(T * Hq) * 4);
        void *gq = up(q, bq), *gk = up(k, bk), *gv = up(v, bk), *gdout = up(dout, bq), *gout = up(out, bq), *gdq = up(dq, bq), *gdk = up(dk, bk), *gdv = up(dv, bk), *glse = up(lse, (size_t)(T * Hq) * 4);
        const size_t room = gpu_ops->attention_workspace(T, Hq, Hkv, D);
        void *zero = xalloc(room), *work = up(zero, room);

        printf("  attention T %d documents %d heads %lld/%lld of %lld%s\n", T, docs.n, (long long)Hq, (long long)Hkv, (long long)D, known ? ", bounds known" : "");
        gdocs.host_cu = known ? docs.cu : NULL;
        OK(ops->rope(q, k, &docs, 10000, Hq, Hkv, D, false, DT_BF16, stream));
        OK(gpu_ops->rope(gq, gk, &gdocs, 10000, Hq, Hkv, D, false, DT_BF16, gpu));
        compare("rope q", q, gq, DT_BF16, nq, 0x1p-7, 1e-5);
        compare("rope k", k, gk, DT_BF16, nk, 0x1p-7, 1e-5);
        OK(ops->attention_fwd(q, k, v, &docs, out, lse, Hq, Hkv, D, DT_BF16, NULL, stream));
        OK(gpu_ops->copy_in(gq, q, bq, gpu));
        OK(gpu_ops->copy_in(gk, k, bk, gpu));
        OK(gpu_ops->attention_fwd(gq, gk, gv, &gdocs, gout, glse, Hq, Hkv, D, DT_BF16, work, gpu));
        compare("attention out", out, gout, DT_BF16, nq, 0x1p-6, 0.01);
        if (!known)
                compare("attention lse", lse, glse, DT_F32, T * Hq, 1e-5, 1e-4);
        OK(ops->attention_bwd(q, k, v, out, lse, dout, &docs, dq, dk, dv, Hq, Hkv, D, DT_BF16, NULL, stream));
        if (!known)
                OK(gpu_ops->copy_in(gout, out, bq, gpu));
        OK(gpu_ops->attention_bwd(gq, gk, gv, gout, glse, gdout, &gdocs, gdq, gdk, gdv, Hq, Hkv, D, DT_BF16, work, gpu));
        compare("attention dq", dq, gdq, DT_BF16, nq, 0x1p-5, 0.03);
        compare("attention dk", dk, gdk, DT_BF16, nk, 0x1p-5, 0.05);
        compare("attention dv", dv, gdv, DT_BF16, nk, 0x1p-5, 0.05);
        OK(gpu_ops->copy_out(dq, gdq, bq, gpu));
        OK(gpu_ops->copy_out(dk, gdk, bk, gpu));
        OK(gpu_ops->attention_bwd(gq, gk, gv, gout, glse, gdout, &gdocs, gdq, gdk, gdv, Hq, Hkv, D, DT_BF16, work, gpu));
        compare("attention dq again", dq, gdq, DT_BF16, nq, 0, 0);
        compare("attention dk again", dk, gdk, DT_BF16, nk, 0, 0);
        OK(ops->rope(dq, dk, &docs, 10000, Hq, Hkv, D, true, DT_BF16, stream));
        xfree((void *)(uintptr_t)docs.cu), xfree((void *)(uintptr_t)docs.pos), xfree((void *)(uintptr_t)docs.doc);
        down((void *)(uintptr_t)gdocs.cu), down((void *)(uintptr_t)gdocs.pos), down((void *)(uintptr_t)gdocs.doc);
        xfree(q), xfree(k), xfree(v), xfree(dout), xfree(out), xfree(dq), xfree(dk), xfree(dv), xfree(lse), xfree(zero);
        down(gq), down(gk), down(gv), down(gdout), down(gout), down(gdq), down(gdk), down(gdv), down(glse), down(work);
}

TEST(attention) {
        both_open();
        attention_case(1, 1, 1, 1, 64, false);
        attention_case(64, 64, 2, 2, 64, false);
        attention_case(130, 40, 4, 2, 16, false);
        attention_case(300, 300, 4, 1, 64, false);
        attention_case(517, 200, 2, 2, 128, false);
        attention_case(200, 3, 3, 3, 32, false);
        attention_case(190, 190, 2, 1, 96, false);
        attention_case(1024, -256, 2, 2, 128, true);
        attention_case(768, -768, 4, 1, 64, true);
        attention_case(600, -200, 2, 2, 128, true);
        attention_case(1500, 700, 2, 2, 128, true);
        attention_case(1100, 900, 4, 2, 64, true);
        attention_case(700, 20, 2, 2, 64, true);
        both_close();
}

TEST(embedding_and_loss) {
        static const int64_t shapes[][3] = { { 1, 16, 10 }, { 300, 72, 50 }, { 600, 256, 1000 } };

        both_open();
        for (int k = 0; k < 6; k++) {
                const int64_t T = shapes[k % 3][0], H = shapes[k % 3][1], V = shapes[k % 3][2], v0 = k < 3 ? 0 : V / 2;
                uint16_t *table = mixed_bf16(V * H, 0), *out = fresh((size_t)(T * H) * 2), *dl = fresh((size_t)(T * V) * 2);
                dev_real *dt = random_reals(V * H, 1), *logits = random_reals(T * V, 3), *max = fresh((size_t)T * 4), *sum = fresh((size_t)T * 4), *target = fresh((size_t)T * 4);
                int32_t *ids = xalloc((size_t)T * 4), *labels = xalloc((size_t)T * 4);
                float loss = 0.5f;
                void *gtable = up(table, (size_t)(V * H) * 2), *gout = up(out, (size_t)(T * H) * 2), *gdl = up(dl, (size_t)(T * V) * 2), *gdt = up(dt, (size_t)(V * H) * 4);
                void *glogits = up(logits, (size_t)(T * V) * 4), *gmax = up(max, (size_t)T * 4), *gsum = up(sum, (size_t)T * 4), *gtarget = up(target, (size_t)T * 4), *gloss = up(&loss, 4), *gids, *glabels;

                for (int64_t t = 0; t < T; t++) {
                        ids[t] = (int32_t)rng_in(0, t % 3 ? V + v0 - 1 : v0);
                        labels[t] = t % 5 == 4 ? -1 : (int32_t)rng_in(0, V + v0 - 1);
                }
                gids = up(ids, (size_t)T * 4), glabels = up(labels, (size_t)T * 4);
                OK(ops->embed_fwd(table, ids, out, DT_BF16, T, H, v0, V, stream));
                OK(gpu_ops->embed_fwd(gtable, gids, gout, DT_BF16, T, H, v0, V, gpu));
                compare("embed", out, gout, DT_BF16, T * H, 0, 0);
                OK(ops->embed_bwd(dt, ids, out, DT_BF16, T, H, v0, V, stream));
                OK(gpu_ops->embed_bwd(gdt, gids, gout, DT_BF16, T, H, v0, V, gpu));
                compare("embed gradient", dt, gdt, DT_F32, V * H, 0, 0);
                OK(ops->ce_max(logits, DT_F32, max, T, V, stream));
                OK(gpu_ops->ce_max(glogits, DT_F32, gmax, T, V, gpu));
                compare("ce max", max, gmax, DT_F32, T, 0, 0);
                OK(ops->ce_sum(logits, DT_F32, max, labels, sum, target, T, v0, V, stream));
                OK(gpu_ops->ce_sum(glogits, DT_F32, gmax, glabels, gsum, gtarget, T, v0, V, gpu));
                compare("ce sum", sum, gsum, DT_F32, T, 1e-6, 0);
                compare("ce target", target, gtarget, DT_F32, T, 0, 0);
                OK(ops->ce_bwd(logits, DT_F32, max, sum, target, labels, 0.125, &loss, dl, DT_BF16, T, v0, V, stream));
                OK(gpu_ops->ce_bwd(glogits, DT_F32, gmax, gsum, gtarget, glabels, 0.125, gloss, gdl, DT_BF16, T, v0, V, gpu));
                compare("loss", &loss, gloss, DT_F32, 1, 1e-6, 0);
                compare("ce gradient", dl, gdl, DT_BF16, T * V, 0x1p-7, 1e-9);
                if (v0 == 0 && V % 8 == 0) {
                        const float half = 0.5f;

                        OK(gpu_ops->copy_in(gloss, &half, 4, gpu));
                        OK(gpu_ops->zero(gdl, (size_t)(T * V) * 2, gpu));
                        OK(gpu_ops->cross_entropy(glogits, DT_F32, glabels, 0.125, gloss, gdl, DT_BF16, gmax, T, V, gpu));
                        compare("loss at once", &loss, gloss, DT_F32, 1, 1e-6, 0);
                        compare("ce gradient at once", dl, gdl, DT_BF16, T * V, 0x1p-7, 1e-8);
                }
                xfree(table), xfree(out), xfree(dl), xfree(dt), xfree(logits), xfree(max), xfree(sum), xfree(target), xfree(ids), xfree(labels);
                down(gtable), down(gout), down(gdl), down(gdt), down(glogits), down(gmax), down(gsum), down(gtarget), down(gloss), down(gids), down(glabels);
        }
        both_close();
}

TEST_MAIN("gpu-layers")
