// Copies that bypass the caches.
//
// A normal copy reads the target's cache lines before it writes them, and evicts as much of the
// caches as it writes. Both are wasted if the copy is read later by another thread.

#include "CPageKernels.h"
#include "path.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)

#define WIDTH 16
#define NAME(x) x##_16
#define TARGET
#include "copy_lanes.h"

#define WIDTH 32
#define NAME(x) x##_32
#define TARGET TARGET_AVX2
#include "copy_lanes.h"

#elif defined(__aarch64__)

#define WIDTH 16
#define NAME(x) x##_16
#define TARGET
#include "copy_lanes.h"

#endif

/// Copies one piece, without making it visible.
static inline void copy_piece(int path, uint8_t *to, const uint8_t *from, size_t length) {
#if defined(__x86_64__)
    if (path >= PATH_AVX2) return stream_copy_32(to, from, length);
    if (path >= PATH_SSE41) return stream_copy_16(to, from, length);
#elif defined(__aarch64__)
    if (path >= PATH_NEON) return stream_copy_16(to, from, length);
#endif
    (void)path;
    memcpy(to, from, length);
}

/// Streaming stores are not ordered with the stores that hand the memory on.
static inline void make_visible(void) {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#else
    atomic_thread_fence(memory_order_release);
#endif
}

void ckernels_stream_copy(void *to, const void *from, size_t length) {
    copy_piece(ckernels_chosen_path(), to, from, length);
    make_visible();
}

void ckernels_stream_copy_pieces(void *to, const struct ckernels_piece *pieces, size_t count) {
    int path = ckernels_chosen_path();
    uint8_t *target = to;
    for (size_t i = 0; i < count; i++) {
        if (i + 1 < count) {
            // Eight lines: once a copy has started, the hardware prefetcher follows it.
            size_t lines = pieces[i + 1].length / 64;
            for (size_t line = 0; line < lines && line < 8; line++) {
                __builtin_prefetch((const uint8_t *)pieces[i + 1].from + line * 64);
            }
        }
        copy_piece(path, target, pieces[i].from, pieces[i].length);
        target += pieces[i].length;
    }
    make_visible();
}
