// libvarve: checkpoints of running guests, for programs in C and in languages that call C.
//
// Conventions, which hold wherever a function does not say otherwise:
//
// Results    A function returns VARVE_OK or another `enum varve_code`. After a failure the
//            functions varve_error_* describe it, for the thread that made the call. Output
//            parameters are written only on success, except that the place for a handle is set to
//            NULL first.
// Handles    A handle is a number in the shape of a pointer: it is never dereferenced, and no
//            number is used twice. So a handle that is NULL, that was freed, or that is of another
//            kind is refused with VARVE_INVALID_HANDLE. The caller frees each handle that it was
//            given, with the function named at its type.
// Memory     What a function returns by `void **` or as an array is the caller's: varve_free frees
//            it. Arguments, also strings and arrays, are copied or no longer needed when a function
//            returns; regions of guest memory are the exception.
// Threads    Every function may be called from any thread. Functions block their thread if the
//            comment says so. A handle may be freed while another thread is in a call on it: that
//            call completes.
// Callbacks  A callback may call varve_error_*, varve_version, varve_free,
//            varve_cancellation_cancel, varve_session_cancel and varve_capture_cancel. All other
//            functions return VARVE_IN_CALLBACK there; it must not wait for a thread that calls
//            them, either. A callback must return normally: no longjmp, no C++ exception.
// Structures A structure that may grow begins with `size`: clear it, then set `size` to its sizeof,
//            also where the library fills it in. Options that are all zeros but for their size are
//            the defaults, and so is NULL in their place.
// Units      Sizes are in bytes, times in nanoseconds, pages have 4096 bytes. A frame is an address
//            in the guest divided by 4096; on a disk it is a block of 4096 bytes.
// Strings    Are UTF-8 and end with a zero byte. Paths are bytes.
// Processes  A child of fork must not call the library.

#ifndef VARVE_H
#define VARVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VARVE_VERSION "0.1.0"

// ---- Handles ----
// A repository: a directory of checkpoints. Freed by varve_repository_close.
typedef struct varve_repository varve_repository;
// What captures one guest again and again; its captures and reverts run one at a time, and calls of
// other threads wait. Freed by varve_session_close.
typedef struct varve_session varve_session;
// A capture that has begun. Freed by varve_capture_free.
typedef struct varve_capture varve_capture;
// What reads ranges of one volume of a checkpoint. Freed by varve_reader_close.
typedef struct varve_reader varve_reader;
// What a prune will do. Freed by varve_plan_free.
typedef struct varve_plan varve_plan;
// Ends calls early. Freed by varve_cancellation_free.
typedef struct varve_cancellation varve_cancellation;

// ---- Values ----
// The identity of a checkpoint: the digest of its manifest.
typedef struct varve_id {
    uint8_t bytes[32];
} varve_id;
// Consecutive frames.
typedef struct varve_range {
    uint64_t first;
    uint64_t count;
} varve_range;

