#include "path.h"

#include "CPageKernels.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const char *const path_names[] = {
    [PATH_UNKNOWN] = "",
    [PATH_PORTABLE] = "portable",
#if defined(__x86_64__)
    [PATH_SSE41] = "sse41",
    [PATH_AVX2] = "avx2",
    [PATH_AVX512] = "avx512",
#elif defined(__aarch64__)
    [PATH_NEON] = "neon",
#endif
};

static _Atomic int chosen_path = PATH_UNKNOWN;

static bool path_is_supported(int path) {
#if defined(__x86_64__)
    switch (path) {
    case PATH_SSE41: return __builtin_cpu_supports("sse4.1");
    case PATH_AVX2: return __builtin_cpu_supports("avx2");
    case PATH_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
               && __builtin_cpu_supports("avx512bw");
    default: return true;
    }
#else
    // Every aarch64 processor that runs Linux has NEON.
    return path != PATH_UNKNOWN;
#endif
}

static int path_named(const char *name) {
    for (int path = PATH_PORTABLE; path <= PATH_BEST; path++) {
        if (strcmp(name, path_names[path]) == 0) return path;
    }
    return PATH_UNKNOWN;
}

int ckernels_chosen_path(void) {
    int known = atomic_load_explicit(&chosen_path, memory_order_relaxed);
    if (known != PATH_UNKNOWN) return known;
    const char *wanted = getenv("VARVE_KERNELS");
    known = wanted ? path_named(wanted) : PATH_UNKNOWN;
    if (known == PATH_UNKNOWN || !path_is_supported(known)) {
        known = PATH_BEST;
        while (!path_is_supported(known)) known--;
    }
    atomic_store_explicit(&chosen_path, known, memory_order_relaxed);
    return known;
}

const char *ckernels_path(void) { return path_names[ckernels_chosen_path()]; }

bool ckernels_select(const char *name) {
    int wanted = path_named(name);
    if (wanted == PATH_UNKNOWN || !path_is_supported(wanted)) return false;
    atomic_store_explicit(&chosen_path, wanted, memory_order_relaxed);
    return true;
}
