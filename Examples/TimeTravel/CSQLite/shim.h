#ifndef CSQLITE_SHIM_H
#define CSQLITE_SHIM_H
#include <sqlite3.h>

// Swift does not import macros that are expressions.
static const int csqlite_ioerr_read = SQLITE_IOERR_READ;
static const int csqlite_ioerr_short_read = SQLITE_IOERR_SHORT_READ;
static const int csqlite_ioerr_write = SQLITE_IOERR_WRITE;
static const int csqlite_ioerr_truncate = SQLITE_IOERR_TRUNCATE;
static const int csqlite_ioerr_fstat = SQLITE_IOERR_FSTAT;
#endif
