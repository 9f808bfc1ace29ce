/* SPDX-License-Identifier: Apache-2.0 */
/* gRPC's TLS credentials from files. */
#include "proto/tls.h"

#include <errno.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "proto/rpc_private.h"

#define PEM_MAX (256u * 1024)

struct pems {
        char *ca, *cert, *key;
        size_t key_len;
        grpc_ssl_pem_key_cert_pair pair; /* of these */
};

static void pems_done(struct pems *p) {
        if (p->key)
                explicit_bzero(p->key, p->key_len);
        free(p->ca);
        free(p->cert);
        free(p->key);
}

static int pems_read(const struct tls_files *f, struct pems *p, struct error *e) {
        size_t len;
        int r;

        if (!f->ca || !f->cert || !f->key)
                return error_set(e, -EINVAL, "TLS: expected a CA, a certificate and its key");
        r = file_read(f->ca, PEM_MAX, &p->ca, &len, e);
        if (r == 0)
                r = file_read(f->cert, PEM_MAX, &p->cert, &len, e);
        if (r == 0)
                r = file_read(f->key, PEM_MAX, &p->key, &p->key_len, e);
        p->pair = (grpc_ssl_pem_key_cert_pair){ .private_key = p->key, .cert_chain = p->cert };
        return r;
}

/* gRPC checked the chain and the address; a user's certificate of the same CA must not pass for the controller. */
static int verify_controller(const char *target, const char *pem, void *arg) {
        BIO *bio = BIO_new_mem_buf(pem, -1);
        X509 *x = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
        char cn[64] = "";
        int n = x ? X509_NAME_get_text_by_NID(X509_get_subject_name(x), NID_commonName, cn, sizeof(cn)) : -1;

        X509_free(x);
        BIO_free(bio);
        return n == (int)strlen("controller") && memcmp(cn, "controller", (size_t)n) == 0 ? 0 : 1;
}

int rpc_tls_server_credentials(const struct tls_files *f, grpc_server_credentials **ret, struct error *e) {
        _cleanup_(pems_done) struct pems p = { 0 };
        grpc_server_credentials *creds;
        int r = pems_read(f, &p, e);

        if (r < 0)
                return r;
        creds = grpc_ssl_server_credentials_create_ex(p.ca, &p.pair, 1, GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, NULL);
        if (!creds)
                return error_set(e, -EINVAL, "TLS: %s and %s are no certificate and key", f->cert, f->key);
        *ret = creds;
        return 0;
}

int rpc_tls_channel_credentials(const struct tls_files *f, grpc_channel_credentials **ret, struct error *e) {
        _cleanup_(pems_done) struct pems p = { 0 };
        grpc_ssl_verify_peer_options verify = { .verify_peer_callback = verify_controller };
        grpc_channel_credentials *creds;
        int r = pems_read(f, &p, e);

        if (r < 0)
                return r;
        creds = grpc_ssl_credentials_create_ex(p.ca, &p.pair, &verify, NULL);
        if (!creds)
                return error_set(e, -EINVAL, "TLS: %s and %s are no certificate and key", f->cert, f->key);
        *ret = creds;
        return 0;
}
