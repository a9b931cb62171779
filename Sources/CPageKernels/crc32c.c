// CRC-32C by the processor's instruction, or by table.

#include "CPageKernels.h"

#include <string.h>

// The remainder of each byte value, polynomial 0x82f63b78 (reflected); computed on first use,
// possibly by several threads, which all write the same values.
static uint32_t table[256];

static const uint32_t *crc_table(void) {
    static _Atomic bool is_made = false;
    if (!is_made) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t rest = byte;
            for (int bit = 0; bit < 8; bit++) {
                rest = rest & 1 ? (rest >> 1) ^ 0x82f63b78u : rest >> 1;
            }
            __atomic_store_n(&table[byte], rest, __ATOMIC_RELAXED);
        }
        is_made = true;
    }
    return table;
}

uint32_t ckernels_crc32c_portable(uint32_t crc, const void *data, size_t length) {
    const uint32_t *rests = crc_table();
    const uint8_t *bytes = data;
    crc = ~crc;
    for (size_t i = 0; i < length; i++) crc = rests[(crc ^ bytes[i]) & 0xff] ^ (crc >> 8);
    return ~crc;
}

#if defined(__x86_64__)

// The instruction has a latency of three cycles and a throughput of one per cycle: three stretches
// are processed at a time, and their remainders combined. Appending zeros to the input of a
// remainder is linear in its bits, so it is done by table lookup per byte (V. Gopal et al., "Fast
// CRC Computation for iSCSI Polynomial Using CRC32 Instruction", Intel, 2011).
enum { STRETCH = 1024 };

// The value of each byte of a remainder after one and after two stretches of zeros.
static uint32_t behind[2][4][256];

static void make_behind(void) {
    static _Atomic bool is_made = false;
    if (is_made) return;
    const uint32_t *rests = crc_table();
    uint32_t bits[32];
    for (int bit = 0; bit < 32; bit++) bits[bit] = 1u << bit;
    for (int stretches = 0; stretches < 2; stretches++) {
        for (int bit = 0; bit < 32; bit++) {
            uint32_t rest = bits[bit];
            for (int i = 0; i < STRETCH; i++) rest = rests[rest & 0xff] ^ (rest >> 8);
            bits[bit] = rest;
        }
        for (int byte = 0; byte < 4; byte++) {
            for (int value = 0; value < 256; value++) {
                uint32_t sum = 0;
                for (int bit = 0; bit < 8; bit++) {
                    if (value >> bit & 1) sum ^= bits[8 * byte + bit];
                }
                __atomic_store_n(&behind[stretches][byte][value], sum, __ATOMIC_RELAXED);
            }
        }
    }
    is_made = true;
}

static inline uint32_t append_zeros(uint32_t rest, int stretches) {
    const uint32_t (*parts)[256] = behind[stretches - 1];
    return parts[0][rest & 0xff] ^ parts[1][rest >> 8 & 0xff] ^ parts[2][rest >> 16 & 0xff] ^
           parts[3][rest >> 24];
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const void *data,
                                                               size_t length) {
    const uint8_t *bytes = data;
    uint64_t rest = ~crc;
    if (length >= 3 * STRETCH) make_behind();
    for (; length >= 3 * STRETCH; length -= 3 * STRETCH, bytes += 3 * STRETCH) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < STRETCH; i += 8) {
            uint64_t words[3];
            memcpy(&words[0], bytes + i, 8);
            memcpy(&words[1], bytes + STRETCH + i, 8);
            memcpy(&words[2], bytes + 2 * STRETCH + i, 8);
            rest = __builtin_ia32_crc32di(rest, words[0]);
            second = __builtin_ia32_crc32di(second, words[1]);
            third = __builtin_ia32_crc32di(third, words[2]);
        }
        rest = append_zeros((uint32_t)rest, 2) ^ append_zeros((uint32_t)second, 1) ^ third;
    }
    for (; length >= 8; length -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        rest = __builtin_ia32_crc32di(rest, word);
    }
    for (; length > 0; length--, bytes++) {
        rest = __builtin_ia32_crc32qi((uint32_t)rest, *bytes);
    }
    return ~(uint32_t)rest;
}

#elif defined(__aarch64__)

#include <sys/auxv.h>

// HWCAP_CRC32 of <asm/hwcap.h>: optional in ARMv8.0.
enum { HAS_CRC32 = 1 << 7 };

__attribute__((target("crc"))) static uint32_t crc32c_arm(uint32_t crc, const void *data,
                                                          size_t length) {
    const uint8_t *bytes = data;
    uint32_t rest = ~crc;
    for (; length >= 8; length -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        rest = __builtin_arm_crc32cd(rest, word);
    }
    for (; length > 0; length--, bytes++) rest = __builtin_arm_crc32cb(rest, *bytes);
    return ~rest;
}

#endif

uint32_t ckernels_crc32c(uint32_t crc, const void *data, size_t length) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return crc32c_sse42(crc, data, length);
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & HAS_CRC32) return crc32c_arm(crc, data, length);
#endif
    return ckernels_crc32c_portable(crc, data, length);
}
