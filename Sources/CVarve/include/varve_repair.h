// Repair of a damaged repository. varve.h includes this header; its conventions hold here.

#ifndef VARVE_REPAIR_H
#define VARVE_REPAIR_H

#include "varve.h"

#ifdef __cplusplus
extern "C" {
#endif

// How a damaged place is repaired.
enum varve_remedy {
    VARVE_REMEDY_REWRITTEN = 0, // The pack is rewritten without it.
    VARVE_REMEDY_REMOVED = 1,   // The pack is removed: nothing in it is whole.
    VARVE_REMEDY_MOVED = 2,     // The file is moved to the directory `damaged`.
    VARVE_REMEDY_RENAMED = 3,   // The file is renamed to the pack that it is.
    VARVE_REMEDY_NAMED = 4,     // The missing pack is recorded as removed.
    VARVE_REMEDY_REBUILT = 5,   // It is rebuilt from undamaged data.
    VARVE_REMEDY_FORGOTTEN = 6  // Only the checkpoint's description is damaged: it is forgotten.
};

// Consecutive pages that are lost.
struct varve_lost {
    const char *disk; // NULL: of the memory
    varve_range pages;
};

// A checkpoint that cannot be restored bit for bit.
struct varve_loss {
    size_t size;
    varve_id id;
    const char *lineage; // NULL if the checkpoint's description is lost
    const char *label;   // NULL if there is none
    const struct varve_corruption *reason; // the first damaged place that makes it unreadable
    const struct varve_lost *lost;         // NULL if its page map or state is lost
    size_t lost_count;
};

struct varve_repair_options {
    size_t size;
    int64_t wait_nanoseconds; // for another process that writes, as in varve_open_options
    // Called on the calling thread for each damaged place, with the checkpoints that are lost
    // because of it, and for each lost checkpoint. What they are passed is valid during the call.
    // Or NULL.
    void (*finding)(void *context, const struct varve_corruption *corruption, int remedy,
                    const varve_id *affected, size_t affected_count);
    void (*loss)(void *context, const struct varve_loss *loss);
    void *context;
};

struct varve_repair_info {
    size_t size;
    uint64_t finding_count; // damaged places
    uint64_t whole_checkpoint_count;
    uint64_t lost_checkpoint_count;
    uint64_t rewritten_pack_count;
    uint64_t removed_pack_count;
    uint64_t missing_pack_count;
    uint64_t moved_file_count;
    uint64_t saved_page_count;  // that are stored again
    uint64_t copied_byte_count; // that are written
    uint64_t kept_byte_count;   // in the directory `damaged` afterwards
};

// Determines what a repair of a damaged repository would do, as `varve repair` shows it, and
// changes nothing. Also works for a repository that cannot be opened. Takes the writer's lock
// meanwhile, if this process may write: fails with VARVE_LOCKED while the repository is open for
// writing, also by this process. Returns VARVE_OK also if there is damage. `varve repair --execute`
// does what is planned. Reads every byte, on one thread. Blocks.
int varve_repair_plan(const char *path, const struct varve_repair_options *options,
                      const struct varve_call *call, struct varve_repair_info *info);

#ifdef __cplusplus
}
#endif

#endif
