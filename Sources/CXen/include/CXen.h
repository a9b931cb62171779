#ifndef CXEN_H
#define CXEN_H

// The functions of Xen's libraries that this package calls, and what loads them at run time.
//
// Nothing of Xen is linked, and no header of Xen is included: these are declarations of our own of
// the functions, structures and values that are used. Each group names the library that exports
// the functions and the headers that the declarations follow. All of them were compared with these
// headers in Debian's packages of Xen 4.17 and 4.20, by compiling Tests/XenRig/declarations.c with
// each, and with the sources of Xen's branches stable-4.17 to stable-4.22. Between these versions
// no function, structure or value that is declared here differs. What does differ is not declared:
//
// - `xc_domain_getinfo` and `xc_dominfo_t` were removed in 4.18, `xc_domain_getinfo_single` is new
//   there. `xc_domain_getinfolist` is in all of them.
// - `libxl_domain_config` grows with each version (1288 bytes in 4.17, 1368 in 4.20). It is memory
//   of CXEN_CONFIG_SIZE bytes here, of which only libxenlight knows the members.
// - The interface for domains of the hypervisor has a version of its own (XEN_DOMCTL_INTERFACE_
//   VERSION: 0x15 in 4.17, 0x16 in 4.18, 0x17 in 4.19 to 4.21, 0x18 in 4.22), and the hypervisor
//   refuses every other with EACCES. libxenctrl speaks one of them.
//
// The layouts are those of x86-64.

// No header of the C library that declares structures or calls: Swift would take them for this
// module's, and every file that uses them would have to import it.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// MARK: Values

// xen/xen.h, xen/version.h: a hypercall, and a question to it.
#define CXEN_XEN_VERSION_CALL 17u
#define CXEN_XENVER_VERSION 0

// xen/domctl.h: flags of a domain, and operations on the dirty log.
#define CXEN_DOMINF_DYING 1u
#define CXEN_DOMINF_HVM_GUEST 2u
#define CXEN_DOMINF_SHUTDOWN 4u
#define CXEN_DOMINF_PAUSED 8u
#define CXEN_DOMINF_SHUTDOWN_SHIFT 16u
#define CXEN_DOMINF_SHUTDOWN_MASK 255u
#define CXEN_SHADOW_OP_OFF 0u
#define CXEN_SHADOW_OP_ENABLE_LOGDIRTY 2u
#define CXEN_SHADOW_OP_CLEAN 11u
#define CXEN_SHADOW_OP_PEEK 12u
#define CXEN_SHADOW_LOGDIRTY_FINAL 1u

// xen/memory.h, xen/grant_table.h.
#define CXEN_RESOURCE_GRANT_TABLE 1u
#define CXEN_RESOURCE_GRANT_TABLE_SHARED 0u
#define CXEN_GTF_PERMIT_ACCESS 1
#define CXEN_GTF_TYPE_MASK 3

// xenguest.h: a flag and types of streams.
#define CXEN_SAVE_LIVE 1u
#define CXEN_STREAM_PLAIN 0u
#define CXEN_STREAM_REMUS 1u

// xentoollog.h.
#define CXEN_LOG_ERROR 8u
#define CXEN_LOG_CRITICAL 9u

// libxl.h, _libxl_types.h.
#define CXEN_LIBXL_VERSION 0
#define CXEN_LIBXL_ERROR_FAIL (-3)

/// Enough for a `libxl_domain_config` of any version.
#define CXEN_CONFIG_SIZE 65536

// MARK: Structures

// Tests/XenRig/declarations.c defines these types as Xen's own, to compare the functions.
#ifndef CXEN_TYPES_OF_XEN

/// `xc_domaininfo_t`, which is `struct xen_domctl_getdomaininfo` of xen/domctl.h.
typedef struct cxen_domaininfo {
    uint16_t domain;
    uint16_t pad1;
    uint32_t flags; // CXEN_DOMINF_*
    uint64_t tot_pages;
    uint64_t max_pages;
    uint64_t outstanding_pages;
    uint64_t shr_pages;
    uint64_t paged_pages;
    uint64_t shared_info_frame;
    uint64_t cpu_time; // nanoseconds
    uint32_t nr_online_vcpus;
    uint32_t max_vcpu_id;
    uint32_t ssidref;
    uint8_t handle[16];
    uint32_t cpupool;
    uint8_t gpaddr_bits;
    uint8_t pad2[7];
    struct {
        uint32_t emulation_flags;
        uint32_t misc_flags;
    } arch_config; // struct xen_arch_domainconfig of xen/arch-x86/xen.h
} cxen_domaininfo;

