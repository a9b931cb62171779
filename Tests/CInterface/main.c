// Tests of libvarve from C: right use, with memory compared, and wrong use, which gives a code and
// a sentence and no crash.
//
//   cases DIRECTORY          all, each in a directory of its own below this one
//   cases DIRECTORY NAME     one

#include <stdlib.h>

#include "cases.h"

int failure_count = 0;

static const struct {
    const char *name;
    void (*run)(const char *directory);
} cases[] = {
    {"right_regions", right_regions},
    {"right_callbacks", right_callbacks},
    {"right_upkeep", right_upkeep},
    {"right_calls", right_calls},
    {"right_threads", right_threads},
    {"lost_nothing", lost_nothing},
    {"damage", damage},
    {"wrong_handles", wrong_handles},
    {"wrong_structures", wrong_structures},
    {"wrong_regions", wrong_regions},
    {"wrong_dirty", wrong_dirty},
    {"wrong_values", wrong_values},
    {"wrong_order", wrong_order},
    {"wrong_xen", wrong_xen},
    {"failing_callbacks", failing_callbacks},
    {"calling_back_in", calling_back_in},
    {"right_files", right_files},
    {"wrong_files", wrong_files},
    {"right_disks", right_disks},
    {"failing_disks", failing_disks},
    {"lying_disks", lying_disks},
    {"mapped_pages", mapped_pages},
    {"labels", labels},
    {"repair_plans", repair_plans},
};

int main(int argument_count, char **arguments) {
    if (argument_count < 2 || argument_count > 3) {
        fprintf(stderr, "usage: cases DIRECTORY [NAME]\n");
        return 2;
    }
    int run_count = 0;
    for (size_t index = 0; index < sizeof cases / sizeof *cases; index++) {
        if (argument_count == 3 && strcmp(arguments[2], cases[index].name) != 0)
            continue;
        char directory[4096];
        snprintf(directory, sizeof directory, "%s/%s", arguments[1], cases[index].name);
        int before = failure_count;
        cases[index].run(directory);
        printf("%s: %s\n", cases[index].name, failure_count == before ? "passed" : "FAILED");
        fflush(stdout);
        run_count++;
    }
    if (run_count == 0) {
        fprintf(stderr, "cases: there is no case '%s'\n", arguments[2]);
        return 2;
    }
    return failure_count == 0 ? 0 : 1;
}