// ---- Errors ----
// More may be added: treat one that you do not know as a failure.
enum varve_code {
    VARVE_OK = 0,
    // The call itself is wrong: a null pointer, a structure's size, an option, a bitmap that is too
    // short, regions that overlap. The message says which.
    VARVE_INVALID_ARGUMENT = 1,
    VARVE_INVALID_HANDLE = 2, // The handle is NULL, was freed, or is of another kind.
    VARVE_IN_CALLBACK = 3, // The function was called from a callback.
    // A callback of the guest returned a failure; varve_error_number is what it returned.
    VARVE_CALLBACK_FAILED = 4,
    VARVE_CANCELLED = 5, // The call was cancelled, or its progress callback ended it.
    // The capture had not ended after the time that varve_capture_wait was given.
    VARVE_TIMED_OUT = 6,
    VARVE_CLOSED = 7, // The session was closed while the call waited for it.
    VARVE_NO_MEMORY = 8, // There is no memory for the result.
    VARVE_NOT_FOUND = 9, // There is no repository, checkpoint or volume of that name.
    VARVE_EXISTS = 10, // The directory is not empty.
    VARVE_FOREIGN = 11, // The directory is not a repository, or a file in it is of the wrong kind.
    VARVE_VERSION_MISMATCH = 12, // The repository's format is of another version.
    VARVE_LOCKED = 13, // Another process has the repository open for writing.
    VARVE_BUSY = 14, // Something else is under way: try again, or end that first.
    VARVE_CORRUPTED = 15, // Data is damaged; varve_error_corruption says where.
    VARVE_NO_SPACE = 16, // The disk or the quota is full.
    VARVE_CALL_FAILED = 17, // A system call failed; varve_error_number is its errno.
    VARVE_READ_ONLY = 18, // The repository was opened for reading, or belongs to another user.
    VARVE_INVALID_NAME = 19, // The name of a lineage or label is malformed or taken.
    VARVE_AMBIGUOUS_NAME = 20, // Several checkpoints have ids with this prefix.
    VARVE_PLAN_STALE = 21, // The repository changed since the prune was planned: plan it again.
    VARVE_LIMIT_EXCEEDED = 22, // The call asks for more than the format can hold.
    // The index is damaged and no pack is: open the repository again, which rebuilds it.
    VARVE_INDEX_DAMAGED = 23,
    VARVE_MOVED = 24, // The repository was moved, or its lock removed, while it was open.
    VARVE_UNSUPPORTED = 25, // The guest cannot do what was asked.
    VARVE_SIZE_MISMATCH = 26, // The guest's memory does not have the shape that the checkpoint has.
    VARVE_STATE_REJECTED = 27, // The guest does not accept the checkpoint's state.
    VARVE_ANOTHER_GUEST = 28, // The lineage belongs to another guest.
    VARVE_GUEST_FAILED = 29, // The guest failed in another way.
    VARVE_POOL_TOO_SMALL = 30, // More pages were dirty in the pause than the session's pool holds.
    // A capture that was begun before this one failed, so this one would lack its pages.
    VARVE_PREDECESSOR_FAILED = 31,
    // The dirty log did not name a page that was written, as an audit found.
    VARVE_AUDIT_MISSED = 32,
    VARVE_INVALID_STREAM = 33, // The checkpoint lacks what the format of the export requires.
    VARVE_FAILED = 99 // Anything else.
};

// What is damaged. The strings are the library's: see the function that filled the structure in.
struct varve_corruption {
    size_t size;
    const char *file;    // relative to the repository
    uint64_t offset;     // of the record or block in the file
    const char *object;  // what is damaged, such as "page group"
    const char *reason;  // what was expected and what was found
    const char *disk;    // the disk to which the frame belongs; NULL for the memory
    varve_id checkpoint; // for which it was read, if has_checkpoint
    uint64_t frame;      // that cannot be read, if has_frame
    int has_checkpoint, has_frame;
};

// The code of the last failure on this thread; VARVE_OK if there was none.
int varve_error_code(void);
// One sentence about the last failure on this thread: what failed, and the remedy. It is the
// library's, and valid until the next failure on this thread. Never NULL.
const char *varve_error_message(void);
// The errno of a system call, or what a callback returned; 0 if the last failure had none.
int varve_error_number(void);
// Where data is damaged, if the last failure on this thread was VARVE_CORRUPTED; otherwise returns
// VARVE_NOT_FOUND. The strings are valid until the next failure on this thread. Does not change
// what these functions return.
int varve_error_corruption(struct varve_corruption *corruption);

// The version of the library at run time.
const char *varve_version(void);
// Frees what the library allocated; NULL is allowed.
void varve_free(void *memory);

