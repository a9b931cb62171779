#ifndef CALLOCATIONS_H
#define CALLOCATIONS_H

#include <stddef.h>

/// Allocations of this process so far, in all threads: malloc, calloc, realloc and aligned ones.
size_t callocations_count(void);

/// Allocations of the calling thread so far.
size_t callocations_thread_count(void);

#endif
