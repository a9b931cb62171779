// The zero test: most pages of a guest are either all zero or differ in their first bytes.

#include "CPageKernels.h"

#include <string.h>

enum { PAGE_BYTES = 4096, STEP_BYTES = 256 };

static bool is_zero(const uint8_t *page) {
    for (size_t offset = 0; offset < PAGE_BYTES; offset += STEP_BYTES) {
        // Words are joined without a branch, so that the compiler uses vectors.
        uint64_t words[STEP_BYTES / 8];
        memcpy(words, page + offset, STEP_BYTES);
        uint64_t any = 0;
        for (size_t i = 0; i < STEP_BYTES / 8; i++) any |= words[i];
        if (any) return false;
    }
    return true;
}

void ckernels_zero_pages(const void *pages, size_t count, uint8_t *flags) {
    for (size_t i = 0; i < count; i++) {
        flags[i] = is_zero((const uint8_t *)pages + i * PAGE_BYTES);
    }
}
