// BLAKE3 of LANES inputs of equal length at once: lane n of every vector belongs to input n. All
// inputs have the same tree, so the algorithm is the scalar one with vectors for words.
//
// Included once for each width with
//   LANES    inputs at once: 1, 8 or 16; wider than 1 with `word` and `transpose` at hand
//   NAME(x)  x with the width's suffix
//   TARGET   the function attribute that allows the instructions
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
    v[d] = NAME(rotate)(v[d] ^ v[a], 16);
    v[c] = v[c] + v[d];
    v[b] = NAME(rotate)(v[b] ^ v[c], 12);
    v[a] = v[a] + v[b] + y;
    v[d] = NAME(rotate)(v[d] ^ v[a], 8);
    v[c] = v[c] + v[d];
    v[b] = NAME(rotate)(v[b] ^ v[c], 7);
}

/// One compression; replaces `cv` by the first 8 output words.
INLINE void NAME(compress)(WORD *cv, const WORD *m, uint64_t counter, uint32_t length,
                           uint32_t flags) {
    WORD v[16];
    for (int i = 0; i < 8; i++) v[i] = cv[i];
    for (int i = 0; i < 4; i++) v[8 + i] = NAME(all)(blake3_iv[i]);
    v[12] = NAME(all)((uint32_t)counter);
    v[13] = NAME(all)((uint32_t)(counter >> 32));
    v[14] = NAME(all)(length);
    v[15] = NAME(all)(flags);
#pragma clang loop unroll(full)
    for (int round = 0; round < 7; round++) {
        const uint8_t *s = blake3_schedule[round];
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
}

/// Loads one block of each input: m[w] gets word w of every lane. A block that the input does not
/// fill is filled with zeros.
INLINE void NAME(load)(WORD *m, const uint8_t *const *inputs, size_t offset, size_t length) {
#if LANES == 1
    uint8_t block[64] = {0};
    memcpy(block, inputs[0] + offset, length);
    memcpy(m, block, 64);
#else
    WORD rows[LANES];
    uint8_t block[64];
    // Each lane's 64 bytes as 16 words; LANES 8 takes them in two halves.
    for (int half = 0; half < 16 / LANES; half++) {
        for (int lane = 0; lane < LANES; lane++) {
            const uint8_t *from = inputs[lane] + offset;
            if (length < 64) {
                memset(block, 0, 64);
                memcpy(block, from, length);
                from = block;
            }
            memcpy(&rows[lane], from + half * LANES * 4, sizeof(WORD));
        }
        NAME(transpose)(rows);
        for (int i = 0; i < LANES; i++) m[half * LANES + i] = rows[i];
    }
#endif
}

/// The chaining value of the chunk at `offset`; with the root's flag if it is the only one.
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

/// Joins two chaining values into `left`.
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
        // Whole subtrees are joined as soon as more input is known to follow.
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
