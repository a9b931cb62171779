#ifndef CASES_H
#define CASES_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <varve.h>

// Each case gets a directory of its own that does not exist yet.
void right_regions(const char *directory);
void right_callbacks(const char *directory);
void right_upkeep(const char *directory);
void right_calls(const char *directory);
void right_threads(const char *directory);
void lost_nothing(const char *directory);
void damage(const char *directory);
void wrong_handles(const char *directory);
void wrong_structures(const char *directory);
void wrong_regions(const char *directory);
void wrong_dirty(const char *directory);
void wrong_values(const char *directory);
void wrong_order(const char *directory);
void wrong_xen(const char *directory);
void failing_callbacks(const char *directory);
void calling_back_in(const char *directory);
void right_files(const char *directory);
void wrong_files(const char *directory);
void right_disks(const char *directory);
void failing_disks(const char *directory);
void lying_disks(const char *directory);
void mapped_pages(const char *directory);
void labels(const char *directory);
void repair_plans(const char *directory);

// ---- Checks ----

extern int failure_count;

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                                \
            failure_count++;                                                                      \
        }                                                                                         \
    } while (0)

// The call returns a code, and says so by the functions for errors.
#define EXPECT(expected, call)                                                                    \
    do {                                                                                          \
        int code_ = (call);                                                                       \
        if (code_ != (expected)) {                                                                \
            printf("%s:%d: %s is %d: %s\n", __FILE__, __LINE__, #call, code_,                     \
                   varve_error_message());                                                        \
            failure_count++;                                                                      \
        } else if (code_ != VARVE_OK) {                                                           \
            CHECK(varve_error_code() == code_);                                                   \
            CHECK(strlen(varve_error_message()) > 10);                                            \
        }                                                                                         \
    } while (0)

#define OK(call) EXPECT(VARVE_OK, call)

// A structure that is zero but for its size.
#define SIZED(type, name)                                                                         \
    struct type name;                                                                             \
    memset(&name, 0, sizeof name);                                                                \
    name.size = sizeof name

// Sizes that are too small, that were not set, and that are of a newer program.
#define WRONG_SIZES(structure, call)                                                              \
    do {                                                                                          \
        size_t right_ = (structure).size;                                                         \
        (structure).size = 0;                                                                     \
        EXPECT(VARVE_INVALID_ARGUMENT, call);                                                     \
        (structure).size = right_ - 1;                                                            \
        EXPECT(VARVE_INVALID_ARGUMENT, call);                                                     \
        (structure).size = (size_t)-1;                                                            \
        EXPECT(VARVE_INVALID_ARGUMENT, call);                                                     \
        (structure).size = right_;                                                                \
    } while (0)

// ---- A machine ----

enum { PAGE = 4096, REGION_COUNT = 3, PAGE_COUNT = 64 + 100 + 32 };

// Memory in three regions, the last of which is a memfd, with a dirty bitmap for each.
struct machine {
    struct varve_region regions[REGION_COUNT];
    uint8_t *memory[REGION_COUNT];
    size_t page_counts[REGION_COUNT];
    uint64_t words[REGION_COUNT][2];
    struct varve_bitmap bitmaps[REGION_COUNT];
    struct varve_dirty dirty;
    uint8_t *whole; // its one allocation
    uint32_t random;
    uint32_t counter; // its state
};

void machine_open(struct machine *machine);
void machine_close(struct machine *machine);
// Fills one page with random bytes and marks it; pages are numbered through all regions.
void machine_write(struct machine *machine, size_t page);
// The same for random pages.
void machine_run(struct machine *machine, size_t count);
void machine_clean(struct machine *machine);
uint8_t *machine_page(const struct machine *machine, size_t page);
uint64_t machine_frame(const struct machine *machine, size_t page);
// The page of a frame; PAGE_COUNT for a frame that is none.
size_t machine_number(const struct machine *machine, uint64_t frame);
// A copy of its memory; the caller frees it.
uint8_t *machine_copy(const struct machine *machine);
int machine_equals(const struct machine *machine, const uint8_t *copy);

// The input of a capture: the dirty pages and the counter.
struct varve_capture_input machine_input(struct machine *machine);
// Takes checkpoints of a new machine; the array is as long as `count`.
void machine_fill(varve_repository *repository, const char *lineage, varve_id *ids, int count);

// ---- A machine as callbacks ----

enum callback {
    LAYOUT,
    PAUSE,
    RESUME,
    COPY,
    START,
    TAKE,
    COUNT,
    SAVE,
    WRITE,
    RESTORE,
    CALLBACK_COUNT
};

struct guest {
    struct machine machine;
    enum callback failing; // CALLBACK_COUNT: none
    int failures_left;
    int result;      // of a callback that fails
    int is_unknown;  // the log does not know
    int is_paused;
    int pause_count;
    int resume_count;
    int stop_count;
    varve_range ranges[REGION_COUNT];
    // Called in each callback; or NULL.
    void (*visit)(struct guest *guest, enum callback callback);
    varve_session *session;
    varve_repository *repository;
};

void guest_open(struct guest *guest);
void guest_close(struct guest *guest);
struct varve_callbacks guest_callbacks(void);

// The checkpoint's memory, read from the repository, is a copy.
int checkpoint_equals(varve_repository *repository, const varve_id *id,
                      const struct machine *machine, const uint8_t *copy);

#endif
