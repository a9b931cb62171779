#ifndef CVARVE_H
#define CVARVE_H

#include <stddef.h>
#include <stdint.h>

#include "varve.h"
#include "varve_xen.h"

// What VarveC needs of C: memory that each thread has of its own, and calls that Swift cannot
// import. None of it is in the interface of libvarve.

// Notes a failure of this thread, which the functions varve_error_* then return. The strings are
// copied, and cut if they are very long.
void cvarve_set_error(int code, int number, const char *message);

// Notes where the data is that the last failure of this thread, set before, found damaged.
void cvarve_set_corruption(const struct varve_corruption *corruption);

// Marks this thread as being in a callback of the embedder's, until it is left as often.
void cvarve_enter_callback(void);
void cvarve_leave_callback(void);

// Not 0 if this thread is in a callback.
int cvarve_is_in_callback(void);

// A descriptor that becomes readable when it is signalled; -1 and errno if there is none.
int cvarve_event(void);
void cvarve_signal_event(int descriptor);

// Writes all bytes; 0, or an errno. Waits where the descriptor does not block. Raises no SIGPIPE.
int cvarve_write(int descriptor, const void *bytes, size_t count);

#endif
