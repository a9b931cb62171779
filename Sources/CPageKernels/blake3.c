// The BLAKE3 digest: scalar, and in 8 or 16 vector lanes where the processor has them.
//
// Digests are equal whatever path is taken. Words are little-endian; so are all targets of ours.

#include "CPageKernels.h"

#include <stdatomic.h>
#include <stdlib.h>
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

// The order of message words in each round: the permutation of the paper, applied again and again.
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
#include "blake3_lanes.h"

#if defined(__x86_64__)

typedef uint32_t word_8 __attribute__((vector_size(32)));
typedef uint32_t word_16 __attribute__((vector_size(64)));

// Turns rows into columns: pairs of words, then of pairs, and so on.
static inline __attribute__((always_inline, target("avx2"))) void transpose_8(word_8 *r) {
    word_8 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            r[i + j] = __builtin_shufflevector(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + j + 2] =
                __builtin_shufflevector(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int j = 0; j < 4; j++) {
        word_8 low = r[j], high = r[j + 4];
        r[j] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 8, 9, 10, 11);
        r[j + 4] = __builtin_shufflevector(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

static inline __attribute__((always_inline, target("avx512f,avx512vl,avx512bw"))) void
transpose_16(word_16 *r) {
    word_16 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26,
                                       12, 28, 14, 30);
        t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11,
                                           27, 13, 29, 15, 31);
    }
    for (int i = 0; i < 16; i += 4) {
        for (int j = 0; j < 2; j++) {
            word_16 a = t[i + j], b = t[i + j + 2];
            r[i + j] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12,
                                               13, 28, 29);
            r[i + j + 2] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                                   27, 14, 15, 30, 31);
        }
    }
    for (int i = 0; i < 16; i += 8) {
        for (int j = 0; j < 4; j++) {
            word_16 a = r[i + j], b = r[i + j + 4];
            t[i + j] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24,
                                               25, 26, 27);
            t[i + j + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14,
                                                   15, 28, 29, 30, 31);
        }
    }
    for (int j = 0; j < 8; j++) {
        r[j] = __builtin_shufflevector(t[j], t[j + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20,
                                       21, 22, 23);
        r[j + 8] = __builtin_shufflevector(t[j], t[j + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25,
                                           26, 27, 28, 29, 30, 31);
    }
}

#define LANES 8
#define NAME(x) x##_8
#define TARGET __attribute__((target("avx2")))
#include "blake3_lanes.h"

#define LANES 16
#define NAME(x) x##_16
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw")))
#include "blake3_lanes.h"

#endif

enum { PATH_UNKNOWN, PATH_PORTABLE, PATH_AVX2, PATH_AVX512 };

static _Atomic int chosen_path = PATH_UNKNOWN;

static bool path_is_supported(int path) {
    if (path == PATH_PORTABLE) return true;
#if defined(__x86_64__)
    if (path == PATH_AVX2) return __builtin_cpu_supports("avx2");
    if (path == PATH_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
               && __builtin_cpu_supports("avx512bw");
#endif
    return false;
}

static int path_named(const char *name) {
    if (strcmp(name, "portable") == 0) return PATH_PORTABLE;
    if (strcmp(name, "avx2") == 0) return PATH_AVX2;
    if (strcmp(name, "avx512") == 0) return PATH_AVX512;
    return PATH_UNKNOWN;
}

static int path(void) {
    int known = atomic_load_explicit(&chosen_path, memory_order_relaxed);
    if (known != PATH_UNKNOWN) return known;
    const char *wanted = getenv("VARVE_KERNELS");
    known = wanted ? path_named(wanted) : PATH_UNKNOWN;
    if (known == PATH_UNKNOWN || !path_is_supported(known)) {
        known = PATH_AVX512;
        while (!path_is_supported(known)) known--;
    }
    atomic_store_explicit(&chosen_path, known, memory_order_relaxed);
    return known;
}

const char *ckernels_path(void) {
    switch (path()) {
    case PATH_AVX512: return "avx512";
    case PATH_AVX2: return "avx2";
    default: return "portable";
    }
}

bool ckernels_select(const char *name) {
    int wanted = path_named(name);
    if (wanted == PATH_UNKNOWN || !path_is_supported(wanted)) return false;
    atomic_store_explicit(&chosen_path, wanted, memory_order_relaxed);
    return true;
}

void ckernels_blake3(const void *input, size_t length, uint8_t *digest) {
    // A pointer is needed even for nothing, so that it can be offset.
    const uint8_t *bytes = input ? input : (const uint8_t *)"";
    hash_1(&bytes, length, digest);
}

void ckernels_blake3_many(const void *const *inputs, size_t length, size_t count,
                          uint8_t *digests) {
    const uint8_t *const *rest = (const uint8_t *const *)inputs;
#if defined(__x86_64__)
    int best = path();
    if (best == PATH_AVX512) {
        for (; count >= 16; count -= 16, rest += 16, digests += 16 * 32) {
            hash_16(rest, length, digests);
        }
    }
    if (best != PATH_PORTABLE) {
        // A few inputs are hashed faster with lanes left over than one after the other.
        while (count >= 3) {
            const uint8_t *padded[8];
            uint8_t results[8 * 32];
            size_t used = count < 8 ? count : 8;
            for (size_t i = 0; i < 8; i++) padded[i] = rest[i < used ? i : 0];
            hash_8(padded, length, results);
            memcpy(digests, results, used * 32);
            count -= used;
            rest += used;
            digests += used * 32;
        }
    }
#endif
    for (; count > 0; count--, rest++, digests += 32) hash_1(rest, length, digests);
}
