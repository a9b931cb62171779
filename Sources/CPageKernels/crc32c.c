// CRC-32C by the processor's own instruction, or by table.

#include "CPageKernels.h"

#include <string.h>

// The remainder of each byte value, polynomial 0x82f63b78 (reflected); made on first use by any
// number of threads, all of which write the same values.
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

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const void *data,
                                                               size_t length) {
    const uint8_t *bytes = data;
    uint64_t rest = ~crc;
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