// ---- Cancellation and progress ----
// Creates a cancellation. It may be passed to any number of calls, also at once.
int varve_cancellation_create(varve_cancellation **cancellation);
// Ends the calls to which it was passed, and those to which it will be: they return VARVE_CANCELLED
// at their next step. Does not wait for them. Not for signal handlers.
int varve_cancellation_cancel(varve_cancellation *cancellation);
// Frees it; calls that have it continue.
int varve_cancellation_free(varve_cancellation *cancellation);
enum varve_unit { VARVE_PAGES = 0, VARVE_BYTES = 1, VARVE_PACKS = 2, VARVE_CHECKPOINTS = 3 };
struct varve_progress {
    size_t size;
    const char *phase; // a name, such as "reading"; the library's
    int unit;          // enum varve_unit, of what follows
    int has_total;
    uint64_t done;
    uint64_t total;
};

// How a call that may take long is watched and ended early.
struct varve_call {
    size_t size;
    varve_cancellation *cancellation; // or NULL
    // Called from time to time, on any thread, also on several at once; the call waits for it. A
    // result other than 0 ends the call with VARVE_CANCELLED. Or NULL.
    int (*progress)(void *context, const struct varve_progress *progress);
    void *context;
};

// ---- Repositories ----
enum varve_access { VARVE_READING = 0, VARVE_WRITING = 1 };
struct varve_open_options {
    size_t size;
    int access; // enum varve_access
    // How long to wait, for writing, while another process is writing; -1: without limit.
    int64_t wait_nanoseconds;
    varve_cancellation *cancellation; // ends that wait; or NULL
};

// Creates a repository in a directory that is empty or does not exist, and opens it for writing.
// Blocks for the disk.
int varve_repository_create(const char *path, varve_repository **repository);
// Creates a repository in a new directory below `parent` (NULL: /dev/shm) that is removed when it
// is closed, and in which nothing is synced: for fuzzers and tests.
int varve_repository_create_volatile(const char *parent, varve_repository **repository);
// Opens a repository. For reading it changes nothing and waits for no other process. Blocks.
int varve_repository_open(const char *path, const struct varve_open_options *options,
                          varve_repository **repository);
// Closes a repository, and frees the handle whatever it returns, unless that is VARVE_BUSY:
// sessions are open, and must be closed first. Plans can no longer be executed. Readers remain
// usable. Blocks.
int varve_repository_close(varve_repository *repository);

struct varve_statistics {
    size_t size;
    uint64_t checkpoint_count;
    uint64_t page_count; // of all checkpoints
    uint64_t zero_page_count;
    uint64_t unique_page_count; // stored
    uint64_t changed_page_count;
    uint64_t logical_byte_count; // as full copies
    uint64_t byte_count;         // of all packs
    uint64_t metadata_byte_count;
    uint64_t abandoned_byte_count; // of captures that were never published
};

// Computes statistics, all of one moment. Blocks.
int varve_repository_statistics(varve_repository *repository,
                                struct varve_statistics *statistics);

enum varve_depth {
    VARVE_DEPTH_FULL = 0,      // every byte
    VARVE_DEPTH_STRUCTURE = 1, // everything but the contents of pages
    VARVE_DEPTH_SAMPLE = 2     // the structure, and a random sample of pages
};

struct varve_verify_options {
    size_t size;
    int depth;     // enum varve_depth
    double share;  // of the pages in a sample, 0 to 1
    uint64_t seed; // of a sample
    // Called on the calling thread for each damaged place, with the checkpoints that need it; what
    // it is passed is valid during the call. Or NULL.
    void (*finding)(void *context, const struct varve_corruption *corruption,
                    const varve_id *affected, size_t affected_count);
    void *context;
};

struct varve_verify_report {
    size_t size;
    uint64_t checkpoint_count; // that are whole, as far as they were read
    uint64_t pack_count;
    uint64_t byte_count;
    uint64_t page_count; // decompressed and hashed
    uint64_t abandoned_byte_count;
    uint64_t finding_count;             // damaged places
    uint64_t affected_checkpoint_count; // that cannot be restored bit for bit
};

