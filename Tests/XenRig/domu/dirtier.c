/* The whole user space of the test guest: keeps writing to a known set of pages, checks that each
 * page holds what was last written to it, and says so on the console once a second. Settings come
 * from the kernel's command line: dirtier.pages=, dirtier.burst= (pages written each tick) and
 * dirtier.tick= (milliseconds). */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "XENRIG-PAGE-v1\n" /* 16 bytes with the NUL */

struct page {
    char magic[16];
    uint64_t index, count, sum;
    uint8_t fill[4096 - 40];
};

static long setting(const char *name, long otherwise) {
    const char *s = getenv(name);
    return s ? atol(s) : otherwise;
}

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = a * 0x9E3779B97F4A7C15ull ^ b * 0xC2B2AE3D27D4EB4Full;
    return x ^ x >> 29;
}

int main(void) {
    long pages = setting("PAGES", 2048), burst = setting("BURST", 16);
    long tick = setting("TICK", 20);
    struct page *p = mmap(NULL, pages * sizeof *p, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *shadow = calloc(pages, sizeof *shadow), n = 0, errors = 0, next = 0;
    if (p == MAP_FAILED || !shadow) {
        puts("dirtier: no memory");
        for (;;) pause();
    }
    for (long i = 0; i < pages; i++) {
        memcpy(p[i].magic, MAGIC, 16);
        p[i].index = i;
        p[i].count = 0;
        p[i].sum = mix(i, 0);
        memset(p[i].fill, i & 0xff, sizeof p[i].fill);
    }
    signal(SIGHUP, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("dirtier: ready pages=%ld burst=%ld tick=%ld\n", pages, burst, tick);
    struct timespec t0, t;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (uint64_t loop = 1;; loop++) {
        for (long k = 0; k < burst; k++) {
            long i = next++ % pages;
            if (memcmp(p[i].magic, MAGIC, 16) || p[i].index != (uint64_t)i
                || p[i].count != shadow[i] || p[i].sum != mix(i, p[i].count)
                || p[i].fill[100] != (i & 0xff))
                errors++;
            shadow[i] = ++n;
            p[i].count = n;
            p[i].sum = mix(i, n);
        }
        clock_gettime(CLOCK_MONOTONIC, &t);
        if (t.tv_sec != t0.tv_sec) {
            printf("dirtier: loop=%llu writes=%llu errors=%llu\n", (unsigned long long)loop,
                   (unsigned long long)n, (unsigned long long)errors);
            t0 = t;
        }
        struct timespec d = { tick / 1000, tick % 1000 * 1000000 };
        nanosleep(&d, NULL);
    }
}
