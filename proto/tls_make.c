/* SPDX-License-Identifier: Apache-2.0 */
/* A CA and certificates, by OpenSSL's library (RFC 5280 for the extensions). */
#include <errno.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "proto/tls.h"

#define PEM_MAX (256u * 1024)
#define CLOCK_SKEW_S 300 /* hosts' clocks differ: valid from a little earlier */
#define DAYS_MAX 36500

DEFINE_CLEANUP(EVP_PKEY *, EVP_PKEY_free);
DEFINE_CLEANUP(X509 *, X509_free);
DEFINE_CLEANUP(BIO *, BIO_free_all);

static int openssl_error(struct error *e, const char *what) {
        char text[256];

        ERR_error_string_n(ERR_get_error(), text, sizeof(text));
        ERR_clear_error();
        return error_set(e, -EIO, "%s: %s", what, text);
}

static int write_bio(BIO *b, const char *path, mode_t mode, struct error *e) {
        char *data;
        long len = BIO_get_mem_data(b, &data);

        return file_write_atomic(path, data, (size_t)len, mode, e);
}

static int write_cert(X509 *x, const char *path, struct error *e) {
        _cleanup_(BIO_free_allp) BIO *b = BIO_new(BIO_s_mem());

        if (!b || !PEM_write_bio_X509(b, x))
                return openssl_error(e, path);
        return write_bio(b, path, 0644, e);
}

static int write_key(EVP_PKEY *k, const char *path, struct error *e) {
        _cleanup_(BIO_free_allp) BIO *b = BIO_new(BIO_s_secmem());

        if (!b || !PEM_write_bio_PrivateKey(b, k, NULL, NULL, 0, NULL, NULL))
                return openssl_error(e, path);
        return write_bio(b, path, 0600, e);
}

static int add_extension(X509 *x, X509 *issuer, int nid, const char *value, struct error *e) {
        X509V3_CTX ctx;
        X509_EXTENSION *ext;
        int ok;

        X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
        ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
        if (!ext)
                return openssl_error(e, value);
        ok = X509_add_ext(x, ext, -1);
        X509_EXTENSION_free(ext);
        return ok ? 0 : openssl_error(e, value);
}

static int set_basics(X509 *x, EVP_PKEY *key, const char *cn, int days, struct error *e) {
        X509_NAME *name = X509_get_subject_name(x);
        unsigned char serial[16];
        BIGNUM *bn;
        int ok;

        if (RAND_bytes(serial, sizeof(serial)) != 1)
                return openssl_error(e, "serial number");
        serial[0] &= 0x7f; /* positive */
        serial[0] |= 0x40;
        bn = BN_bin2bn(serial, sizeof(serial), NULL);
        ok = bn && BN_to_ASN1_INTEGER(bn, X509_get_serialNumber(x)) && X509_set_version(x, X509_VERSION_3) &&
             X509_gmtime_adj(X509_getm_notBefore(x), -CLOCK_SKEW_S) && X509_time_adj_ex(X509_getm_notAfter(x), days, 0, NULL) &&
             X509_set_pubkey(x, key) && X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const unsigned char *)cn, -1, -1, 0);
        BN_free(bn);
        return ok ? 0 : openssl_error(e, cn);
}

static int check_days(int days, struct error *e) {
        if (days < 1 || days > DAYS_MAX)
                return error_set(e, -EINVAL, "days: found %d, expected 1 to %d", days, DAYS_MAX);
        return 0;
}

static int refuse_existing(const char *path, struct error *e) {
        struct stat st;

        if (lstat(path, &st) == 0)
                return error_set(e, -EEXIST, "%s is there already; it is not replaced", path);
        return 0;
}

