/* grants DOMID GRANT SECONDS: holds a grant of the guest mapped for so long, as a back end does
 * whose requests do not end.
 *
 * grants DOMID: does a write through a grant that stays mapped show in the dirty log?
 *
 * Maps the guest's grant 1 (the page it shares with xenstored, GNTTAB_RESERVED_XENSTORE) writable,
 * and writes to its unused end while the guest is paused, so that there are no other writes. Prints
 * the log's state after a write through the mapping, and after the unmap. Exit status 0: everything
 * was tried.
 *
 * It loads Xen's libraries as Varve does, so that it runs with each version. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "CXen.h"

/* xen/hvm/params.h. */
#define STORE_PFN 1

/* libxengnttab.so.1: xengnttab.h, whose interface is stable. */
struct xengnttab_handle;
static struct xengnttab_handle *(*gnttab_open)(void *logger, unsigned flags);
static void *(*gnttab_map)(struct xengnttab_handle *grants, uint32_t domid, uint32_t grant,
                           int protection);
static int (*gnttab_unmap)(struct xengnttab_handle *grants, void *page, uint32_t count);

static cxen_calls xen;
static struct xc_interface_core *control;
static uint32_t domid;
static unsigned long frames, frame;
static cxen_hypercall_buffer buffer = {.ubuf = (void *)-1};
static uint64_t *bits;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void load(void) {
    unsigned numbers[2];
    const char *files[2] = {"/sys/hypervisor/version/major", "/sys/hypervisor/version/minor"};
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen(files[i], "r");
        if (!file || fscanf(file, "%u", &numbers[i]) != 1) die(files[i]);
        fclose(file);
    }
    char problem[256];
    if (cxen_load(NULL, numbers[0], numbers[1], &xen, problem, sizeof(problem))) {
        fprintf(stderr, "%s\n", problem);
        exit(1);
    }
    void *library = dlopen("libxengnttab.so.1", RTLD_NOW);
    if (!library) die("libxengnttab.so.1");
    *(void **)&gnttab_open = dlsym(library, "xengnttab_open");
    *(void **)&gnttab_map = dlsym(library, "xengnttab_map_grant_ref");
    *(void **)&gnttab_unmap = dlsym(library, "xengnttab_unmap");
    if (!gnttab_open || !gnttab_map || !gnttab_unmap) die("a function of libxengnttab");
}

static int is_dirty(unsigned mode) {
    if (xen.xc_logdirty_control(control, domid, CXEN_SHADOW_OP_CLEAN, &buffer, frames, mode, NULL)
        != (long long)frames)
        die("CLEAN");
    return bits[frame / 64] >> frame % 64 & 1;
}

static int hold(uint32_t grant, unsigned seconds) {
    struct xengnttab_handle *grants = gnttab_open(NULL, 0);
    void *page = grants ? gnttab_map(grants, domid, grant, PROT_READ) : NULL;
    if (!page) die("map");
    puts("held");
    fflush(stdout);
    sleep(seconds);
    if (gnttab_unmap(grants, page, 1)) die("unmap");
    return 0;
}

int main(int argc, char **argv) {
    domid = argc > 1 ? atoi(argv[1]) : 0;
    load();
    if (argc == 4) return hold(atoi(argv[2]), atoi(argv[3]));
    control = xen.xc_interface_open(NULL, NULL, 0);
    struct xengnttab_handle *grants = gnttab_open(NULL, 0);
    unsigned long count;
    uint64_t value = 0;
    if (!control || !grants) die("open");
    if (xen.xc_domain_nr_gpfns(control, domid, &count)
        || xen.xc_hvm_param_get(control, domid, STORE_PFN, &value))
        die("domain");
    frames = count;
    frame = value;
    bits = xen.xc__hypercall_buffer_alloc_pages(control, &buffer, frames / 8 / 4096 + 1);
    if (!bits
        || xen.xc_shadow_control(control, domid, CXEN_SHADOW_OP_ENABLE_LOGDIRTY, NULL, 0))
        die("log");
    volatile char *page = gnttab_map(grants, domid, 1, PROT_READ | PROT_WRITE);
    if (!page) die("map");
    if (xen.xc_domain_pause(control, domid)) die("pause");
    is_dirty(0);
    page[4000] = 1;
    int written = is_dirty(0);
    page[4000] = 0;
    int final = is_dirty(CXEN_SHADOW_LOGDIRTY_FINAL);
    gnttab_unmap(grants, (void *)page, 1);
    int unmapped = is_dirty(0);
    xen.xc_domain_unpause(control, domid);
    xen.xc_shadow_control(control, domid, CXEN_SHADOW_OP_OFF, NULL, 0);
    printf("after a write %d, with FINAL %d, after the unmap %d\n", written, final, unmapped);
    return 0;
}
