#ifndef CPAGEKERNELS_H
#define CPAGEKERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Kernels over pages of 4096 bytes. None allocates, locks or fails. Any thread.
//
// Each has a portable path. Faster ones are picked at run time by what the processor can do; the
// environment variable VARVE_KERNELS (portable, avx2, avx512) forces one of the digest's paths, and
// is ignored if the processor lacks it.

/// The BLAKE3-256 digest of `length` bytes (the plain hash mode, no key).
/// J. O'Connor et al., "BLAKE3: one function, fast everywhere", 2020.
void ckernels_blake3(const void *input, size_t length, uint8_t *digest);

/// The BLAKE3-256 digests of `count` inputs of `length` bytes each, 32 bytes a digest, in order.
/// The fast way for pages and for nodes: inputs are hashed side by side, one in each vector lane.
void ckernels_blake3_many(const void *const *inputs, size_t length, size_t count,
                          uint8_t *digests);

/// The digest's path in use: "portable", "avx2" or "avx512".
const char *ckernels_path(void);

/// Forces a path of the digest; false if the name is unknown or the processor cannot do it.
/// For tests and benchmarks; not while other threads hash.
bool ckernels_select(const char *path);

/// Sets flags[i] to 1 if the 4096 bytes of page i are all zero, else to 0.
void ckernels_zero_pages(const void *pages, size_t count, uint8_t *flags);

/// CRC-32C (Castagnoli, reflected 0x82f63b78), going on from `crc`; 0 to begin. RFC 3720, B.4.
uint32_t ckernels_crc32c(uint32_t crc, const void *data, size_t length);

/// The same by table, for tests.
uint32_t ckernels_crc32c_portable(uint32_t crc, const void *data, size_t length);

#endif
