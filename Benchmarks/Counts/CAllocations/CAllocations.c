// Counts allocations: an executable's own malloc replaces glibc's for all libraries in the process.
// Each function calls glibc's, under the name that glibc reserves for this; free is not replaced.

#include "CAllocations.h"

#include <errno.h>
#include <stdatomic.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

static atomic_size_t count;
// In the executable's own thread-local block, so that access to it allocates nothing.
static _Thread_local size_t thread_count __attribute__((tls_model("local-exec")));

size_t callocations_count(void) { return atomic_load(&count); }

size_t callocations_thread_count(void) { return thread_count; }

static void add(void) {
    thread_count++;
    atomic_fetch_add_explicit(&count, 1, memory_order_relaxed);
}

void *malloc(size_t size) {
    add();
    return __libc_malloc(size);
}

void *calloc(size_t items, size_t size) {
    add();
    return __libc_calloc(items, size);
}

void *realloc(void *memory, size_t size) {
    add();
    return __libc_realloc(memory, size);
}

void *memalign(size_t alignment, size_t size) {
    add();
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    add();
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
    add();
    *memory = __libc_memalign(alignment, size);
    return *memory ? 0 : ENOMEM;
}
