// Guests of libvarve that are a table of callbacks, and the disks of a guest, which are cut with
// its memory. varve.h includes this header; its conventions hold here.
//
// A block of a disk has 4096 bytes, whatever the disk's block_byte_count; the last one may extend
// past the end of the disk.

#ifndef VARVE_GUEST_H
#define VARVE_GUEST_H

#include "varve.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- Files as disks ----

// A raw file that is a disk, on XFS with reflinks, on btrfs, or on another file system whose files
// can share blocks. Others are refused with VARVE_UNSUPPORTED, by the first capture, and so is what
// is no regular file, as the session is opened: block devices can be cut by callbacks.
struct varve_file {
    size_t size; // the same in all files of an array
    // 1 to 255 bytes of letters, digits and ._-:@+, not beginning with '-', and not "memory".
    const char *name;
    const char *path;     // a symbolic link is followed
    int block_byte_count; // logical block size: 512 or 4096; 0: 512. The file has whole blocks.
};

// The files that are a guest's disks, for a session over regions or over callbacks. A capture
// clones each (FICLONE) while the guest is paused, and reads the clones afterwards. A revert sets
// the sizes and writes the blocks that differ from the checkpoint, which must have the same disks.
//
// Only this program may write to the files. What it has written must be in them, and not in buffers
// of its own, before the guest is paused, and it writes nothing until the guest runs again: where
// no page may be written, no file may be. What it knows of the files, such as a cache, is its own
// to drop after a revert.
struct varve_files {
    size_t size;
    const struct varve_file *files;
    size_t count; // at least 1
    // A directory that notes what cuts create, so that the next session removes what a process that
    // died has left. One for each guest, to which only this user can write; created if missing.
    const char *state_directory;
    // Where clones are created, on the file system of the files. NULL: each beside its file, with a
    // name that begins with a dot.
    const char *clone_directory;
};

// ---- Disks as callbacks ----

// A disk as its guest sees it.
struct varve_disk {
    size_t size;          // the same in all disks of an array
    const char *name;     // as of a varve_file
    uint64_t byte_count;  // whole blocks, at least one, and at most 16 TiB
    int block_byte_count; // logical block size: 512 or 4096; 0: 512
};

// What the callback `changed` may return beside 0 and a failure.
enum { VARVE_BLOCKS_UNKNOWN = -1 };

// The disks of a guest that is a table of callbacks. A *cut* is all disks at one instant; cuts are
// numbered from 1 in a session. Each capture, and each revert, calls
//
//   list, prepare         while the guest runs
//   cut, list             in the pause
//   changed, stored, read while the guest runs again; for a revert in the pause
//   release               when a later cut has taken its place, or at the end of the session
//
// and, to compare, all but `release` in the pause if a revert cannot put back what it wrote. What
// changed is known by comparing two cuts, so a cut stands until a later one was read. The callbacks
// are passed the context of the guest's, and the rules for those hold, but `changed`, `stored`,
// `read` and `release` may be called on threads of the library, the last one also after the call
// that failed has returned. Ranges that are not as described, or not within the disk, are a failure
// of the guest.
struct varve_disk_callbacks {
    size_t size;
    // The disks, each with a name of its own, or no disk. They may change between captures. In the
    // pause, after `cut`, they must be those from before, with the sizes that they have in it.
    int (*list)(void *context, const struct varve_disk **disks, size_t *count);
    // Does all of a cut that may take long or fail. Or NULL.
    int (*prepare)(void *context, uint64_t cut);
    // Makes the cut of all disks: what the guest has written is in it, what it writes later is not.
    int (*cut)(void *context, uint64_t cut);
    // The blocks in which a disk may differ from an earlier cut that stands, ascending, without
    // overlaps. A block that differs and is not named is missing from the checkpoint.
    // VARVE_BLOCKS_UNKNOWN, or NULL in place of the callback: every stored block is compared.
    int (*changed)(void *context, uint64_t cut, uint64_t earlier, const char *disk,
                   const varve_range **blocks, size_t *count);
    // The blocks of a cut that may not be zero, likewise. NULL: all.
    int (*stored)(void *context, uint64_t cut, const char *disk, const varve_range **blocks,
                  size_t *count);
    // Copies blocks of a cut, 4096 bytes for each; those past the end of the disk are ignored.
    // Called on several threads at once.
    int (*read)(void *context, uint64_t cut, const char *disk, uint64_t first, uint64_t count,
                void *bytes);
    // Drops a cut. Called once for each that `prepare` returned 0 for, made or not; without
    // `prepare`, for each that `cut` was called for. varve_session_disk_failure tells of a failure.
    int (*release)(void *context, uint64_t cut);

