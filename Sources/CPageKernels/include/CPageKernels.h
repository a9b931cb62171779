#ifndef CPAGEKERNELS_H
#define CPAGEKERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Kernels over pages of 4096 bytes. None allocates, locks or fails. All are thread-safe.
//
// Each has a portable path. Faster ones are selected at run time by the processor's features. The
// environment variable VARVE_KERNELS forces one for all kernels but the checksum: portable, sse41,
// avx2, avx512 (x86-64), neon (aarch64). A path that is unknown or not supported by the processor
// is ignored.

/// The name of the path in use, as in VARVE_KERNELS.
const char *ckernels_path(void);

/// Forces a path; false if the name is unknown or the processor does not support it.
/// For tests and benchmarks; must not be called while other threads use a kernel.
bool ckernels_select(const char *path);

// MARK: - Digest

/// The BLAKE3-256 digest of `length` bytes (the plain hash mode, no key).
/// J. O'Connor et al., "BLAKE3: one function, fast everywhere", 2020.
void ckernels_blake3(const void *input, size_t length, uint8_t *digest);

/// The BLAKE3-256 digests of `count` inputs of `length` bytes each, 32 bytes a digest, in order.
/// The fast way for pages and nodes: inputs are hashed in parallel, one per vector lane.
/// Best called with 16 or more inputs: unused lanes of a path are wasted work.
void ckernels_blake3_many(const void *const *inputs, size_t length, size_t count,
                          uint8_t *digests);

// MARK: - Tests of contents

/// True if all bytes are zero. Any alignment and length.
bool ckernels_is_zero(const void *bytes, size_t length);

/// Sets flags[i] to 1 if the 4096 bytes of page i are all zero, else to 0.
void ckernels_zero_pages(const void *pages, size_t count, uint8_t *flags);

/// True if both hold the same bytes. Any alignment and length.
bool ckernels_is_equal(const void *left, const void *right, size_t length);

/// True if a sample of the bytes looks random and contains no repetition, so that compression would
/// save nothing. Encrypted and compressed data is like that.
///
/// A heuristic that affects only size: data misjudged as incompressible is stored raw. False below
/// 1024 bytes. Reads an eighth of the bytes, and much less of data that compresses well.
bool ckernels_is_incompressible(const void *bytes, size_t length);

// MARK: - Copy

/// Copies bytes that will not be read soon: past the caches where the processor supports it, so
/// that copying a guest's pages does not evict what the guest was using. The ranges must not
/// overlap. Any alignment and length.
///
/// On return all of it is visible to any thread to which the caller hands it.
void ckernels_stream_copy(void *to, const void *from, size_t length);

/// A piece of memory to copy.
struct ckernels_piece {
    const void *from;
    size_t length;
};

/// Copies pieces the same way, consecutively and without gaps; prefetches the start of the next
/// piece, which helps for pages scattered over a guest.
void ckernels_stream_copy_pieces(void *to, const struct ckernels_piece *pieces, size_t count);

/// Prefetches memory that is read and written soon. Never faults; any address.
static inline void ckernels_prefetch(const void *memory) {
    for (int line = 0; line < 4; line++)
        __builtin_prefetch((const char *)memory + 64 * line);
}

// MARK: - Checksum

/// CRC-32C (Castagnoli, reflected 0x82f63b78), continued from `crc`; 0 to begin. RFC 3720, B.4.
/// Uses the processor's instruction where available.
uint32_t ckernels_crc32c(uint32_t crc, const void *data, size_t length);

/// The same by table, for tests.
uint32_t ckernels_crc32c_portable(uint32_t crc, const void *data, size_t length);

#endif
