#ifndef CDEVICEMAPPER_SHIM_H
#define CDEVICEMAPPER_SHIM_H
#include <libdevmapper.h>

/* The library reports failures on standard error. That belongs to the embedder, who gets errors
 * with the error number instead; and Swift cannot make a variadic function. */
static void cdm_discard(
    int level, const char *file, int line, int number, const char *format, ...)
{
    (void)level; (void)file; (void)line; (void)number; (void)format;
}

static inline void cdm_discard_log(void) { dm_log_with_errno_init(cdm_discard); }

#endif
