#ifndef CARGUMENTS_H
#define CARGUMENTS_H

// The arguments of the program as the C library got them from the kernel. Swift's
// `CommandLine.arguments` reads /proc/self/cmdline on Linux, and is empty where /proc is not
// mounted.

/// How many arguments there are, the program's name among them.
int carguments_count(void);

/// One argument; NULL beyond the last. It stays valid as long as the process.
const char *carguments_value(int index);

#endif
