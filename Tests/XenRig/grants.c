/* grants DOMID GRANT SECONDS: holds a grant of the guest mapped for so long, as a back end does
 * whose requests do not end.
 *
 * grants DOMID: does a write through a grant that stays mapped show in the dirty log?
 *
 * Maps the guest's grant 1 (the page it shares with xenstored, GNTTAB_RESERVED_XENSTORE) writable,
 * and writes to its unused end while the guest is paused, so that there are no other writes. Prints
 * the log's state after a write through the mapping, and after the unmap. Exit status 0: everything
 * was tried. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xengnttab.h>
/* After xenctrl.h, which defines that this is a tool. */
#include <xen/hvm/params.h>

static xc_interface *xch;
static uint32_t domid;
static unsigned long frames, frame;
DECLARE_HYPERCALL_BUFFER(uint64_t, bits);

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int is_dirty(unsigned mode) {
    if (xc_logdirty_control(xch, domid, XEN_DOMCTL_SHADOW_OP_CLEAN, HYPERCALL_BUFFER(bits), frames,
                            mode, NULL) != (long long)frames)
        die("CLEAN");
    return bits[frame / 64] >> frame % 64 & 1;
}

static int hold(uint32_t grant, unsigned seconds) {
    xengnttab_handle *grants = xengnttab_open(NULL, 0);
    void *page = grants ? xengnttab_map_grant_ref(grants, domid, grant, PROT_READ) : NULL;
    if (!page) die("map");
    puts("held");
    fflush(stdout);
    sleep(seconds);
    if (xengnttab_unmap(grants, page, 1)) die("unmap");
    return 0;
}

int main(int argc, char **argv) {
    domid = argc > 1 ? atoi(argv[1]) : 0;
    if (argc == 4) return hold(atoi(argv[2]), atoi(argv[3]));
    xch = xc_interface_open(NULL, NULL, 0);
    xengnttab_handle *grants = xengnttab_open(NULL, 0);
    xen_pfn_t count;
    uint64_t value = 0;
    if (!xch || !grants) die("open");
    if (xc_domain_nr_gpfns(xch, domid, &count)
        || xc_hvm_param_get(xch, domid, HVM_PARAM_STORE_PFN, &value))
        die("domain");
    frames = count;
    frame = value;
    bits = xc_hypercall_buffer_alloc_pages(xch, bits, frames / 8 / 4096 + 1);
    if (!bits || xc_shadow_control(xch, domid, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, NULL, 0))
        die("log");
    volatile char *page = xengnttab_map_grant_ref(grants, domid, 1, PROT_READ | PROT_WRITE);
    if (!page) die("map");
    if (xc_domain_pause(xch, domid)) die("pause");
    is_dirty(0);
    page[4000] = 1;
    int written = is_dirty(0);
    page[4000] = 0;
    int final = is_dirty(XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL);
    xengnttab_unmap(grants, (void *)page, 1);
    int unmapped = is_dirty(0);
    xc_domain_unpause(xch, domid);
    xc_shadow_control(xch, domid, XEN_DOMCTL_SHADOW_OP_OFF, NULL, 0);
    printf("after a write %d, with FINAL %d, after the unmap %d\n", written, final, unmapped);
    return 0;
}
