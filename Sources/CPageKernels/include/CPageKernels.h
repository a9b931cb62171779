#ifndef CPAGEKERNELS_H
#define CPAGEKERNELS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
void ckernels_blake3(const void *input, size_t length, uint8_t digest[32]);
void ckernels_blake3_many(const void *const *inputs, size_t length, size_t count, uint8_t *digests);
void ckernels_zero_pages(const void *pages, size_t count, uint8_t *flags);
uint32_t ckernels_crc32c(uint32_t crc, const void *data, size_t length);
void ckernels_copy(void *to, const void *from, size_t length);
#endif
