// Content tests: most pages of a guest are either all zero or differ in their first bytes.

#include "CPageKernels.h"
#include "path.h"

#include <string.h>

enum { PAGE_BYTES = 4096 };

static bool is_zero_portable(const uint8_t *bytes, size_t length) {
    size_t done = 0;
    for (; done + 8 <= length; done += 8) {
        uint64_t word;
        memcpy(&word, bytes + done, 8);
        if (word) return false;
    }
    for (; done < length; done++) {
        if (bytes[done]) return false;
    }
    return true;
}

static bool is_equal_portable(const uint8_t *left, const uint8_t *right, size_t length) {
    size_t done = 0;
    for (; done + 8 <= length; done += 8) {
        uint64_t mine, other;
        memcpy(&mine, left + done, 8);
        memcpy(&other, right + done, 8);
        if (mine != other) return false;
    }
    for (; done < length; done++) {
        if (left[done] != right[done]) return false;
    }
    return true;
}

#if defined(__x86_64__)

// SSE2, which every x86-64 has.
#define WIDTH 16
#define NAME(x) x##_16
#define TARGET
#include "contents_lanes.h"

#define WIDTH 32
#define NAME(x) x##_32
#define TARGET TARGET_AVX2
#include "contents_lanes.h"

#elif defined(__aarch64__)

#define WIDTH 16
#define NAME(x) x##_16
#define TARGET
#include "contents_lanes.h"

#endif

bool ckernels_is_zero(const void *bytes, size_t length) {
#if defined(__x86_64__)
    int path = ckernels_chosen_path();
    if (path >= PATH_AVX2) return is_zero_32(bytes, length);
    if (path >= PATH_SSE41) return is_zero_16(bytes, length);
#elif defined(__aarch64__)
    if (ckernels_chosen_path() >= PATH_NEON) return is_zero_16(bytes, length);
#endif
    return is_zero_portable(bytes, length);
}

void ckernels_zero_pages(const void *pages, size_t count, uint8_t *flags) {
    for (size_t i = 0; i < count; i++) {
        flags[i] = ckernels_is_zero((const uint8_t *)pages + i * PAGE_BYTES, PAGE_BYTES);
    }
}

bool ckernels_is_equal(const void *left, const void *right, size_t length) {
#if defined(__x86_64__)
    int path = ckernels_chosen_path();
    if (path >= PATH_AVX2) return is_equal_32(left, right, length);
    if (path >= PATH_SSE41) return is_equal_16(left, right, length);
#elif defined(__aarch64__)
    if (ckernels_chosen_path() >= PATH_NEON) return is_equal_16(left, right, length);
#endif
    return is_equal_portable(left, right, length);
}

// MARK: - Compressibility

// Byte values are counted in short runs spread over the input. For n counted bytes distributed
// evenly over the 256 values, the sum of squared counts has a mean of n + n (n - 1) / 256 and a
// deviation of about n / sqrt(128). If it exceeds the mean by a fifth of n (n - 1) / 256, the
// entropy is below 7.75 bits per byte, and coding saves something; random bytes never deviate that
// far at 1024 bytes and more (24 deviations of the sum at 64 KiB).
//
// Even distributions can still repeat: one word of every 64 bytes is looked up among the previous
// ones.

enum { RUN_BYTES = 32, RUN_DISTANCE = 256, WORD_DISTANCE = 64, SLOT_COUNT = 1024 };

static bool is_even(const uint8_t *bytes, size_t length) {
    uint32_t counts[256] = {0};
    uint64_t counted = 0;
    for (size_t run = 0; run + RUN_BYTES <= length; run += RUN_DISTANCE) {
        for (size_t i = 0; i < RUN_BYTES; i++) counts[bytes[run + i]]++;
        counted += RUN_BYTES;
    }
    uint64_t squares = 0;
    for (int value = 0; value < 256; value++) squares += (uint64_t)counts[value] * counts[value];
    uint64_t pairs = counted * (counted - 1) / 256;
    // The sample of one page is small: the statistical variation is allowed for.
    return squares <= counted + pairs + pairs / 5 + counted / 2;
}

static bool has_repeat(const uint8_t *bytes, size_t length) {
    uint64_t words[SLOT_COUNT];
    memset(words, 0, sizeof words);
    for (size_t offset = 0; offset + 8 <= length; offset += WORD_DISTANCE) {
        uint64_t word;
        memcpy(&word, bytes + offset, 8);
        uint64_t *slot = &words[word * 0x9e3779b97f4a7c15u >> 54];
        if (*slot == word) return true;
        *slot = word;
    }
    return false;
}

bool ckernels_is_incompressible(const void *bytes, size_t length) {
    const uint8_t *start = bytes;
    if (length < 1024) return false;
    // Most compressible data shows in 64 bytes sampled throughout.
    uint8_t seen[256] = {0};
    int different = 0;
    for (size_t i = 0; i < 64; i++) {
        uint8_t byte = start[i / 8 * (length / 8) + i % 8];
        different += !seen[byte];
        seen[byte] = 1;
    }
    // Of 64 random bytes, 57 are different on average, and fewer than 45 once in a million times.
    if (different < 45) return false;
    return is_even(start, length) && !has_repeat(start, length);
}
