/* SHA-256 (FIPS 180-4), by which the outputs of two agents are compared. */
#ifndef ARCHSEARCH_SHA256_H
#define ARCHSEARCH_SHA256_H

#include <stddef.h>

/* 64 hexadecimal digits and a NUL. */
void sha256_hex(const void *data, size_t bytes, char digest[65]);

#endif
