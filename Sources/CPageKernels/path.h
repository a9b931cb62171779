// Selects the path of the kernels.

#ifndef CKERNELS_PATH_H
#define CKERNELS_PATH_H

// In ascending order of preference: a processor that supports one supports those before it.
enum {
    PATH_UNKNOWN,
    PATH_PORTABLE,
#if defined(__x86_64__)
    PATH_SSE41,
    PATH_AVX2,
    PATH_AVX512,
    PATH_BEST = PATH_AVX512,
#elif defined(__aarch64__)
    PATH_NEON,
    PATH_BEST = PATH_NEON,
#else
    PATH_BEST = PATH_PORTABLE,
#endif
};

/// The path in use; the first call reads the environment and the processor's features.
int ckernels_chosen_path(void);

#if defined(__x86_64__)
#define TARGET_SSE41 __attribute__((target("sse4.1")))
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw")))
#endif

#endif
