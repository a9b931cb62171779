/* revertdeath.so: kills the process in which it is loaded at a moment of a revert.
 *
 *   LD_PRELOAD=revertdeath.so REVERT_DEATH="soft-reset 1 before" varve xen revert ...
 *
 * The moment is the Nth call of a name, before or after it is made, counted from the call that
 * pauses the domain; that one is "pause 1". Programs that are started do not inherit it.
 *
 * It looks at ioctl(2), through which Xen's libraries and libdevmapper call the kernel. Names of
 * domctl are those of xen/include/public/domctl.h, with their numbers there; a number of another
 * version of Xen's would be found by a moment that does not come. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/dm-ioctl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* include/uapi/xen/privcmd.h of Linux. */
struct hypercall { uint64_t number, arguments[5]; };
#define HYPERCALL _IOC(_IOC_NONE, 'P', 0, sizeof(struct hypercall))
#define MAP_BATCH 4
#define MAP_RESOURCE 7
enum { MEMORY = 12, EVENT_CHANNEL = 32, HVM = 34, DOMCTL = 36 };

static char wanted[32], when[8];
static int number, is_armed;

__attribute__((constructor)) static void read_moment(void) {
    const char *moment = getenv("REVERT_DEATH");
    if (moment && sscanf(moment, "%31s %d %7s", wanted, &number, when) != 3) {
        fprintf(stderr, "revertdeath: '%s' is no moment\n", moment);
        _exit(2);
    }
    unsetenv("REVERT_DEATH");
    unsetenv("LD_PRELOAD");
}

static const char *domctl(uint32_t command) {
    switch (command) {
    case 3: return "pause";
    case 4: return "unpause";
    case 10: return "log";
    case 33: return "get-context";
    case 34: return "set-context";
    case 79: return "soft-reset";
    default: return "";
    }
}

static const char *name_of(unsigned long request, const void *argument) {
    if (request == HYPERCALL) {
        const struct hypercall *call = argument;
        switch (call->number) {
        case MEMORY: return "memory";
        case EVENT_CHANNEL: return "channel";
        case HVM: return "parameter";
        case DOMCTL: return domctl(*(const uint32_t *)(uintptr_t)call->arguments[0]);
        default: return "";
        }
    }
    if (_IOC_TYPE(request) == 'P' && _IOC_NR(request) == MAP_BATCH) return "map";
    if (_IOC_TYPE(request) == 'P' && _IOC_NR(request) == MAP_RESOURCE) return "grants";
    if (request == DM_TABLE_LOAD) return "table";
    if (request == DM_DEV_SUSPEND)
        return ((const struct dm_ioctl *)argument)->flags & DM_SUSPEND_FLAG ? "suspend" : "resume";
    return "";
}

int ioctl(int file, unsigned long request, ...) {
    static int (*call)(int, unsigned long, ...);
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!call) *(void **)&call = dlsym(RTLD_NEXT, "ioctl");
    const char *name = wanted[0] ? name_of(request, argument) : "";
    is_armed |= !strcmp(name, "pause");
    int is_moment = is_armed && !strcmp(name, wanted) && --number == 0;
    if (is_moment && !strcmp(when, "before")) kill(getpid(), SIGKILL);
    int result = call(file, request, argument);
    if (is_moment) kill(getpid(), SIGKILL);
    return result;
}
