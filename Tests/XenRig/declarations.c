/* Compares the declarations of CXen.h with Xen's own headers (libxen-dev). Scripts/xen-test
 * compiles it with those of each version, and nothing runs it.
 *
 * With -D FUNCTIONS the types of all functions are compared, with -D STRUCTURES the layouts of
 * structures, and values. */
#include <libxl.h>
#include <stdio.h>
#include <xencall.h>
#include <xenctrl.h>
#include <xendevicemodel.h>
#include <xenforeignmemory.h>
#include <xenguest.h>
#include <xenstore.h>
#include <xentoollog.h>
#include <xen/grant_table.h>
/* After xenctrl.h, which defines that this is a tool. */
#include <xen/domctl.h>

/* tools/libs/ctrl/xc_private.h, which is not installed. */
int xc_get_pfn_type_batch(xc_interface *xch, uint32_t dom, unsigned int num, xen_pfn_t *arr);

#ifdef FUNCTIONS

#define CXEN_TYPES_OF_XEN
typedef xc_domaininfo_t cxen_domaininfo;
typedef xc_hypercall_buffer_t cxen_hypercall_buffer;
typedef xc_shadow_op_stats_t cxen_shadow_stats;
typedef struct gnttab_query_size cxen_grant_table_size;
typedef xen_cpuid_leaf_t cxen_cpuid_leaf;
typedef xen_msr_entry_t cxen_msr_entry;
typedef struct save_callbacks cxen_save_callbacks;
typedef libxl_uuid cxen_uuid;
typedef libxl_domain_config cxen_config;
typedef libxl_domain_create_info cxen_create_info;
typedef libxl_asyncop_how cxen_asyncop;
typedef libxl_asyncprogress_how cxen_progress;
typedef FILE cxen_file;
#include "CXen.h"

#include "functions.h"

#define FUNCTION(library, name) \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&name), \
                                                __typeof__(((cxen_calls *)0)->name)), \
                   #name " is declared otherwise in Xen's headers");
CXEN_FUNCTIONS(FUNCTION)

#elif defined(STRUCTURES)

#include <stddef.h>

#include "CXen.h"

#define SAME(what, one, other) \
    _Static_assert((one) == (other), what " differs from Xen's headers")
