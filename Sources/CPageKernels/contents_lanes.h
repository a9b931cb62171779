// Content tests with vectors of WIDTH bytes. Included once per width with
//   WIDTH    vector size in bytes
//   NAME(x)  x with the width's suffix
//   TARGET   the function attribute that allows the instructions

typedef uint64_t NAME(vector) __attribute__((vector_size(WIDTH)));

#define VECTOR NAME(vector)
#define INLINE static inline __attribute__((always_inline)) TARGET

// Number of vectors combined per branch.
enum { NAME(step) = 4 * WIDTH };

INLINE VECTOR NAME(load)(const uint8_t *from) {
    VECTOR words;
    memcpy(&words, from, WIDTH);
    return words;
}

INLINE bool NAME(any)(VECTOR words) {
    uint64_t any = 0;
    for (int i = 0; i < WIDTH / 8; i++) any |= words[i];
    return any != 0;
}

static TARGET bool NAME(is_zero)(const uint8_t *bytes, size_t length) {
    size_t done = 0;
    for (; done + NAME(step) <= length; done += NAME(step)) {
        VECTOR any = {0};
        for (int i = 0; i < 4; i++) any |= NAME(load)(bytes + done + i * WIDTH);
        if (NAME(any)(any)) return false;
    }
    return is_zero_portable(bytes + done, length - done);
}

static TARGET bool NAME(is_equal)(const uint8_t *left, const uint8_t *right, size_t length) {
    size_t done = 0;
    for (; done + NAME(step) <= length; done += NAME(step)) {
        VECTOR any = {0};
        for (int i = 0; i < 4; i++) {
            any |= NAME(load)(left + done + i * WIDTH) ^ NAME(load)(right + done + i * WIDTH);
        }
        if (NAME(any)(any)) return false;
    }
    return is_equal_portable(left + done, right + done, length - done);
}

#undef VECTOR
#undef INLINE
#undef WIDTH
#undef NAME
#undef TARGET