int tls_make_ca(const char *dir, const char *name, int days, struct error *e) {
        _cleanup_free_ char *pem = file_path("%s/ca.pem", dir), *keyfile = file_path("%s/ca.key", dir);
        _cleanup_(EVP_PKEY_freep) EVP_PKEY *key = EVP_EC_gen("P-256");
        _cleanup_(X509_freep) X509 *x = X509_new();
        int r;

        if (!pem || !keyfile || !x)
                return error_set(e, -ENOMEM, "no memory");
        if (!key)
                return openssl_error(e, "key");
        r = check_days(days, e);
        if (r == 0)
                r = refuse_existing(pem, e);
        if (r == 0)
                r = refuse_existing(keyfile, e);
        if (r == 0)
                r = file_mkdir_p(dir, 0700, e);
        if (r == 0)
                r = set_basics(x, key, name, days, e);
        if (r < 0)
                return r;
        if (!X509_set_issuer_name(x, X509_get_subject_name(x)))
                return openssl_error(e, "issuer");
        r = add_extension(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:0", e);
        if (r == 0)
                r = add_extension(x, x, NID_key_usage, "critical,keyCertSign,cRLSign", e);
        if (r == 0)
                r = add_extension(x, x, NID_subject_key_identifier, "hash", e);
        if (r == 0 && !X509_sign(x, key, EVP_sha256()))
                r = openssl_error(e, "signature");
        if (r == 0)
                r = write_key(key, keyfile, e);
        if (r == 0)
                r = write_cert(x, pem, e);
        return r;
}

static int read_ca(const char *dir, X509 **ret_cert, EVP_PKEY **ret_key, struct error *e) {
        _cleanup_free_ char *pem = file_path("%s/ca.pem", dir), *keyfile = file_path("%s/ca.key", dir);
        _cleanup_free_ char *cert_text = NULL;
        char *key_text = NULL;
        size_t cert_len, key_len = 0;
        BIO *b;
        int r;

        if (!pem || !keyfile)
                return error_set(e, -ENOMEM, "no memory");
        r = file_read(pem, PEM_MAX, &cert_text, &cert_len, e);
        if (r == 0)
                r = file_read(keyfile, PEM_MAX, &key_text, &key_len, e);
        if (r < 0)
                return r;
        b = BIO_new_mem_buf(cert_text, (int)cert_len);
        *ret_cert = b ? PEM_read_bio_X509(b, NULL, NULL, NULL) : NULL;
        BIO_free(b);
        b = BIO_new_mem_buf(key_text, (int)key_len);
        *ret_key = b ? PEM_read_bio_PrivateKey(b, NULL, NULL, NULL) : NULL;
        BIO_free(b);
        if (key_text)
                explicit_bzero(key_text, key_len);
        free(key_text);
        if (!*ret_cert || !*ret_key)
                return openssl_error(e, *ret_cert ? keyfile : pem);
        if (X509_check_private_key(*ret_cert, *ret_key) != 1)
                return error_set(e, -EINVAL, "%s is not the key of %s", keyfile, pem);
        return 0;
}

/* "admin", "controller", "user:NAME", "node:NAME"; the name goes into file names and into gRPC's peer, so it is plain. */
static int check_cn(const char *cn, struct error *e) {
        const char *name = strchr(cn, ':');

        if (strcmp(cn, "admin") == 0 || strcmp(cn, "controller") == 0)
                return 0;
        if ((strncmp(cn, "user:", 5) != 0 && strncmp(cn, "node:", 5) != 0) || !name[1] || strlen(cn) > 64 || name[1] == '.' ||
            strspn(name + 1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != strlen(name + 1))
                return error_set(e, -EINVAL, "name '%s': expected admin, controller, user:NAME or node:NAME (letters, digits, . _ -; 64 in all)", cn);
        return 0;
}

static int san_of(const char *const *ips, char *buf, size_t size, struct error *e) {
        size_t at = 0;

        for (; ips && *ips; ips++) {
                ASN1_OCTET_STRING *ip = a2i_IPADDRESS(*ips);
                int n;

                if (!ip)
                        return error_set(e, -EINVAL, "address '%s': expected an IP address", *ips);
                ASN1_OCTET_STRING_free(ip);
                n = snprintf(buf + at, size - at, "%sIP:%s", at ? "," : "", *ips);
                if (n < 0 || (size_t)n >= size - at)
                        return error_set(e, -E2BIG, "too many IP addresses for one certificate");
                at += (size_t)n;
        }
        return 0;
}

static int sign_cert(X509 *x, X509 *ca, EVP_PKEY *ca_key, const char *san, struct error *e) {
        int r;

        if (!X509_set_issuer_name(x, X509_get_subject_name(ca)))
                return openssl_error(e, "issuer");
        r = add_extension(x, ca, NID_basic_constraints, "critical,CA:FALSE", e);
        if (r == 0)
                r = add_extension(x, ca, NID_key_usage, "critical,digitalSignature", e);
        if (r == 0)
                r = add_extension(x, ca, NID_ext_key_usage, "serverAuth,clientAuth", e);
        if (r == 0)
                r = add_extension(x, ca, NID_subject_key_identifier, "hash", e);
        if (r == 0)
                r = add_extension(x, ca, NID_authority_key_identifier, "keyid", e);
        if (r == 0 && san[0])
                r = add_extension(x, ca, NID_subject_alt_name, san, e);
        if (r == 0 && !X509_sign(x, ca_key, EVP_sha256()))
                r = openssl_error(e, "signature");
        return r;
}

/* -EEXIST when there is a certificate of this very name; a file of another name is never replaced. */
static int refuse_existing_cert(const char *pem, const char *keyfile, const char *cn, struct error *e) {
        _cleanup_(X509_freep) X509 *x = NULL;
        _cleanup_fclose_ FILE *f = fopen(pem, "re");
        char found[128] = "";

        if (!f)
                return refuse_existing(keyfile, e);
        x = PEM_read_X509(f, NULL, NULL, NULL);
        if (x)
                X509_NAME_get_text_by_NID(X509_get_subject_name(x), NID_commonName, found, sizeof(found));
        ERR_clear_error();
        if (strcmp(found, cn) != 0)
                return error_set(e, -EINVAL, "%s: found a certificate of '%s', expected none or one of '%s'", pem, found, cn);
        return error_set(e, -EEXIST, "%s is there already; it is not replaced", pem);
}

int tls_make_cert(const char *dir, const char *cn, const char *const *ips, int days, struct error *e) {
        _cleanup_(EVP_PKEY_freep) EVP_PKEY *key = NULL, *ca_key = NULL;
        _cleanup_(X509_freep) X509 *x = X509_new(), *ca = NULL;
        _cleanup_free_ char *pem = NULL, *keyfile = NULL;
        const char *name = strchr(cn, ':') ? strchr(cn, ':') + 1 : cn;
        char san[1024] = "";
        int r;

        pem = file_path("%s/%s.pem", dir, name);
        keyfile = file_path("%s/%s.key", dir, name);
        if (!x || !pem || !keyfile)
                return error_set(e, -ENOMEM, "no memory");
        r = check_cn(cn, e);
        if (r == 0)
                r = check_days(days, e);
        if (r == 0 && (strcmp(name, "ca") == 0 || (name != cn && (strcmp(name, "admin") == 0 || strcmp(name, "controller") == 0))))
                r = error_set(e, -EINVAL, "name '%s': its files would be those of another", cn);
        if (r == 0)
                r = refuse_existing_cert(pem, keyfile, cn, e);
        if (r == 0)
                r = san_of(ips, san, sizeof(san), e);
        if (r == 0)
                r = read_ca(dir, &ca, &ca_key, e);
        if (r < 0)
                return r;
        key = EVP_EC_gen("P-256");
        if (!key)
                return openssl_error(e, "key");
        r = set_basics(x, key, cn, days, e);
        if (r == 0)
                r = sign_cert(x, ca, ca_key, san, e);
        if (r == 0)
                r = write_key(key, keyfile, e);
        if (r == 0)
                r = write_cert(x, pem, e);
        return r;
}
