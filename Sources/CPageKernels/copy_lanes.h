// A copy past the caches with vectors of WIDTH bytes. Included once per width with
//   WIDTH    vector size in bytes
//   NAME(x)  x with the width's suffix
//   TARGET   the function attribute that allows the instructions

typedef uint64_t NAME(vector) __attribute__((vector_size(WIDTH)));

static TARGET void NAME(stream_copy)(uint8_t *to, const uint8_t *from, size_t length) {
    // Such stores must be aligned; the bytes before and after are copied normally.
    size_t head = -(uintptr_t)to % WIDTH;
    if (length < head + 4 * WIDTH) {
        memcpy(to, from, length);
        return;
    }
    memcpy(to, from, head);
    size_t done = head;
    for (; done + 4 * WIDTH <= length; done += 4 * WIDTH) {
        NAME(vector) words[4];
        memcpy(words, from + done, sizeof words);
        NAME(vector) *target = (NAME(vector) *)(to + done);
        for (int i = 0; i < 4; i++) __builtin_nontemporal_store(words[i], target + i);
    }
    memcpy(to + done, from + done, length - done);
}

#undef WIDTH
#undef NAME
#undef TARGET
