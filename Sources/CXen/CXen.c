#include "CXen.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>

#include "functions.h"

#if defined(__x86_64__)
_Static_assert(sizeof(unsigned long) == 8, "xen_pfn_t is an unsigned long of 64 bits");
_Static_assert(sizeof(cxen_domaininfo) == 112, "xc_domaininfo_t");
_Static_assert(offsetof(cxen_domaininfo, handle) == 76, "xc_domaininfo_t.handle");
#endif

// In the order of loading: a library is there before those that need it, so that all of them come
// from one directory. These numbers are indices of `names`.
enum { TOOLLOG, MEMORY, MODEL, STORE, CONTROL, GUEST, LIGHT, LIBRARY_COUNT };

// The interface of the first four is stable, and their sonames do not follow Xen's version.
static const char *const names[LIBRARY_COUNT] = {
    "libxentoollog.so.1",      "libxenforeignmemory.so.1", "libxendevicemodel.so.1",
    "libxenstore.so.4",        "libxenctrl.so.%u.%u",      "libxenguest.so.%u.%u",
    "libxenlight.so.%u.%u",
};

static const struct {
    unsigned library;
    const char *name;
    size_t offset;
} functions[] = {
#define FUNCTION(library, name) {library, #name, offsetof(cxen_calls, name)},
    CXEN_FUNCTIONS(FUNCTION)
#undef FUNCTION
};

enum { FUNCTION_COUNT = sizeof(functions) / sizeof(functions[0]) };

// A function that is missing above would be a null pointer in the table.
_Static_assert(
    FUNCTION_COUNT == sizeof(cxen_calls) / sizeof(void (*)(void)), "a function is not loaded");

// dlopen of a library by its name, in a directory if one is given.
static void *open_library(const char *directory, const char *name) {
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s%s%s", directory ? directory : "",
                          directory ? "/" : "", name);
    if (length < 0 || (size_t)length >= sizeof(path)) return NULL;
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static void *open_numbered(
    const char *directory, unsigned library, unsigned major, unsigned minor) {
    char name[64];
    // The names without a version ignore the numbers.
    snprintf(name, sizeof(name), names[library], major, minor);
    return open_library(directory, name);
}

static void keep_problem(char *problem, size_t problem_size) {
    const char *text = dlerror();
    snprintf(problem, problem_size, "%s", text ? text : "a path is too long");
}

int cxen_load(
    const char *directory, unsigned major, unsigned minor, cxen_calls *calls, char *problem,
    size_t problem_size) {
    void *libraries[LIBRARY_COUNT] = {NULL};
    int result = 0;
    for (unsigned i = 0; i < LIBRARY_COUNT && result == 0; i++) {
        libraries[i] = open_numbered(directory, i, major, minor);
        if (!libraries[i]) result = -1;
    }
    for (unsigned i = 0; i < FUNCTION_COUNT && result == 0; i++) {
        void *function = dlsym(libraries[functions[i].library], functions[i].name);
        if (!function) result = -2;
        *(void **)((char *)calls + functions[i].offset) = function;
    }
    if (result == 0) return 0;
    keep_problem(problem, problem_size);
    for (unsigned i = LIBRARY_COUNT; i-- > 0;)
        if (libraries[i]) dlclose(libraries[i]);
    return result;
}

int cxen_is_installed(const char *directory, unsigned major, unsigned minor) {
    void *library = open_numbered(directory, CONTROL, major, minor);
    if (library) dlclose(library);
    return library != NULL;
}

// A function of a library that may not be there.
static void *find(void *library, const char *name) { return library ? dlsym(library, name) : NULL; }

int cxen_ask_version(const char *directory) {
    struct xentoollog_logger_stdiostream *(*make_logger)(void *stream, unsigned, unsigned);
    void (*destroy_logger)(struct xentoollog_logger *logger);
    struct xencall_handle *(*open)(struct xentoollog_logger *logger, unsigned flags);
    int (*call)(struct xencall_handle *handle, unsigned op, uint64_t one, uint64_t two);
    int (*close)(struct xencall_handle *handle);
    // Without a logger libxencall would print its failures.
    void *log_library = open_library(directory, names[TOOLLOG]);
    void *library = open_library(directory, "libxencall.so.1");
    *(void **)&make_logger = find(log_library, "xtl_createlogger_stdiostream");
    *(void **)&destroy_logger = find(log_library, "xtl_logger_destroy");
    *(void **)&open = find(library, "xencall_open");
    *(void **)&call = find(library, "xencall2");
    *(void **)&close = find(library, "xencall_close");
    int version = -1;
    if (make_logger && destroy_logger && open && call && close) {
        struct xentoollog_logger *logger = (void *)make_logger(stderr, CXEN_LOG_CRITICAL, 0);
        struct xencall_handle *handle = logger ? open(logger, 0) : NULL;
        if (handle) {
            version = call(handle, CXEN_XEN_VERSION_CALL, CXEN_XENVER_VERSION, 0);
            close(handle);
        }
        if (logger) destroy_logger(logger);
    }
    if (library) dlclose(library);
    if (log_library) dlclose(log_library);
    return version;
}