    // For reverts, which fail with VARVE_UNSUPPORTED if it is NULL: writes blocks of a disk as it
    // is, in the pause. The next cut contains them. What is past the end of the disk is left out.
    // If a call fails, what was written before is put back by the same calls.
    int (*write)(void *context, const char *disk, uint64_t first, uint64_t count,
                 const void *bytes);
    // Sets the size of a disk; what is added reads as zeros. NULL: a revert to a checkpoint in
    // which a disk has another size fails, and changes nothing.
    int (*resize)(void *context, const char *disk, uint64_t byte_count);
};

// ---- Guests as callbacks ----

// What the callback take_dirty may return beside 0 and a failure.
enum { VARVE_DIRTY_UNKNOWN = -1 };
// A guest as a table of callbacks. Each is passed the context, and returns 0, or another value for
// a failure: the call then ends with VARVE_CALLBACK_FAILED, with the guest running again if it was
// paused. They are called on the thread that made the call, one at a time, unless it is said. They
// may block; between pause and resume they should be fast. What a callback returns by a pointer is
// the caller's, and must be valid until the next callback on that thread, unless it is said.
struct varve_callbacks {
    size_t size;
    // The frames that exist, in any order, without overlaps. Called as a capture begins and in the
    // pause.
    int (*layout)(void *context, const varve_range **ranges, size_t *count);
    // When this returns 0 no page changes until resume. When it fails, the guest must be running.
    int (*pause)(void *context);
    // Called once for each pause that returned 0, whatever failed; once more if it fails.
    int (*resume)(void *context);
    // Copies pages out, one range after another, without gaps. Also called while the guest runs.
    // NULL if map_pages has all of them.
    int (*copy_pages)(void *context, const varve_range *ranges, size_t count, void *pages);

    // Begins the dirty log: from now on writes are recorded. NULL if it always runs.
    int (*start_dirty)(void *context);
    // Without it every capture copies and compares every page. Sets bits for the pages written
    // since the last take, frame n in the layout of varve_bitmap, and clears the log in the same
    // step. Frames past word_count * 64 are left out: they are new, and are copied anyway.
    // `is_final` is not 0 in the pause. VARVE_DIRTY_UNKNOWN means that pages may be missing: every
    // page is compared. After a failure, too.
    int (*take_dirty)(void *context, uint64_t *words, size_t word_count, int is_final);
    // The number of pages in the log, or an estimate, by which the beginning of the pause is
    // chosen. NULL: the pause begins at once.
    int64_t (*count_dirty)(void *context);
    // Ends it; the result is ignored. Called on the thread that closes the session. Or NULL.
    int (*stop_dirty)(void *context);

    // The state other than memory, which is stored with each checkpoint. Called in the pause. NULL:
    // there is none.
    int (*save_state)(void *context, const void **state, size_t *byte_count);

    // For reverts and restores, which fail with VARVE_UNSUPPORTED if this and map_pages are NULL:
    // copies pages in, one range after another, without gaps. For a restore it is called by several
    // threads at once, never for the same page. The log may record these writes or not.
    int (*write_pages)(void *context, const varve_range *ranges, size_t count, const void *pages);
    // Takes a checkpoint's state, after its pages. NULL: only an empty state is accepted.
    int (*restore_state)(void *context, const void *state, size_t byte_count);

    // Gives the memory of consecutive frames in this process, contiguous, at `*pages`, which is
    // NULL before: if it stays NULL, copy_pages and write_pages are called for these frames. NULL
    // in place of the callback: they always are. The memory is the caller's, need not be aligned,
    // and must stay there until its frames are no longer in the layout, or the session is closed or
    // the restore has returned. It is read as copy_pages would, while the guest runs too. It is
    // written, as by write_pages, only if that is NULL. Called for each range of pages, by several
    // threads at once: it must be fast.
    int (*map_pages)(void *context, uint64_t first, uint64_t count, void **pages);
    // The guest's disks; NULL: it has none, or files. The table is copied.
    const struct varve_disk_callbacks *disks;
};

// Begins a session over callbacks. The context must be valid until the session is closed. Blocks.
int varve_session_open_callbacks(varve_repository *repository, const char *lineage,
                                 const struct varve_callbacks *callbacks, void *context,
                                 const struct varve_session_options *options,
                                 varve_session **session);
// As varve_restore_regions, through write_pages or map_pages, and restore_state; the guest is
// neither paused nor resumed, and its disks are not written.
int varve_restore_callbacks(varve_repository *repository, const varve_id *id,
                            const struct varve_callbacks *callbacks, void *context,
                            const struct varve_restore_options *options,
                            const struct varve_call *call, struct varve_restore_result *result);

#ifdef __cplusplus
}
#endif

#endif
