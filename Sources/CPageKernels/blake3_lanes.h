// BLAKE3 of LANES inputs of equal length at once: lane n of every vector belongs to input n. All
// inputs have the same tree, so the algorithm is the scalar one with vectors as words.
//
// Included once per width with
//   LANES    inputs at once: 1, or a width of blake3_vectors.h
//   NAME(x)  x with the width's suffix
//   TARGET   the function attribute that allows the instructions
//   KEEP(x)  keeps the compiler from spreading a rotation over the operands before it
//   IN_MEMORY(m)  keeps the message in memory, where registers are few
//
// The paper's terms: a chunk is 1024 bytes, a block 64; a chaining value (CV) is 8 words.

#if LANES == 1
typedef uint32_t NAME(word);
#endif

#define WORD NAME(word)
#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE WORD NAME(all)(uint32_t value) { return (WORD){0} + value; }

INLINE WORD NAME(rotate)(WORD x, int bits) { return (x >> bits) | (x << (32 - bits)); }

INLINE void NAME(mix)(WORD *v, int a, int b, int c, int d, WORD x, WORD y) {
    v[a] = v[a] + v[b] + x;
    v[d] = v[d] ^ v[a];
    KEEP(v[d]);
    v[d] = NAME(rotate)(v[d], 16);
    v[c] = v[c] + v[d];
    v[b] = NAME(rotate)(v[b] ^ v[c], 12);
    v[a] = v[a] + v[b] + y;
    v[d] = v[d] ^ v[a];
    KEEP(v[d]);
    v[d] = NAME(rotate)(v[d], 8);
    v[c] = v[c] + v[d];
    v[b] = NAME(rotate)(v[b] ^ v[c], 7);
}

/// One compression; replaces `cv` by the first 8 output words.
INLINE void NAME(compress)(WORD *cv, const WORD *m, uint64_t counter, uint32_t length,
                           uint32_t flags) {
    uint32_t last[8] = {
        blake3_iv[0], blake3_iv[1], blake3_iv[2], blake3_iv[3], (uint32_t)counter,
        (uint32_t)(counter >> 32), length, flags,
    };
#if LANES == 8
    compress_avx2(cv, m, last);
#else
    WORD v[16];
    for (int i = 0; i < 8; i++) {
        v[i] = cv[i];
        v[8 + i] = NAME(all)(last[i]);
    }
#pragma clang loop unroll(full)
    for (int round = 0; round < 7; round++) {
        const uint8_t *s = blake3_schedule[round];
        IN_MEMORY(m);
        NAME(mix)(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
        NAME(mix)(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
        NAME(mix)(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
        NAME(mix)(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
        NAME(mix)(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
        NAME(mix)(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
        NAME(mix)(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
        NAME(mix)(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++) cv[i] = v[i] ^ v[8 + i];
#endif
}

/// Loads one block of each input: m[w] gets word w of every lane. A partial block is padded with
/// zeros.
INLINE void NAME(load)(WORD *m, const uint8_t *const *inputs, size_t offset, size_t length) {
    uint8_t padded[LANES][64];
    const uint8_t *from[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        from[lane] = inputs[lane] + offset;
        if (length < 64) {
            memset(padded[lane], 0, 64);
            memcpy(padded[lane], from[lane], length);
            from[lane] = padded[lane];
        }
    }
#if LANES == 1
    memcpy(m, from[0], 64);
#else
    // Four words of each lane at a time, as a square that is transposed.
    for (int word = 0; word < 16; word += 4) {
        WORD r0 = NAME(gather)(from, word * 4), r1 = NAME(gather)(from + 1, word * 4);
        WORD r2 = NAME(gather)(from + 2, word * 4), r3 = NAME(gather)(from + 3, word * 4);
        WORD low01 = NAME(low)(r0, r1), high01 = NAME(high)(r0, r1);
        WORD low23 = NAME(low)(r2, r3), high23 = NAME(high)(r2, r3);
        m[word] = NAME(low_pairs)(low01, low23);
        m[word + 1] = NAME(high_pairs)(low01, low23);
        m[word + 2] = NAME(low_pairs)(high01, high23);
        m[word + 3] = NAME(high_pairs)(high01, high23);
    }
#endif
}

/// The chaining value of the chunk at `offset`; with the root flag if it is the only one.
INLINE void NAME(chunk)(WORD *cv, const uint8_t *const *inputs, size_t offset, size_t length,
                        uint32_t root) {
    for (int i = 0; i < 8; i++) cv[i] = NAME(all)(blake3_iv[i]);
    size_t done = 0;
    uint32_t flags = BLAKE3_CHUNK_START;
    do {
        size_t count = length - done < 64 ? length - done : 64;
        if (done + count == length) flags |= BLAKE3_CHUNK_END | root;
        WORD m[16];
        NAME(load)(m, inputs, offset + done, count);
        NAME(compress)(cv, m, offset / 1024, (uint32_t)count, flags);
        done += count;
        flags = 0;
    } while (done < length);
}

/// Merges two chaining values into `left`.
INLINE void NAME(join)(WORD *left, const WORD *right, uint32_t root) {
    WORD m[16];
    for (int i = 0; i < 8; i++) {
        m[i] = left[i];
        m[8 + i] = right[i];
        left[i] = NAME(all)(blake3_iv[i]);
    }
    NAME(compress)(left, m, 0, 64, BLAKE3_PARENT | root);
}

/// The digests of LANES inputs, 32 bytes each.
static TARGET void NAME(hash)(const uint8_t *const *inputs, size_t length, uint8_t *digests) {
    WORD stack[BLAKE3_DEPTH_MAX][8];
    int depth = 0;
    size_t chunks = length <= 1024 ? 1 : (length + 1023) / 1024;
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        size_t offset = chunk * 1024;
        size_t count = length - offset < 1024 ? length - offset : 1024;
        NAME(chunk)(stack[depth++], inputs, offset, count, chunks == 1 ? BLAKE3_ROOT : 0);
        if (chunk + 1 == chunks) break;
        // Whole subtrees are merged as soon as more input is known to follow.
        for (size_t n = chunk + 1; (n & 1) == 0; n >>= 1) {
            depth--;
            NAME(join)(stack[depth - 1], stack[depth], 0);
        }
    }
    while (depth > 1) {
        depth--;
        NAME(join)(stack[depth - 1], stack[depth], depth == 1 ? BLAKE3_ROOT : 0);
    }
#if LANES == 1
    memcpy(digests, stack[0], 32);
#else
    for (int word = 0; word < 8; word++) {
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t value = stack[0][word][lane];
            memcpy(digests + lane * 32 + word * 4, &value, 4);
        }
    }
#endif
}

#undef WORD
#undef INLINE
#undef LANES
#undef NAME
#undef TARGET
#undef KEEP
#undef IN_MEMORY