// Reads and verifies the repository, on all processors. Returns VARVE_OK also if it found damage:
// then report->finding_count is not 0. Changes nothing. Blocks.
int varve_repository_verify(varve_repository *repository,
                            const struct varve_verify_options *options,
                            const struct varve_call *call, struct varve_verify_report *report);

// Forgets checkpoints: all of them or, if this fails, none. A prune reclaims their space. Blocks
// for one sync.
int varve_repository_forget(varve_repository *repository, const varve_id *ids, size_t count);

struct varve_prune_options {
    size_t size;
    // How much may remain unused, in percent of the packs: 0 to 100. Without options, 5.
    double unused_percent_max;
};

struct varve_prune_info {
    size_t size;
    uint64_t byte_count;        // of all packs, before
    uint64_t freed_byte_count;  // by which they shrink
    uint64_t copied_byte_count; // that are written
    uint64_t unused_byte_count; // in sealed packs
    uint64_t leased_byte_count; // needed only by readers and sessions
    uint64_t dead_page_count;
    uint64_t removed_pack_count;
    uint64_t rewritten_pack_count;
};

// Determines what a prune would do. Changes nothing, except that it may seal a pack. Blocks.
int varve_prune_plan(varve_repository *repository, const struct varve_prune_options *options,
                     const struct varve_call *call, varve_plan **plan);
// What a plan will do.
int varve_plan_show(varve_plan *plan, struct varve_prune_info *info);
// Carries a plan out, once; captures and readers continue. `done` may be NULL, and is what was
// done. If this fails, completed steps remain, nothing that is needed is lost, and a new plan does
// the rest. Blocks.
int varve_plan_execute(varve_plan *plan, const struct varve_call *call,
                       struct varve_prune_info *done);
int varve_plan_free(varve_plan *plan);

// ---- Checkpoints ----
struct varve_selection {
    size_t size;
    const char *lineage;     // or NULL: of all lineages
    uint64_t newest;         // at most this many, the newest; 0: all
    const varve_id *before;  // published before this one; or NULL
    const int64_t *since;    // paused at this time or later, since 1970; or NULL
    const int64_t *until;    // paused at this time or earlier; or NULL
};

// Lists checkpoints in order of publication. The array is the caller's, and NULL if the count is 0.
// Blocks.
int varve_checkpoint_list(varve_repository *repository, const struct varve_selection *selection,
                          varve_id **ids, size_t *count);
// Finds the checkpoint with a name: an id in hexadecimal or a prefix of it, a lineage (its newest
// checkpoint) or a label; each may be followed by ~N, for N checkpoints before it. Blocks.
int varve_checkpoint_find(varve_repository *repository, const char *name, varve_id *id);

struct varve_checkpoint {
    size_t size;
    varve_id id;
    varve_id parent; // if has_parent; it may have been forgotten
    int has_parent;
    int omits_disks; // the guest had disks that the checkpoint does not have
    int64_t time_nanoseconds; // when the guest was paused, since 1970
    int64_t pause_nanoseconds;
    uint64_t page_count;
    uint64_t zero_page_count;
    uint64_t changed_page_count; // since the parent
    uint64_t stored_page_count;
    uint64_t added_byte_count;
    uint64_t volume_count; // the memory and the disks
    char lineage[256];
    char label[256]; // empty if there is none
};

// Describes a checkpoint. Blocks.
int varve_checkpoint_show(varve_repository *repository, const varve_id *id,
                          struct varve_checkpoint *checkpoint);

struct varve_volume {
    size_t size;
    char name[256]; // "memory", or the disk's
    int is_disk;
    int block_byte_count; // logical block size of a disk; 4096 for the memory
    uint64_t byte_count;
    uint64_t page_count; // that exist; of a disk, blocks that are not zero
    uint64_t zero_page_count;
    uint64_t changed_page_count;
    uint8_t root[32]; // Merkle root: equal for equal contents
    // Where it ends: of a disk, byte_count; of the memory, the end of its last page.
    uint64_t extent_byte_count;
};

