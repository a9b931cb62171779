// Preloaded under valgrind, which has address space of 128 GiB and cannot map the index's file at
// the size that LMDB is given otherwise.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

int mdb_env_set_mapsize(void *environment, size_t size);

int mdb_env_set_mapsize(void *environment, size_t size) {
    int (*next)(void *, size_t);
    *(void **)&next = dlsym(RTLD_NEXT, "mdb_env_set_mapsize");
    const size_t limit = (size_t)1 << 30;
    return next(environment, size < limit ? size : limit);
}
