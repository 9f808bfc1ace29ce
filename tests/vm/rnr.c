/* SPDX-License-Identifier: Apache-2.0 */
/* rnr DEVICE GID-INDEX port: what libibverbs says of the first port, "GBIT/S GID". rnr DEVICE GID-INDEX: a message to a queue pair that has nothing to receive it into, with no retries: the device counts that a receiver was not ready and the sender gave up. */
#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct end {
        struct ibv_context *context;
        struct ibv_pd *pd;
        struct ibv_cq *cq;
        struct ibv_qp *qp;
        struct ibv_mr *mr;
        char message[64];
};

static struct ibv_context *open_device(const char *name) {
        struct ibv_device **list = ibv_get_device_list(NULL);
        struct ibv_context *c = NULL;

        for (size_t i = 0; list && list[i]; i++)
                if (strcmp(ibv_get_device_name(list[i]), name) == 0)
                        c = ibv_open_device(list[i]);
        if (list)
                ibv_free_device_list(list);
        return c;
}

/* Connected to itself. */
static bool connect_qp(struct ibv_qp *qp, const union ibv_gid *gid, uint8_t gid_index) {
        struct ibv_qp_attr a = { .qp_state = IBV_QPS_INIT, .port_num = 1 };
        bool ok = ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0;

        a = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = qp->qp_num, .max_dest_rd_atomic = 1, .min_rnr_timer = 1 };
        a.ah_attr = (struct ibv_ah_attr){ .is_global = 1, .port_num = 1, .grh = { .dgid = *gid, .sgid_index = gid_index, .hop_limit = 1 } };
        ok = ok && ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) == 0;
        a = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTS, .timeout = 14, .max_rd_atomic = 1 };
        return ok && ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC) == 0;
}

static const char *give_up(struct end *e, const char *device, uint8_t gid_index) {
        struct ibv_qp_init_attr init = { .qp_type = IBV_QPT_RC, .sq_sig_all = 1, .cap = { 1, 1, 1, 1, 0 } };
        struct ibv_sge sge = { .addr = (uintptr_t)e->message, .length = sizeof(e->message) };
        struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND }, *bad;
        union ibv_gid gid;
        struct ibv_wc wc;
        int n = 0;

        e->context = open_device(device);
        e->pd = e->context ? ibv_alloc_pd(e->context) : NULL;
        e->cq = e->pd ? ibv_create_cq(e->context, 4, NULL, NULL, 0) : NULL;
        init.send_cq = init.recv_cq = e->cq;
        e->qp = e->cq ? ibv_create_qp(e->pd, &init) : NULL;
        e->mr = e->qp ? ibv_reg_mr(e->pd, e->message, sizeof(e->message), IBV_ACCESS_LOCAL_WRITE) : NULL;
        if (!e->mr || ibv_query_gid(e->context, 1, gid_index, &gid) != 0 || !connect_qp(e->qp, &gid, gid_index))
                return "cannot make a queue pair";
        sge.lkey = e->mr->lkey;
        if (ibv_post_send(e->qp, &wr, &bad) != 0)
                return "cannot send";
        while (n == 0)
                n = ibv_poll_cq(e->cq, 1, &wc);
        return n < 0 ? "no completion" : wc.status == IBV_WC_RNR_RETRY_EXC_ERR ? NULL : ibv_wc_status_str(wc.status);
}

/* Speeds and widths of the InfiniBand architecture's PortInfo. */
static const char *tell_port(struct end *e, const char *device, uint8_t gid_index) {
        static const double gbs[] = { 2.5, 5, 10, 10, 14, 25, 50, 100 }; /* a lane's, by bit */
        static const int lanes[] = { 1, 4, 8, 12, 2 };
        struct ibv_port_attr p;
        union ibv_gid gid;
        char text[INET6_ADDRSTRLEN];
        size_t speed = 0, width = 0;

        e->context = open_device(device);
        if (!e->context || ibv_query_port(e->context, 1, &p) != 0 || ibv_query_gid(e->context, 1, gid_index, &gid) != 0)
                return "cannot ask it";
        while (speed + 1 < sizeof(gbs) / sizeof(gbs[0]) && p.active_speed >> (speed + 1))
                speed++;
        while (width + 1 < sizeof(lanes) / sizeof(lanes[0]) && p.active_width >> (width + 1))
                width++;
        printf("%g %s\n", gbs[speed] * lanes[width], inet_ntop(AF_INET6, gid.raw, text, sizeof(text)));
        return NULL;
}

int main(int argc, char **argv) {
        struct end e = { 0 };
        const char *wrong;

        if (argc != 3 && (argc != 4 || strcmp(argv[3], "port") != 0)) {
                fprintf(stderr, "usage: rnr DEVICE GID-INDEX [port]\n");
                return 2;
        }
        wrong = (argc == 4 ? tell_port : give_up)(&e, argv[1], (uint8_t)strtoul(argv[2], NULL, 10));
        if (e.mr)
                (void)ibv_dereg_mr(e.mr);
        if (e.qp)
                (void)ibv_destroy_qp(e.qp);
        if (e.cq)
                (void)ibv_destroy_cq(e.cq);
        if (e.pd)
                (void)ibv_dealloc_pd(e.pd);
        if (e.context)
                (void)ibv_close_device(e.context);
        if (wrong)
                fprintf(stderr, "rnr: %s: %s\n", argv[1], wrong);
        return wrong ? 1 : 0;
}
