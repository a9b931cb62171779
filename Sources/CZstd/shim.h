#ifndef CZSTD_SHIM_H
#define CZSTD_SHIM_H

// The contexts' own tables hold parts of what they pack and unpack, so they are allocated where
// core dumps do not look. zstd lets that be said to functions that it calls static only, which its
// shared library has all the same (since 1.4 at least).
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
#include <zstd_errors.h>

#include <stddef.h>
#include <sys/mman.h>

// Its size is kept before what is handed out; 64 bytes, for the alignment.
static inline void *czstd_allocate(void *opaque, size_t size) {
    (void)opaque;
    size_t whole = size + 64;
    char *memory = (char *)mmap(NULL, whole, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    madvise(memory, whole, MADV_DONTDUMP);
    *(size_t *)memory = whole;
    return memory + 64;
}

static inline void czstd_free(void *opaque, void *address) {
    (void)opaque;
    if (address == NULL) return;
    char *memory = (char *)address - 64;
    munmap(memory, *(size_t *)memory);
}

/// A compressor that no core dump shows; NULL: no memory. ZSTD_createCCtx_advanced.
static inline ZSTD_CCtx *czstd_create_compressor(void) {
    ZSTD_customMem memory = {czstd_allocate, czstd_free, NULL};
    return ZSTD_createCCtx_advanced(memory);
}

/// A decompressor that no core dump shows; NULL: no memory. ZSTD_createDCtx_advanced.
static inline ZSTD_DCtx *czstd_create_decompressor(void) {
    ZSTD_customMem memory = {czstd_allocate, czstd_free, NULL};
    return ZSTD_createDCtx_advanced(memory);
}

#endif