/// `xc_hypercall_buffer_t` of xenctrl.h.
typedef struct cxen_hypercall_buffer {
    void *hbuf;
    struct cxen_hypercall_buffer *param_shadow;
    int dir;
    void *ubuf;
    size_t sz;
} cxen_hypercall_buffer;

/// `xc_shadow_op_stats_t`, which is `struct xen_domctl_shadow_op_stats` of xen/domctl.h.
typedef struct cxen_shadow_stats {
    uint32_t fault_count;
    uint32_t dirty_count;
} cxen_shadow_stats;

/// `struct gnttab_query_size` of xen/grant_table.h.
typedef struct cxen_grant_table_size {
    uint16_t dom;
    uint32_t nr_frames;
    uint32_t max_nr_frames;
    int16_t status;
} cxen_grant_table_size;

/// `xen_cpuid_leaf_t` of xen/arch-x86/xen.h.
typedef struct cxen_cpuid_leaf {
    uint32_t leaf, subleaf, a, b, c, d;
} cxen_cpuid_leaf;

/// `xen_msr_entry_t` of xen/arch-x86/xen.h.
typedef struct cxen_msr_entry {
    uint32_t idx, flags;
    uint64_t val;
} cxen_msr_entry;

/// `struct save_callbacks` of xenguest.h.
typedef struct cxen_save_callbacks {
    int (*suspend)(void *data);
    void (*precopy_policy)(void); // never set here: another type in xenguest.h
    int (*postcopy)(void *data);
    int (*checkpoint)(void *data);
    int (*wait_checkpoint)(void *data);
    int (*switch_qemu_logdirty)(uint32_t domid, unsigned enable, void *data);
    void *data;
} cxen_save_callbacks;

/// `libxl_uuid` of libxl_uuid.h.
typedef struct cxen_uuid {
    uint8_t uuid[16];
} cxen_uuid;

/// `libxl_domain_config` of _libxl_types.h; begins with its `libxl_domain_create_info`.
typedef struct cxen_config cxen_config;
/// `libxl_domain_create_info`.
typedef struct cxen_create_info cxen_create_info;
/// `libxl_asyncop_how`, `libxl_asyncprogress_how` of libxl.h: always NULL here, so calls block.
typedef struct cxen_asyncop cxen_asyncop;
typedef struct cxen_progress cxen_progress;

/// `FILE` of the C library.
typedef void cxen_file;

#endif

// MARK: Functions

// Handles, whose members only the libraries know.
struct libxl__ctx;
struct xc_cpu_policy;
struct xc_interface_core;
struct xendevicemodel_handle;
struct xenforeignmemory_handle;
struct xenforeignmemory_resource_handle;
struct xentoollog_logger;
struct xentoollog_logger_stdiostream;
struct xs_handle;