// Gives a checkpoint a label, or removes the one that it has (NULL). From then on the label refers
// to this checkpoint: later ones of its lineage lose it. After a failure the old label remains.
// Blocks for one sync.
int varve_checkpoint_set_label(varve_repository *repository, const varve_id *id,
                               const char *label);

// Describes a volume of a checkpoint: 0 is the memory, disks follow. VARVE_NOT_FOUND past the last.
int varve_checkpoint_volume(varve_repository *repository, const varve_id *id, size_t index,
                            struct varve_volume *volume);
// Reads the state that the capture was given. The memory is the caller's, and NULL if it is empty.
int varve_checkpoint_state(varve_repository *repository, const varve_id *id, void **state,
                           size_t *byte_count);
// Determines the pages in which a volume (NULL: "memory") differs between two checkpoints, as
// ascending ranges that do not touch. The array is the caller's, and NULL if the count is 0.
// Blocks.
int varve_checkpoint_diff(varve_repository *repository, const varve_id *from, const varve_id *to,
                          const char *volume, varve_range **ranges, size_t *count);

enum varve_format {
    VARVE_FORMAT_RAW = 0,   // the volume from its beginning; frames that do not exist are zeros
    VARVE_FORMAT_ELF = 1,   // the core format of xl dump-core; only of Xen's guests, as below
    VARVE_FORMAT_LIBXC = 2, // the stream of libxc
    VARVE_FORMAT_XL = 3     // the file of xl save
};

// Writes a volume (NULL: "memory") to a descriptor, from its position on; each page is verified
// first. Raises no SIGPIPE. After a failure a part has been written. Blocks.
int varve_checkpoint_export(varve_repository *repository, const varve_id *id, const char *volume,
                            int format, int descriptor, const struct varve_call *call);

// Opens a reader of one volume (NULL: "memory"). Takes time and memory in proportion to what the
// volume holds; the checkpoint's pages are not pruned while the reader exists. Blocks.
int varve_reader_open(varve_repository *repository, const varve_id *id, const char *volume,
                      varve_reader **reader);
// Reads bytes of the volume from an offset; each page is verified. What does not exist, also past
// the volume's extent_byte_count, reads as zeros. After a failure `bytes` has nothing unverified in
// it. One read at a time. Blocks.
int varve_reader_read(varve_reader *reader, uint64_t offset, void *bytes, size_t byte_count);
// Determines which frames of the volume are not zero, as ascending ranges that do not touch, by the
// page map alone. The array is the caller's, and NULL if the count is 0.
int varve_reader_extents(varve_reader *reader, varve_range **ranges, size_t *count);
int varve_reader_close(varve_reader *reader);

// ---- Guests ----
// A part of a guest's memory. Its first bit in a bitmap is its first page.
struct varve_region {
    size_t size; // the same in all regions of an array
    // Where the guest sees it; a multiple of 4096.
    uint64_t guest_address;
    // Where this process has it mapped, until the session is closed or the restore returns. NULL:
    // the library maps the descriptor.
    void *address;
    // If address is NULL: of a file or memfd, from which `offset` on is mapped shared. The
    // descriptor may be closed once the call has returned.
    int descriptor;
    uint64_t offset;     // a multiple of 4096
    uint64_t byte_count; // a positive multiple of 4096
};

// The dirty pages of one region in the layout of KVM_GET_DIRTY_LOG: bit n of the region is bit n
// modulo 64 of word n divided by 64, in little-endian words. Bits past the region are ignored.
struct varve_bitmap {
    const uint64_t *words;
    size_t word_count; // at least the region's pages divided by 64, rounded up
};

// The pages of the regions that may have been written since the last capture or revert: all that
// are in a bitmap or in the list. Pages that were not written may be named too. A page that was
// written, also by a device of the monitor's own or by vhost, and is not named, is missing from the
// checkpoint, and from those that follow until it is named.
struct varve_dirty {
    size_t size;
    const struct varve_bitmap *bitmaps; // one for each region, in their order; or NULL
    size_t bitmap_count;                // 0, or the number of regions
    const uint64_t *frames;             // guest addresses divided by 4096, in any order; or NULL
    size_t frame_count;
};

