// The vectors of blake3_lanes.h: words of 4, 8 or 16 inputs, and operations to move words between
// them.
//
//   gather      16 bytes of each of every fourth input, consecutively
//   low, high   the lower or upper words of two vectors interleaved, within each 16 bytes
//   low_pairs   the same for pairs of words
//
// Transposing stays within 16 bytes, which every processor does in one instruction; moves across 16
// bytes are done by the loads.

#include <stdint.h>
#include <string.h>

#define VECTORS static inline __attribute__((always_inline))

typedef uint32_t word_4 __attribute__((vector_size(16)));

VECTORS TARGET_4 word_4 four_words(const uint8_t *from) {
    word_4 words;
    memcpy(&words, from, sizeof words);
    return words;
}

VECTORS TARGET_4 word_4 gather_4(const uint8_t *const *from, int offset) {
    return four_words(from[0] + offset);
}

VECTORS TARGET_4 word_4 low_4(word_4 a, word_4 b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}

VECTORS TARGET_4 word_4 high_4(word_4 a, word_4 b) {
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

VECTORS TARGET_4 word_4 low_pairs_4(word_4 a, word_4 b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5);
}

VECTORS TARGET_4 word_4 high_pairs_4(word_4 a, word_4 b) {
    return __builtin_shufflevector(a, b, 2, 3, 6, 7);
}

#if defined(__x86_64__)

typedef uint32_t word_8 __attribute__((vector_size(32)));
typedef uint32_t word_16 __attribute__((vector_size(64)));

VECTORS TARGET_AVX2 word_8 gather_8(const uint8_t *const *from, int offset) {
    word_4 first = four_words(from[0] + offset), second = four_words(from[4] + offset);
    return __builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7);
}

VECTORS TARGET_AVX2 word_8 low_8(word_8 a, word_8 b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
}

VECTORS TARGET_AVX2 word_8 high_8(word_8 a, word_8 b) {
    return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}

VECTORS TARGET_AVX2 word_8 low_pairs_8(word_8 a, word_8 b) {
    return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
}

VECTORS TARGET_AVX2 word_8 high_pairs_8(word_8 a, word_8 b) {
    return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}

VECTORS TARGET_AVX512 word_16 gather_16(const uint8_t *const *from, int offset) {
    word_8 first = gather_8(from, offset), second = gather_8(from + 8, offset);
    return __builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
                                   15);
}

VECTORS TARGET_AVX512 word_16 low_16(word_16 a, word_16 b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}

VECTORS TARGET_AVX512 word_16 high_16(word_16 a, word_16 b) {
    return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15,
                                   31);
}

VECTORS TARGET_AVX512 word_16 low_pairs_16(word_16 a, word_16 b) {
    return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}

VECTORS TARGET_AVX512 word_16 high_pairs_16(word_16 a, word_16 b) {
    return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30,
                                   31);
}

#endif

#undef VECTORS
