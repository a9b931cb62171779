// One compression of eight lanes in assembly: the compiler needs more than the sixteen registers of
// AVX2 and spills the state to memory, which costs a sixth of the speed.
//
// The state fills all registers: ymm0 to ymm3 are the four words that the G functions of a row call
// a, ymm4 to ymm7 b, ymm8 to ymm11 c, ymm12 to ymm15 d. The four G of a row are interleaved. A
// rotation needs one more register; the first c is saved in memory for that, once per half row.

#define ADD_MESSAGE(a, m) "vpaddd 32*" #m "(%[m]), %%ymm" #a ", %%ymm" #a "\n\t"
#define ADD(a, b) "vpaddd %%ymm" #b ", %%ymm" #a ", %%ymm" #a "\n\t"
#define XOR(a, b) "vpxor %%ymm" #b ", %%ymm" #a ", %%ymm" #a "\n\t"
#define SHUFFLE(a, by) "vpshufb %[" by "], %%ymm" #a ", %%ymm" #a "\n\t"
#define ROTATE(b, spare, right, left)                                                             \
    "vpsrld $" #right ", %%ymm" #b ", %%ymm" #spare "\n\t"                                        \
    "vpslld $" #left ", %%ymm" #b ", %%ymm" #b "\n\t"                                             \
    "vpor %%ymm" #spare ", %%ymm" #b ", %%ymm" #b "\n\t"
#define PUT(c) "vmovdqa %%ymm" #c ", %[kept]\n\t"
#define GET(c) "vmovdqa %[kept], %%ymm" #c "\n\t"

#define ROW(b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3, m0, m1, m2, m3, m4, m5, m6, m7)       \
    ADD_MESSAGE(0, m0) ADD(0, b0) XOR(d0, 0) ADD_MESSAGE(1, m2) ADD(1, b1) XOR(d1, 1)             \
    ADD_MESSAGE(2, m4) ADD(2, b2) XOR(d2, 2) ADD_MESSAGE(3, m6) ADD(3, b3) XOR(d3, 3)             \
    SHUFFLE(d0, "by16") SHUFFLE(d1, "by16") SHUFFLE(d2, "by16") SHUFFLE(d3, "by16")               \
    ADD(c0, d0) XOR(b0, c0) PUT(c0) ADD(c1, d1) ADD(c2, d2) ADD(c3, d3)                           \
    ROTATE(b0, c0, 12, 20) ADD_MESSAGE(0, m1) XOR(b1, c1) ADD(0, b0)                              \
    ROTATE(b1, c0, 12, 20) ADD_MESSAGE(1, m3) XOR(b2, c2) ADD(1, b1)                              \
    ROTATE(b2, c0, 12, 20) ADD_MESSAGE(2, m5) XOR(b3, c3) ADD(2, b2)                              \
    ROTATE(b3, c0, 12, 20) ADD_MESSAGE(3, m7) ADD(3, b3)                                          \
    GET(c0) XOR(d0, 0) XOR(d1, 1) XOR(d2, 2) XOR(d3, 3)                                           \
    SHUFFLE(d0, "by8") SHUFFLE(d1, "by8") SHUFFLE(d2, "by8") SHUFFLE(d3, "by8")                   \
    ADD(c0, d0) XOR(b0, c0) PUT(c0) ADD(c1, d1) ADD(c2, d2) ADD(c3, d3)                           \
    ROTATE(b0, c0, 7, 25) XOR(b1, c1) ROTATE(b1, c0, 7, 25) XOR(b2, c2)                           \
    ROTATE(b2, c0, 7, 25) XOR(b3, c3) ROTATE(b3, c0, 7, 25) GET(c0)

// Columns, then diagonals.
#define ROUND(m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15)               \
    ROW(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, m0, m1, m2, m3, m4, m5, m6, m7)                 \
    ROW(5, 6, 7, 4, 10, 11, 8, 9, 15, 12, 13, 14, m8, m9, m10, m11, m12, m13, m14, m15)

#define LOAD(n, offset, from) "vmovdqa " #offset "(%[" from "]), %%ymm" #n "\n\t"
#define STORE(n, offset) "vmovdqa %%ymm" #n ", " #offset "(%[cv])\n\t"
#define SPREAD(n, offset) "vpbroadcastd " #offset "(%[last]), %%ymm" #n "\n\t"

/// Replaces `cv` by the first 8 output words.
///
/// `last` is the lower half of the initial state, the same in all lanes.
static __attribute__((noinline)) TARGET_AVX2 void compress_avx2(word_8 *cv, const word_8 *m,
                                                                const uint32_t *last) {
    static const uint8_t by16[32] __attribute__((aligned(32))) = {
        2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
        2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
    };
    static const uint8_t by8[32] __attribute__((aligned(32))) = {
        1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12,
        1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12,
    };
    word_8 kept;
    // The message orders are those of blake3_schedule.
    __asm__ volatile(
        LOAD(0, 0, "cv") LOAD(1, 32, "cv") LOAD(2, 64, "cv") LOAD(3, 96, "cv")
        LOAD(4, 128, "cv") LOAD(5, 160, "cv") LOAD(6, 192, "cv") LOAD(7, 224, "cv")
        SPREAD(8, 0) SPREAD(9, 4) SPREAD(10, 8) SPREAD(11, 12)
        SPREAD(12, 16) SPREAD(13, 20) SPREAD(14, 24) SPREAD(15, 28)
        ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
        ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
        ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1)
        ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6)
        ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4)
        ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7)
        ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)
        XOR(0, 8) XOR(1, 9) XOR(2, 10) XOR(3, 11) XOR(4, 12) XOR(5, 13) XOR(6, 14) XOR(7, 15)
        STORE(0, 0) STORE(1, 32) STORE(2, 64) STORE(3, 96)
        STORE(4, 128) STORE(5, 160) STORE(6, 192) STORE(7, 224)
        : [kept] "=m"(kept)
        : [cv] "r"(cv), [m] "r"(m), [last] "r"(last), [by16] "m"(by16), [by8] "m"(by8)
        : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
          "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

#undef ADD_MESSAGE
#undef ADD
#undef XOR
#undef SHUFFLE
#undef ROTATE
#undef PUT
#undef GET
#undef ROW
#undef ROUND
#undef LOAD
#undef STORE
#undef SPREAD