/// A function of Xen's each, under its own name.
typedef struct cxen_calls {
    // libxentoollog.so.1: xentoollog.h.

    struct xentoollog_logger_stdiostream *(*xtl_createlogger_stdiostream)(
        cxen_file *stream, unsigned level, unsigned flags);
    void (*xtl_logger_destroy)(struct xentoollog_logger *logger);

    // libxenforeignmemory.so.1: xenforeignmemory.h.

    struct xenforeignmemory_handle *(*xenforeignmemory_open)(
        struct xentoollog_logger *logger, unsigned flags);
    int (*xenforeignmemory_close)(struct xenforeignmemory_handle *memory);
    void *(*xenforeignmemory_map)(
        struct xenforeignmemory_handle *memory, uint32_t domid, int protection, size_t count,
        const unsigned long *frames, int *errors);
    int (*xenforeignmemory_unmap)(
        struct xenforeignmemory_handle *memory, void *address, size_t count);
    struct xenforeignmemory_resource_handle *(*xenforeignmemory_map_resource)(
        struct xenforeignmemory_handle *memory, uint16_t domid, unsigned type, unsigned id,
        unsigned long frame, unsigned long count, void **address, int protection, int flags);
    int (*xenforeignmemory_unmap_resource)(
        struct xenforeignmemory_handle *memory,
        struct xenforeignmemory_resource_handle *resource);

    // libxendevicemodel.so.1: xendevicemodel.h.

    struct xendevicemodel_handle *(*xendevicemodel_open)(
        struct xentoollog_logger *logger, unsigned flags);
    int (*xendevicemodel_close)(struct xendevicemodel_handle *model);
    int (*xendevicemodel_inject_msi)(
        struct xendevicemodel_handle *model, uint16_t domid, uint64_t address, uint32_t data);

    // libxenstore.so.4: xenstore.h. A transaction is a u32; 0 (XBT_NULL) is none.

    struct xs_handle *(*xs_open)(unsigned long flags);
    void (*xs_close)(struct xs_handle *store);
    void *(*xs_read)(
        struct xs_handle *store, uint32_t transaction, const char *path, unsigned *count);
    bool (*xs_write)(
        struct xs_handle *store, uint32_t transaction, const char *path, const void *bytes,
        unsigned count);
    char **(*xs_directory)(
        struct xs_handle *store, uint32_t transaction, const char *path, unsigned *count);
    bool (*xs_watch)(struct xs_handle *store, const char *path, const char *token);
    int (*xs_fileno)(struct xs_handle *store);
    char **(*xs_check_watch)(struct xs_handle *store);
    bool (*xs_resume_domain)(struct xs_handle *store, unsigned domid);
    bool (*xs_introduce_domain)(
        struct xs_handle *store, unsigned domid, unsigned long frame, unsigned port);

    // libxenctrl.so.VERSION: xenctrl.h.

    struct xc_interface_core *(*xc_interface_open)(
        struct xentoollog_logger *logger, struct xentoollog_logger *builder_logger,
        unsigned flags);
    int (*xc_interface_close)(struct xc_interface_core *control);
    int (*xc_version)(struct xc_interface_core *control, int command, void *argument);
    int (*xc_domain_getinfolist)(
        struct xc_interface_core *control, uint32_t first, unsigned count,
        cxen_domaininfo *infos);
    int (*xc_domain_pause)(struct xc_interface_core *control, uint32_t domid);
    int (*xc_domain_unpause)(struct xc_interface_core *control, uint32_t domid);
    int (*xc_domain_shutdown)(struct xc_interface_core *control, uint32_t domid, int reason);
    int (*xc_domain_soft_reset)(struct xc_interface_core *control, uint32_t domid);
    int (*xc_shadow_control)(
        struct xc_interface_core *control, uint32_t domid, unsigned operation, unsigned *mb,
        unsigned mode);
    long long (*xc_logdirty_control)(
        struct xc_interface_core *control, uint32_t domid, unsigned operation,
        cxen_hypercall_buffer *bitmap, unsigned long count, unsigned mode,
        cxen_shadow_stats *stats);
    void *(*xc__hypercall_buffer_alloc_pages)(
        struct xc_interface_core *control, cxen_hypercall_buffer *buffer, int count);
    void (*xc__hypercall_buffer_free_pages)(
        struct xc_interface_core *control, cxen_hypercall_buffer *buffer, int count);
    int (*xc_domain_nr_gpfns)(
        struct xc_interface_core *control, uint32_t domid, unsigned long *count);
    // Exported, but declared in none of the installed headers (tools/libs/ctrl/xc_private.h).
    // Bits 28 to 31 of an entry tell the type.
    int (*xc_get_pfn_type_batch)(
        struct xc_interface_core *control, uint32_t domid, unsigned count, unsigned long *frames);
    int (*xc_gnttab_get_version)(struct xc_interface_core *control, uint32_t domid);
    int (*xc_gnttab_query_size)(struct xc_interface_core *control, cxen_grant_table_size *size);
    int (*xc_evtchn_alloc_unbound)(
        struct xc_interface_core *control, uint32_t domid, uint32_t remote_domid);
    int (*xc_domain_hvm_getcontext)(
        struct xc_interface_core *control, uint32_t domid, uint8_t *context, uint32_t size);
    int (*xc_domain_hvm_setcontext)(
        struct xc_interface_core *control, uint32_t domid, uint8_t *context, uint32_t size);
    int (*xc_hvm_param_get)(
        struct xc_interface_core *control, uint32_t domid, uint32_t index, uint64_t *value);
    int (*xc_hvm_param_set)(
        struct xc_interface_core *control, uint32_t domid, uint32_t index, uint64_t value);
    int (*xc_domain_get_tsc_info)(
        struct xc_interface_core *control, uint32_t domid, uint32_t *mode, uint64_t *nanoseconds,
        uint32_t *kilohertz, uint32_t *incarnation);

    // libxenguest.so.VERSION: xenguest.h; the first one is declared in xenctrl.h.

    int (*xc_domain_resume)(struct xc_interface_core *control, uint32_t domid, int fast);
    struct xc_cpu_policy *(*xc_cpu_policy_init)(void);
    void (*xc_cpu_policy_destroy)(struct xc_cpu_policy *policy);
    int (*xc_cpu_policy_get_size)(
        struct xc_interface_core *control, uint32_t *leaf_count, uint32_t *msr_count);
    int (*xc_cpu_policy_get_domain)(
        struct xc_interface_core *control, uint32_t domid, struct xc_cpu_policy *policy);
    int (*xc_cpu_policy_serialise)(
        struct xc_interface_core *control, const struct xc_cpu_policy *policy,
        cxen_cpuid_leaf *leaves, uint32_t *leaf_count, cxen_msr_entry *msrs,
        uint32_t *msr_count);
    int (*xc_domain_save)(
        struct xc_interface_core *control, int file, uint32_t domid, uint32_t flags,
        cxen_save_callbacks *callbacks, unsigned stream_type, int back_channel);

    // libxenlight.so.VERSION: libxl.h, libxl_uuid.h, and _libxl_types.h, which Xen's build
    // generates from libxl_types.idl.

    int (*libxl_ctx_alloc)(
        struct libxl__ctx **context, int version, unsigned flags,
        struct xentoollog_logger *logger);
    int (*libxl_ctx_free)(struct libxl__ctx *context);
    const char *(*libxl_error_to_string)(int error);
    void (*libxl_domain_config_init)(cxen_config *config);
    void (*libxl_domain_config_dispose)(cxen_config *config);
    char *(*libxl_domain_config_to_json)(struct libxl__ctx *context, cxen_config *config);
    int (*libxl_domain_config_from_json)(
        struct libxl__ctx *context, cxen_config *config, const char *text);
    int (*libxl_retrieve_domain_configuration)(
        struct libxl__ctx *context, uint32_t domid, cxen_config *config,
        const cxen_asyncop *how);
    void (*libxl_uuid_generate)(cxen_uuid *uuid);
    int (*libxl_domain_destroy)(
        struct libxl__ctx *context, uint32_t domid, const cxen_asyncop *how);
    int (*libxl_domain_core_dump)(
        struct libxl__ctx *context, uint32_t domid, const char *path, const cxen_asyncop *how);
    int (*libxl_domain_preserve)(
        struct libxl__ctx *context, uint32_t domid, cxen_create_info *info, const char *suffix,
        cxen_uuid uuid);
    int (*libxl_domain_create_new)(
        struct libxl__ctx *context, cxen_config *config, uint32_t *domid,
        const cxen_asyncop *how, const cxen_progress *console_how);
    int (*libxl_domain_soft_reset)(
        struct libxl__ctx *context, cxen_config *config, uint32_t domid,
        const cxen_asyncop *how, const cxen_progress *console_how);
    int (*libxl_domain_unpause)(
        struct libxl__ctx *context, uint32_t domid, const cxen_asyncop *how);
} cxen_calls;

// MARK: Loading

/// Loads the libraries of a version of Xen, and finds all functions.
///
/// A library is found under its soname, as the dynamic linker finds libraries that are linked, and
/// stays loaded. The process may load those of one version only.
///
/// directory   where the libraries are instead; NULL: the dynamic linker's own places
/// problem     what the dynamic linker says of the first library or function that is missing,
///             which contains its name; ends with a zero byte
/// Returns 0; -1 if a library cannot be loaded, -2 if one lacks a function.
int cxen_load(
    const char *directory, unsigned major, unsigned minor, cxen_calls *calls, char *problem,
    size_t problem_size);

/// 1 if libxenctrl of a version of Xen is installed, 0 if not. The arguments are those of
/// `cxen_load`.
int cxen_is_installed(const char *directory, unsigned major, unsigned minor);

/// Asks the hypervisor for its version, through libxencall.so.1 (xencall.h) and libxentoollog.so.1,
/// whose interfaces are stable: the major number in the upper 16 bits, the minor number in the
/// lower; -1 if these libraries are not there, or if the hypervisor may not be asked.
int cxen_ask_version(const char *directory);

#endif