// A guest can also be a table of callbacks: varve_guest.h.

// ---- Sessions ----
enum { VARVE_LEVEL_STORED = INT32_MIN };
struct varve_session_options {
    size_t size;
    // The first checkpoint follows this one, which begins a branch. NULL: the lineage's newest.
    const varve_id *parent;
    uint64_t pool_byte_count; // most memory for pages that are not stored yet; 0: 256 MiB
    // How long copying may take in the pause; more pages than that are copied before it. 0: 10 ms.
    // Ignored by sessions over regions.
    int64_t pause_budget_nanoseconds;
    // Rounds of copying before the pause. 0: 8; -1: none.
    int precopy_rounds_max;
    int overlapping_captures_max; // 0: 4; with disks it is always 1
    int worker_count;             // threads that compress and write; 0: processors and one more
    int compression_level;        // of zstd, -7 to 19, or VARVE_LEVEL_STORED; 0: level 1
    // Pages that the dirty log calls clean and that each capture compares. 0: none.
    int audit_page_count;
    int accepts_guest_change; // the lineage may be another guest's
    int omits_disks;          // the guest has disks, which its checkpoints leave out
    // Files that are the guest's disks: varve_guest.h. NULL: it has none, or callbacks for them.
    const struct varve_files *files;
    int64_t disk_cut_budget_nanoseconds; // how long their cut may take in the pause; 0: 2 s
    // The last cut of the disks stands when the session is closed, so that the next session need
    // not compare them as a whole. It takes space as they are written. Not of callbacks.
    int keeps_disk_cut;
};

// Begins a session over regions, for a program that pauses its guest and has its dirty log itself.
// No page of the regions may be written during varve_session_capture, varve_session_begin and
// varve_session_revert: pause the guest before, and let it run when they have returned. The first
// capture copies every page whatever it is told. The regions must not overlap, in the guest or in
// memory. Frames must be below 2^32. Blocks.
int varve_session_open_regions(varve_repository *repository, const char *lineage,
                               const struct varve_region *regions, size_t region_count,
                               const struct varve_session_options *options,
                               varve_session **session);
struct varve_capture_input {
    size_t size;
    const char *label; // of the checkpoint; or NULL
    // For sessions over regions, otherwise NULL and 0:
    const struct varve_dirty *dirty; // NULL: unknown, so every page is compared
    const void *state;               // to store with the memory, such as that of the devices
    size_t state_byte_count;
};

struct varve_capture_result {
    size_t size;
    varve_id id;
    uint64_t dirty_page_count;
    uint64_t copied_page_count;
    uint64_t paused_page_count; // copied in the pause
    uint64_t changed_page_count;
    uint64_t stored_page_count;
    uint64_t added_byte_count;
    int64_t request_nanoseconds;  // that the guest took to pause
    int64_t downtime_nanoseconds; // that it was paused
    // Pages that an audit found missing in the dirty log; the checkpoint has them.
    uint64_t missed_page_count;
    int64_t disk_nanoseconds; // of downtime_nanoseconds, spent on the cut of the disks
};

// Takes a checkpoint, and returns when it is durable. If it fails, also because it is cancelled,
// there is no checkpoint, the guest runs, and the next capture takes the pages of this one too. The
// dirty pages of an input are taken over unless the code is VARVE_INVALID_ARGUMENT,
// VARVE_INVALID_HANDLE or VARVE_IN_CALLBACK. `input` and `result` may be NULL. Blocks.
int varve_session_capture(varve_session *session, const struct varve_capture_input *input,
                          const struct varve_call *call, struct varve_capture_result *result);
