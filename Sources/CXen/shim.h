#ifndef CXEN_SHIM_H
#define CXEN_SHIM_H
#include <libxl.h>
#include <xenctrl.h>
#include <xendevicemodel.h>
#include <xenforeignmemory.h>
#include <xenguest.h>
#include <xenstore.h>
#include <xentoollog.h>
#include <xen/grant_table.h>
#include <xen/hvm/params.h>

/* Exported by libxenctrl 4.17 to 4.20, declared in none of its installed headers
 * (tools/libs/ctrl/xc_private.h). Bits 28 to 31 of an entry tell the type. */
int xc_get_pfn_type_batch(xc_interface *xch, uint32_t dom, unsigned int num, xen_pfn_t *arr);

/* unistd.h declares it for _GNU_SOURCE alone, which Swift's module of the C library is not. A pipe
 * that another thread's child inherited would keep a guard from seeing its end. */
int pipe2(int descriptors[2], int flags);
#endif
