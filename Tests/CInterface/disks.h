#ifndef DISKS_H
#define DISKS_H

#include <pthread.h>

#include "cases.h"

// ---- A machine as callbacks, with disks as callbacks ----

enum { DISK_COUNT = 2, BLOCK_MAX = 64, CUT_MAX = 6 };

enum disk_callback {
    LIST,
    PREPARE,
    CUT,
    CHANGED,
    STORED,
    READ,
    RELEASE,
    WRITE_DISK,
    RESIZE,
    DISK_CALLBACK_COUNT
};

struct image {
    uint64_t byte_count;
    uint8_t bytes[BLOCK_MAX * PAGE]; // zero past the end
    uint32_t written[BLOCK_MAX];     // the number of the last write to each block
};

struct disk_cut {
    uint64_t number; // 0: none
    int is_made;
    struct image images[DISK_COUNT];
};

struct disks {
    struct guest guest; // first: both have one context
    struct image images[DISK_COUNT];
    struct disk_cut cuts[CUT_MAX];
    struct varve_disk_callbacks callbacks;
    uint32_t write_count;
    struct varve_disk list[DISK_COUNT];
    varve_range ranges[BLOCK_MAX];
    // What follows is guarded: `read` is called on several threads.
    pthread_mutex_t lock;
    enum disk_callback failing; // DISK_CALLBACK_COUNT: none
    int calls_left;             // that succeed before
    int failures_left;
    int call_counts[DISK_CALLBACK_COUNT];
    // Changes what a callback returns; or NULL.
    void (*lie)(struct disks *disks, enum disk_callback callback, const void **array,
                size_t *count);
};

extern const char *const disk_names[DISK_COUNT];

void disks_open(struct disks *disks, const char *directory);
void disks_close(struct disks *disks);
struct varve_callbacks disks_callbacks(struct disks *disks);
// Fails calls of a callback: `times` of them, after some that succeed.
void disks_fail(struct disks *disks, enum disk_callback callback, int after, int times);
// Writes to random blocks of the disks and pages of the memory.
void disks_run(struct disks *disks, size_t count);
void disks_resize(struct disks *disks, size_t index, uint64_t byte_count);
// The cuts that stand or are prepared.
int disks_cut_count(const struct disks *disks);
// A copy of the disks; the caller frees it.
struct image *disks_copy(const struct disks *disks);
int disks_equal(const struct disks *disks, const struct image *copy);
// The checkpoint has the disks of a copy, with the right extents.
int checkpoint_has_disks(varve_repository *repository, const varve_id *id,
                         const struct image *copy);
// A volume of a checkpoint, read to its extent, has these bytes and no more.
int volume_equals(varve_repository *repository, const varve_id *id, const char *name,
                  const uint8_t *bytes, uint64_t byte_count);

#endif
