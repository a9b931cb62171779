// The BLAKE3 digest: scalar, and in 4, 8 or 16 vector lanes where the processor supports them.
//
// Digests do not depend on the path. Words are little-endian, like all supported targets.

#include "CPageKernels.h"
#include "path.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels load words as little-endian"
#endif

enum {
    BLAKE3_CHUNK_START = 1,
    BLAKE3_CHUNK_END = 2,
    BLAKE3_PARENT = 4,
    BLAKE3_ROOT = 8,
    // Subtrees on the stack: enough for 2^54 chunks.
    BLAKE3_DEPTH_MAX = 56,
};

static const uint32_t blake3_iv[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

// The order of message words in each round: repeated application of the paper's permutation.
static const uint8_t blake3_schedule[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},
    {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},
    {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

#define LANES 1
#define NAME(x) x##_1
#define TARGET
#define KEEP(x)
#define IN_MEMORY(m)
#include "blake3_lanes.h"

#if defined(__x86_64__)
#define TARGET_4 TARGET_SSE41
#define KEEP_4(x) __asm__("" : "+x"(x))
#define IN_MEMORY_4(m) __asm__ volatile("" : "+r"(m) : : "memory")
#elif defined(__aarch64__)
// 32 registers hold the state and the message.
#define TARGET_4
#define KEEP_4(x) __asm__("" : "+w"(x))
#define IN_MEMORY_4(m)
#endif

#if defined(TARGET_4)

#include "blake3_vectors.h"

#define LANES 4
#define NAME(x) x##_4
#define TARGET TARGET_4
#define KEEP(x) KEEP_4(x)
#define IN_MEMORY(m) IN_MEMORY_4(m)
#include "blake3_lanes.h"

#endif

#if defined(__x86_64__)

#include "blake3_avx2.h"

#define LANES 8
#define NAME(x) x##_8
#define TARGET TARGET_AVX2
#define KEEP(x)
#define IN_MEMORY(m)
#include "blake3_lanes.h"

// 32 registers, and a rotate instruction.
#define LANES 16
#define NAME(x) x##_16
#define TARGET TARGET_AVX512
#define KEEP(x)
#define IN_MEMORY(m)
#include "blake3_lanes.h"

#endif

typedef void hash_lanes(const uint8_t *const *inputs, size_t length, uint8_t *digests);

/// A way to hash `lanes` inputs at once.
struct width {
    size_t lanes;
    hash_lanes *hash;
};

/// The fastest width for the first of `count` inputs. Some lanes may be unused: a pass of four
/// lanes takes less time than two passes of one, and so on.
static struct width width_for(size_t count) {
#if defined(__x86_64__)
    int path = ckernels_chosen_path();
    if (path >= PATH_AVX512 && count > 8) return (struct width){16, hash_16};
    if (path >= PATH_AVX2 && count > 4) return (struct width){8, hash_8};
    if (path >= PATH_SSE41 && count > 1) return (struct width){4, hash_4};
#elif defined(__aarch64__)
    if (ckernels_chosen_path() >= PATH_NEON && count > 1) return (struct width){4, hash_4};
#endif
    return (struct width){1, hash_1};
}

void ckernels_blake3(const void *input, size_t length, uint8_t *digest) {
    // A non-null pointer is needed even for an empty input, so that it can be offset.
    const uint8_t *bytes = input ? input : (const uint8_t *)"";
    hash_1(&bytes, length, digest);
}

void ckernels_blake3_many(const void *const *inputs, size_t length, size_t count,
                          uint8_t *digests) {
    const uint8_t *const *rest = (const uint8_t *const *)inputs;
    while (count > 0) {
        struct width width = width_for(count);
        size_t used = width.lanes;
        if (count >= used) {
            width.hash(rest, length, digests);
        } else {
            // Unused lanes hash the first input again.
            const uint8_t *padded[16];
            uint8_t results[16 * 32];
            used = count;
            for (size_t i = 0; i < width.lanes; i++) padded[i] = rest[i < used ? i : 0];
            width.hash(padded, length, results);
            memcpy(digests, results, used * 32);
        }
        count -= used;
        rest += used;
        digests += used * 32;
    }
}