// Begins a checkpoint, and returns when the guest may run again; the checkpoint exists once
// varve_capture_wait returns VARVE_OK. Otherwise as varve_session_capture. Blocks until the pages
// are copied; before that it waits until fewer than overlapping_captures_max captures are under
// way.
int varve_session_begin(varve_session *session, const struct varve_capture_input *input,
                        const struct varve_call *call, varve_capture **capture);

struct varve_revert_result {
    size_t size;
    uint64_t written_page_count;
    uint64_t compared_page_count;
    int64_t request_nanoseconds;
    int64_t downtime_nanoseconds;
    uint64_t written_block_count; // of disks
};

// Reverts the guest to a checkpoint, in place: only pages, and blocks of its disks, that differ are
// written, and all are verified before the first is. The next capture follows that checkpoint.
// `dirty` is what was written since the last capture or revert, as for a capture (NULL: unknown;
// always for callbacks). For regions the checkpoint's state is returned as by
// varve_checkpoint_state; `state` and `state_byte_count` may both be NULL. Clear the guest's own
// dirty log afterwards, or leave it: a page that is named needlessly costs only its comparison. If
// it fails before a page was written the guest is unchanged; otherwise the message says so, and
// reverting again completes it. `call` and `result` may be NULL. Waits for captures under way.
// Blocks.
int varve_session_revert(varve_session *session, const varve_id *id,
                         const struct varve_dirty *dirty, const struct varve_call *call,
                         struct varve_revert_result *result, void **state,
                         size_t *state_byte_count);

// The checkpoint that the next one will follow; VARVE_NOT_FOUND if there is none.
int varve_session_parent(varve_session *session, varve_id *id);
// Cancels all captures and reverts of the session that have begun; does not wait for them.
int varve_session_cancel(varve_session *session);
// Why a cut of the disks, or what a process that died had left beside the files, could not be
// dropped, the last time that happened: this call then fails so. VARVE_OK if it did not happen.
int varve_session_disk_failure(varve_session *session);
// Closes a session: waits for captures under way, which are completed, and frees the handle.
// Handles of captures remain. Blocks.
int varve_session_close(varve_session *session);

// ---- Captures that have begun ----
// A descriptor that poll(2) finds readable once the capture has ended. It is the capture's, until
// that is freed. Only for polling: do not read from it.
int varve_capture_descriptor(varve_capture *capture, int *descriptor);
// Waits until the capture has ended, at most so long (0: returns at once; -1: without limit).
// VARVE_TIMED_OUT if it has not. Otherwise returns the result of the capture, the same each time;
// `result` may be NULL. Blocks.
int varve_capture_wait(varve_capture *capture, int64_t timeout_nanoseconds,
                       struct varve_capture_result *result);
// Cancels the capture; does not wait. No effect once the checkpoint is being published.
int varve_capture_cancel(varve_capture *capture);
// Frees the handle; the capture continues.
int varve_capture_free(varve_capture *capture);

// ---- Restore ----
struct varve_restore_options {
    size_t size;
    const char *volume; // NULL: "memory"; of a disk, blocks are frames
    // The guest's memory is zero where it is not written, as after mmap: zero pages are skipped.
    int starts_zeroed;
};

struct varve_restore_result {
    size_t size;
    uint64_t written_page_count;
    uint64_t read_byte_count; // from packs
};

// Fills regions with a volume of a checkpoint: their frames must be exactly the checkpoint's. Each
// page is verified, and when this fails, the regions have a part of the checkpoint, and the guest
// must not run. The state is returned as by varve_checkpoint_state; `state` and `state_byte_count`
// may both be NULL. The checkpoint need not be of a session over regions. `options`, `call` and
// `result` may be NULL. Uses all processors. Blocks.
int varve_restore_regions(varve_repository *repository, const varve_id *id,
                          const struct varve_region *regions, size_t region_count,
                          const struct varve_restore_options *options,
                          const struct varve_call *call, struct varve_restore_result *result,
                          void **state, size_t *state_byte_count);

#ifdef __cplusplus
}
#endif

#include "varve_guest.h"
#include "varve_repair.h"

#endif
