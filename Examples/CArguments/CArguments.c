#include "CArguments.h"

#include <stddef.h>

static int count;
static char **values;

// glibc hands the arguments of `main` to each constructor.
__attribute__((constructor)) static void remember(int argument_count, char **arguments) {
    count = argument_count;
    values = arguments;
}

int carguments_count(void) { return count; }

const char *carguments_value(int index) {
    return index >= 0 && index < count ? values[index] : NULL;
}
