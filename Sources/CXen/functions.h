#ifndef CXEN_FUNCTIONS_H
#define CXEN_FUNCTIONS_H

// All functions of `cxen_calls` in its order, each with the library that exports it: for CXen.c,
// which finds them, and for Tests/XenRig/declarations.c, which compares their types with Xen's
// headers.
#define CXEN_FUNCTIONS(FUNCTION) \
    FUNCTION(TOOLLOG, xtl_createlogger_stdiostream) \
    FUNCTION(TOOLLOG, xtl_logger_destroy) \
    FUNCTION(MEMORY, xenforeignmemory_open) \
    FUNCTION(MEMORY, xenforeignmemory_close) \
    FUNCTION(MEMORY, xenforeignmemory_map) \
    FUNCTION(MEMORY, xenforeignmemory_unmap) \
    FUNCTION(MEMORY, xenforeignmemory_map_resource) \
    FUNCTION(MEMORY, xenforeignmemory_unmap_resource) \
    FUNCTION(MODEL, xendevicemodel_open) \
    FUNCTION(MODEL, xendevicemodel_close) \
    FUNCTION(MODEL, xendevicemodel_inject_msi) \
    FUNCTION(STORE, xs_open) \
    FUNCTION(STORE, xs_close) \
    FUNCTION(STORE, xs_read) \
    FUNCTION(STORE, xs_write) \
    FUNCTION(STORE, xs_directory) \
    FUNCTION(STORE, xs_watch) \
    FUNCTION(STORE, xs_fileno) \
    FUNCTION(STORE, xs_check_watch) \
    FUNCTION(STORE, xs_resume_domain) \
    FUNCTION(STORE, xs_introduce_domain) \
    FUNCTION(CONTROL, xc_interface_open) \
    FUNCTION(CONTROL, xc_interface_close) \
    FUNCTION(CONTROL, xc_version) \
    FUNCTION(CONTROL, xc_domain_getinfolist) \
    FUNCTION(CONTROL, xc_domain_pause) \
    FUNCTION(CONTROL, xc_domain_unpause) \
    FUNCTION(CONTROL, xc_domain_shutdown) \
    FUNCTION(CONTROL, xc_domain_soft_reset) \
    FUNCTION(CONTROL, xc_shadow_control) \
    FUNCTION(CONTROL, xc_logdirty_control) \
    FUNCTION(CONTROL, xc__hypercall_buffer_alloc_pages) \
    FUNCTION(CONTROL, xc__hypercall_buffer_free_pages) \
    FUNCTION(CONTROL, xc_domain_nr_gpfns) \
    FUNCTION(CONTROL, xc_get_pfn_type_batch) \
    FUNCTION(CONTROL, xc_gnttab_get_version) \
    FUNCTION(CONTROL, xc_gnttab_query_size) \
    FUNCTION(CONTROL, xc_evtchn_alloc_unbound) \
    FUNCTION(CONTROL, xc_domain_hvm_getcontext) \
    FUNCTION(CONTROL, xc_domain_hvm_setcontext) \
    FUNCTION(CONTROL, xc_hvm_param_get) \
    FUNCTION(CONTROL, xc_hvm_param_set) \
    FUNCTION(CONTROL, xc_domain_get_tsc_info) \
    FUNCTION(GUEST, xc_domain_resume) \
    FUNCTION(GUEST, xc_cpu_policy_init) \
    FUNCTION(GUEST, xc_cpu_policy_destroy) \
    FUNCTION(GUEST, xc_cpu_policy_get_size) \
    FUNCTION(GUEST, xc_cpu_policy_get_domain) \
    FUNCTION(GUEST, xc_cpu_policy_serialise) \
    FUNCTION(GUEST, xc_domain_save) \
    FUNCTION(LIGHT, libxl_ctx_alloc) \
    FUNCTION(LIGHT, libxl_ctx_free) \
    FUNCTION(LIGHT, libxl_error_to_string) \
    FUNCTION(LIGHT, libxl_domain_config_init) \
    FUNCTION(LIGHT, libxl_domain_config_dispose) \
    FUNCTION(LIGHT, libxl_domain_config_to_json) \
    FUNCTION(LIGHT, libxl_domain_config_from_json) \
    FUNCTION(LIGHT, libxl_retrieve_domain_configuration) \
    FUNCTION(LIGHT, libxl_uuid_generate) \
    FUNCTION(LIGHT, libxl_domain_destroy) \
    FUNCTION(LIGHT, libxl_domain_core_dump) \
    FUNCTION(LIGHT, libxl_domain_preserve) \
    FUNCTION(LIGHT, libxl_domain_create_new) \
    FUNCTION(LIGHT, libxl_domain_soft_reset) \
    FUNCTION(LIGHT, libxl_domain_unpause)

#endif
