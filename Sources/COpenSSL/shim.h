// OpenSSL's macros and variadics as functions, and a BIO over plain memory. No logic lives here.
#pragma once
#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <string.h>

static inline int vmha_tls_only_13(SSL_CTX *context) {
  return SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) && SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION);
}
static inline long vmha_tls_no_session_cache(SSL_CTX *context) {
  return SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
}
/// Sent after the node's own certificate. Takes its own reference.
static inline long vmha_tls_add_chain(SSL_CTX *context, X509 *certificate) {
  return SSL_CTX_add1_chain_cert(context, certificate);
}
static inline EVP_PKEY *vmha_p256_key(void) { return EVP_EC_gen("P-256"); }
static inline long vmha_bio_contents(BIO *bio, char **bytes) { return BIO_get_mem_data(bio, bytes); }
static inline int vmha_certificate_count(STACK_OF(X509) *stack) { return stack ? sk_X509_num(stack) : 0; }
static inline X509 *vmha_certificate_at(STACK_OF(X509) *stack, int index) { return sk_X509_value(stack, index); }
static inline int vmha_error_reason(unsigned long error) { return ERR_GET_REASON(error); }
static inline int vmha_error_is_system(unsigned long error) { return ERR_SYSTEM_ERROR(error); }

/// Adds an extension in OpenSSL's configuration syntax. 1 = done.
static inline int vmha_add_extension(X509 *certificate, X509 *issuer, int nid, const char *value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, NULL, NULL, 0);
  X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
  if (!extension) return 0;
  int done = X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
  return done;
}

/// Bytes start..<end of `base` are waiting. The TLS object reads from one and writes to another; the sockets are used outside its lock.
typedef struct {
  unsigned char *base;
  size_t capacity, start, end;
} vmha_bytes;

static int vmha_bytes_write(BIO *bio, const char *data, size_t length, size_t *written) {
  vmha_bytes *bytes = (vmha_bytes *)BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  size_t room = bytes->capacity - bytes->end;
  if (room == 0) {
    BIO_set_retry_write(bio);
    *written = 0;
    return 0;
  }
  if (length > room) length = room;
  memcpy(bytes->base + bytes->end, data, length);
  bytes->end += length;
  *written = length;
  return 1;
}
static int vmha_bytes_read(BIO *bio, char *data, size_t length, size_t *count) {
  vmha_bytes *bytes = (vmha_bytes *)BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  size_t waiting = bytes->end - bytes->start;
  if (waiting == 0) {
    BIO_set_retry_read(bio);
    *count = 0;
    return 0;
  }
  if (length > waiting) length = waiting;
  memcpy(data, bytes->base + bytes->start, length);
  bytes->start += length;
  if (bytes->start == bytes->end) bytes->start = bytes->end = 0;
  *count = length;
  return 1;
}
static long vmha_bytes_control(BIO *bio, int command, long number, void *pointer) {
  (void)bio, (void)number, (void)pointer;
  return command == BIO_CTRL_FLUSH || command == BIO_CTRL_DUP;
}
static int vmha_bytes_create(BIO *bio) {
  BIO_set_init(bio, 1);
  return 1;
}
/// One for the whole process; NULL if memory is short.
static inline BIO_METHOD *vmha_bytes_method(void) {
  BIO_METHOD *method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "vmha bytes");
  if (!method) return NULL;
  BIO_meth_set_write_ex(method, vmha_bytes_write);
  BIO_meth_set_read_ex(method, vmha_bytes_read);
  BIO_meth_set_ctrl(method, vmha_bytes_control);
  BIO_meth_set_create(method, vmha_bytes_create);
  return method;
}
/// Connects the TLS object to both buffers, which must outlive it. 1 = done.
static inline int vmha_tls_attach(SSL *tls, const BIO_METHOD *method, vmha_bytes *in, vmha_bytes *out) {
  BIO *reader = BIO_new(method), *writer = BIO_new(method);
  if (!reader || !writer) {
    BIO_free(reader);
    BIO_free(writer);
    return 0;
  }
  BIO_set_data(reader, in);
  BIO_set_data(writer, out);
  SSL_set_bio(tls, reader, writer);
  return 1;
}

/// A 16-byte key, for many messages. 1 = done.
static inline int vmha_gmac_key(EVP_MAC_CTX *context, const void *key) {
  OSSL_PARAM parameters[2] = {
    OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_CIPHER, (char *)"AES-128-GCM", 0), OSSL_PARAM_construct_end()};
  return EVP_MAC_init(context, (const unsigned char *)key, 16, parameters);
}
/// 16 bytes of hash under the key of before, always with the same nonce. 1 = done.
static inline int vmha_gmac(EVP_MAC_CTX *context, const void *bytes, size_t count, void *hash) {
  unsigned char nonce[12] = {0};
  OSSL_PARAM parameters[2] = {
    OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_IV, nonce, sizeof nonce), OSSL_PARAM_construct_end()};
  size_t length = 0;
  return EVP_MAC_init(context, NULL, 0, parameters) && EVP_MAC_update(context, (const unsigned char *)bytes, count) &&
         EVP_MAC_final(context, (unsigned char *)hash, &length, 16) && length == 16;
}