#define VALUE(ours, xens) SAME(#ours, ours, xens)
#define STRUCTURE(ours, xens) SAME("the size of " #ours, sizeof(ours), sizeof(xens))
#define MEMBER(ours, xens, name) \
    SAME("the place of " #ours "." #name, offsetof(ours, name), offsetof(xens, name)); \
    SAME("the size of " #ours "." #name, sizeof(((ours *)0)->name), sizeof(((xens *)0)->name))

STRUCTURE(cxen_domaininfo, xc_domaininfo_t);
MEMBER(cxen_domaininfo, xc_domaininfo_t, domain);
MEMBER(cxen_domaininfo, xc_domaininfo_t, flags);
MEMBER(cxen_domaininfo, xc_domaininfo_t, tot_pages);
MEMBER(cxen_domaininfo, xc_domaininfo_t, max_pages);
MEMBER(cxen_domaininfo, xc_domaininfo_t, outstanding_pages);
MEMBER(cxen_domaininfo, xc_domaininfo_t, shr_pages);
MEMBER(cxen_domaininfo, xc_domaininfo_t, paged_pages);
MEMBER(cxen_domaininfo, xc_domaininfo_t, shared_info_frame);
MEMBER(cxen_domaininfo, xc_domaininfo_t, cpu_time);
MEMBER(cxen_domaininfo, xc_domaininfo_t, nr_online_vcpus);
MEMBER(cxen_domaininfo, xc_domaininfo_t, max_vcpu_id);
MEMBER(cxen_domaininfo, xc_domaininfo_t, ssidref);
MEMBER(cxen_domaininfo, xc_domaininfo_t, handle);
MEMBER(cxen_domaininfo, xc_domaininfo_t, cpupool);
MEMBER(cxen_domaininfo, xc_domaininfo_t, gpaddr_bits);
MEMBER(cxen_domaininfo, xc_domaininfo_t, arch_config);
STRUCTURE(cxen_hypercall_buffer, xc_hypercall_buffer_t);
MEMBER(cxen_hypercall_buffer, xc_hypercall_buffer_t, hbuf);
MEMBER(cxen_hypercall_buffer, xc_hypercall_buffer_t, param_shadow);
MEMBER(cxen_hypercall_buffer, xc_hypercall_buffer_t, dir);
MEMBER(cxen_hypercall_buffer, xc_hypercall_buffer_t, ubuf);
MEMBER(cxen_hypercall_buffer, xc_hypercall_buffer_t, sz);
STRUCTURE(cxen_shadow_stats, xc_shadow_op_stats_t);
MEMBER(cxen_shadow_stats, xc_shadow_op_stats_t, fault_count);
MEMBER(cxen_shadow_stats, xc_shadow_op_stats_t, dirty_count);
STRUCTURE(cxen_grant_table_size, struct gnttab_query_size);
MEMBER(cxen_grant_table_size, struct gnttab_query_size, dom);
MEMBER(cxen_grant_table_size, struct gnttab_query_size, nr_frames);
MEMBER(cxen_grant_table_size, struct gnttab_query_size, max_nr_frames);
MEMBER(cxen_grant_table_size, struct gnttab_query_size, status);
STRUCTURE(cxen_cpuid_leaf, xen_cpuid_leaf_t);
MEMBER(cxen_cpuid_leaf, xen_cpuid_leaf_t, leaf);
MEMBER(cxen_cpuid_leaf, xen_cpuid_leaf_t, subleaf);
MEMBER(cxen_cpuid_leaf, xen_cpuid_leaf_t, a);
MEMBER(cxen_cpuid_leaf, xen_cpuid_leaf_t, b);
MEMBER(cxen_cpuid_leaf, xen_cpuid_leaf_t, c);
MEMBER(cxen_cpuid_leaf, xen_cpuid_leaf_t, d);
STRUCTURE(cxen_msr_entry, xen_msr_entry_t);
MEMBER(cxen_msr_entry, xen_msr_entry_t, idx);
MEMBER(cxen_msr_entry, xen_msr_entry_t, flags);
MEMBER(cxen_msr_entry, xen_msr_entry_t, val);
STRUCTURE(cxen_save_callbacks, struct save_callbacks);
MEMBER(cxen_save_callbacks, struct save_callbacks, suspend);
MEMBER(cxen_save_callbacks, struct save_callbacks, precopy_policy);
MEMBER(cxen_save_callbacks, struct save_callbacks, postcopy);
MEMBER(cxen_save_callbacks, struct save_callbacks, checkpoint);
MEMBER(cxen_save_callbacks, struct save_callbacks, wait_checkpoint);
MEMBER(cxen_save_callbacks, struct save_callbacks, switch_qemu_logdirty);
MEMBER(cxen_save_callbacks, struct save_callbacks, data);
STRUCTURE(cxen_uuid, libxl_uuid);
MEMBER(cxen_uuid, libxl_uuid, uuid);

_Static_assert(sizeof(libxl_domain_config) <= CXEN_CONFIG_SIZE, "libxl_domain_config is larger");
_Static_assert(offsetof(libxl_domain_config, c_info) == 0, "c_info does not come first");
_Static_assert(sizeof(xen_pfn_t) == sizeof(unsigned long), "xen_pfn_t");

VALUE(CXEN_XENVER_VERSION, XENVER_version);
VALUE(CXEN_XEN_VERSION_CALL, __HYPERVISOR_xen_version);
VALUE(CXEN_DOMINF_DYING, XEN_DOMINF_dying);
VALUE(CXEN_DOMINF_HVM_GUEST, XEN_DOMINF_hvm_guest);
VALUE(CXEN_DOMINF_SHUTDOWN, XEN_DOMINF_shutdown);
VALUE(CXEN_DOMINF_PAUSED, XEN_DOMINF_paused);
VALUE(CXEN_DOMINF_SHUTDOWN_SHIFT, XEN_DOMINF_shutdownshift);
VALUE(CXEN_DOMINF_SHUTDOWN_MASK, XEN_DOMINF_shutdownmask);
VALUE(CXEN_SHADOW_OP_OFF, XEN_DOMCTL_SHADOW_OP_OFF);
VALUE(CXEN_SHADOW_OP_ENABLE_LOGDIRTY, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY);
VALUE(CXEN_SHADOW_OP_CLEAN, XEN_DOMCTL_SHADOW_OP_CLEAN);
VALUE(CXEN_SHADOW_OP_PEEK, XEN_DOMCTL_SHADOW_OP_PEEK);
VALUE(CXEN_SHADOW_LOGDIRTY_FINAL, XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL);
VALUE(CXEN_RESOURCE_GRANT_TABLE, XENMEM_resource_grant_table);
VALUE(CXEN_RESOURCE_GRANT_TABLE_SHARED, XENMEM_resource_grant_table_id_shared);
VALUE(CXEN_GTF_PERMIT_ACCESS, GTF_permit_access);
VALUE(CXEN_GTF_TYPE_MASK, GTF_type_mask);
VALUE(CXEN_SAVE_LIVE, XCFLAGS_LIVE);
VALUE(CXEN_STREAM_PLAIN, XC_STREAM_PLAIN);
VALUE(CXEN_STREAM_REMUS, XC_STREAM_REMUS);
VALUE(CXEN_LOG_ERROR, XTL_ERROR);
VALUE(CXEN_LOG_CRITICAL, XTL_CRITICAL);
VALUE(CXEN_LIBXL_VERSION, LIBXL_VERSION);
VALUE(CXEN_LIBXL_ERROR_FAIL, ERROR_FAIL);

#else
#error "either FUNCTIONS or STRUCTURES"
#endif

/* CXen.c asks for the version through them. */
_Static_assert(__builtin_types_compatible_p(__typeof__(&xencall_open),
                                            xencall_handle *(*)(xentoollog_logger *, unsigned)),
               "xencall_open is declared otherwise in Xen's headers");
_Static_assert(__builtin_types_compatible_p(
                   __typeof__(&xencall2), int (*)(xencall_handle *, unsigned, uint64_t, uint64_t)),
               "xencall2 is declared otherwise in Xen's headers");
_Static_assert(__builtin_types_compatible_p(__typeof__(&xencall_close), int (*)(xencall_handle *)),
               "xencall_close is declared otherwise in Xen's headers");
