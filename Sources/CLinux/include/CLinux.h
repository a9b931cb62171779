#ifndef CLINUX_H
#define CLINUX_H

// What Swift cannot import from the kernel's headers: ioctl numbers (function-like macros),
// variadic calls, and interfaces newer than the headers of the oldest system that this builds on
// (Debian 12 has those of Linux 6.1). Layouts and numbers are those of include/uapi/linux/fs.h,
// fiemap.h and userfaultfd.h of Linux 6.7.
//
// Every function returns -1 and sets errno on failure, like the underlying call.

// No header of the C library that declares structures or calls: Swift would take them for this
// module's, and every file that uses them would have to import it.
#include <stddef.h>
#include <stdint.h>

/// O_TMPFILE of open(2), a file without a name in a directory; needs _GNU_SOURCE.
extern const int clinux_unnamed_file;

/// A run of pages with equal categories. `struct page_region`.
struct clinux_page_region {
    uint64_t start;      // byte address
    uint64_t end;        // byte address
    uint64_t categories;
};

/// Finds the pages of [start, end) that were written since they were last protected.
/// ioctl `PAGEMAP_SCAN` on /proc/self/pagemap, with PM_SCAN_CHECK_WPASYNC and PAGE_IS_WRITTEN.
///
/// clear       write-protects each page found, atomically (PM_SCAN_WP_MATCHING)
/// walk_end    receives the end of the scanned part; less than `end` if `regions` is full
/// Returns the number of regions filled.
long clinux_pagemap_scan(int pagemap, uint64_t start, uint64_t end, int clear,
                         struct clinux_page_region *regions, size_t region_count,
                         uint64_t *walk_end);

/// Opens a userfaultfd limited to faults from user mode, which needs no privilege.
/// userfaultfd(2), UFFD_USER_MODE_ONLY. There is no libc wrapper.
int clinux_userfaultfd(void);

/// Enables asynchronous write-protection, including untouched pages and shared memory.
/// ioctl `UFFDIO_API` with UFFD_FEATURE_WP_ASYNC, _WP_UNPOPULATED, _WP_HUGETLBFS_SHMEM.
/// EINVAL: the kernel lacks one of them.
int clinux_uffd_enable_write_protect(int userfaultfd);

/// Registers memory for write-protection. ioctl `UFFDIO_REGISTER`, UFFDIO_REGISTER_MODE_WP.
int clinux_uffd_register(int userfaultfd, uint64_t start, uint64_t length);

/// Unregisters memory. ioctl `UFFDIO_UNREGISTER`.
int clinux_uffd_unregister(int userfaultfd, uint64_t start, uint64_t length);

/// Creates an anonymous file in memory. memfd_create(2), MFD_CLOEXEC; needs _GNU_SOURCE.
int clinux_memfd(const char *name);

/// Starts writing a file's dirty pages, without waiting.
/// sync_file_range(2), SYNC_FILE_RANGE_WRITE; needs _GNU_SOURCE.
int clinux_start_writeback(int file, uint64_t offset, uint64_t length);

/// Opens an open file again, for writing past the page cache.
/// open(2) of its name in /proc/self/fd, O_DIRECT; needs _GNU_SOURCE.
/// EINVAL: its file system does not support it.
int clinux_open_direct(int file);

/// Tries to lock all of a file for writing, without waiting; ends with the open file description.
/// fcntl(2), F_OFD_SETLK; needs _GNU_SOURCE. EBADF: the file is not open for writing.
int clinux_announce_lock(int file);

/// 1 if another holder has a write lock on a part of a file, 0 if not; takes no lock.
/// fcntl(2), F_OFD_GETLK; needs _GNU_SOURCE.
///
/// length      0: to the end, however long the file grows
int clinux_is_locked(int file, int64_t offset, int64_t length);

/// Reserves disk space for a file's first bytes, without changing its size.
/// fallocate(2), FALLOC_FL_KEEP_SIZE; needs _GNU_SOURCE.
int clinux_reserve(int file, uint64_t length);

/// Gives memory that was freed back to the kernel. malloc_trim(3) of glibc; elsewhere nothing.
void clinux_trim_memory(void);

/// A thread's state of SIGXFSZ before it was blocked.
struct clinux_size_signal {
    int was_blocked;
    int was_pending;
};

/// Blocks SIGXFSZ on this thread: a write beyond the file size limit (setrlimit(2), RLIMIT_FSIZE)
/// then fails with EFBIG instead of ending the process. The process's signal handler is not
/// changed. pthread_sigmask(3); sigset_t's functions are macros.
void clinux_hold_size_signal(struct clinux_size_signal *held);

/// Undoes `clinux_hold_size_signal` on the same thread; a signal that arrived in between is
/// consumed. Leaves errno unchanged.
///
/// failed  0 if no call failed with EFBIG in between, so that no signal can be pending
void clinux_release_size_signal(const struct clinux_size_signal *held, int failed);

/// Renames a file unless the new name exists. renameat2(2), RENAME_NOREPLACE; needs _GNU_SOURCE.
int clinux_rename_noreplace(const char *path, const char *new_path);

/// Immutable or append-only.
#define CLINUX_IMMUTABLE 1
/// The root of a mount, which may be a file.
#define CLINUX_MOUNT_ROOT 2

/// What prevents a file from being replaced by another: bits of the above.
/// statx(2), STATX_ATTR_*, Linux 5.8 for the second; needs _GNU_SOURCE.
int clinux_attributes(const char *path);

/// Returns the free space for a file and the maximum size of a file in bytes; UINT64_MAX where that
/// is unknown, as on file systems that compress or share data. fstatfs(2).
int clinux_room(int file, uint64_t *free_bytes, uint64_t *largest);

/// Makes an empty file share all blocks of another on the same file system, as they are now; dirty
/// pages of the other are written first. ioctl `FICLONE`, ioctl_ficlone(2).
int clinux_clone_file(int file, int source);

/// Makes a file share the blocks of the first bytes of another.
/// ioctl `FICLONERANGE`, ioctl_ficlonerange(2).
///
/// length      a multiple of the file system's block size; 0: all
int clinux_clone_beginning(int file, int source, uint64_t length);

/// 1 if a file is written in place (`chattr +C`), 0 if not. ioctl `FS_IOC_GETFLAGS`, FS_NOCOW_FL.
int clinux_is_nocow(int file);

/// Makes an empty file one that is written in place. ioctl `FS_IOC_SETFLAGS`, FS_NOCOW_FL.
int clinux_set_nocow(int file);

/// Where a part of a file is stored. `struct fiemap_extent`.
struct clinux_extent {
    uint64_t logical;  // byte in the file
    uint64_t physical; // byte on the device
    uint64_t length;   // bytes
    uint32_t flags;    // CLINUX_EXTENT_*
    uint32_t reserved;
};

/// The last extent of the file. FIEMAP_EXTENT_LAST.
#define CLINUX_EXTENT_LAST 0x00000001
/// It reads as zeros. FIEMAP_EXTENT_UNWRITTEN.
#define CLINUX_EXTENT_UNWRITTEN 0x00000800
/// `physical` does not identify its content: FIEMAP_EXTENT_UNKNOWN, _DELALLOC, _ENCODED,
/// _DATA_ENCRYPTED, _NOT_ALIGNED, _DATA_INLINE, _DATA_TAIL.
#define CLINUX_EXTENT_UNCERTAIN 0x0000078e

/// Finds where a file's bytes from `start` on are stored, after they were written there.
/// ioctl `FS_IOC_FIEMAP` with FIEMAP_FLAG_SYNC, Documentation/filesystems/fiemap.rst.
///
/// count       at most 256
/// Returns the number of extents filled.
int clinux_extents(int file, uint64_t start, struct clinux_extent *extents, unsigned count);

/// Returns the magic number of a file's file system. fstatfs(2).
int clinux_file_system(int file, uint32_t *magic);

/// Returns the size of a block device in bytes. ioctl `BLKGETSIZE64`.
int clinux_device_size(int device, uint64_t *bytes);

/// Returns the logical block size of a block device in bytes. ioctl `BLKSSZGET`.
int clinux_device_sector(int device, int *bytes);

/// Opens a pipe whose ends no other program inherits. pipe2(2), O_CLOEXEC; needs _GNU_SOURCE.
int clinux_pipe(int ends[2]);

#endif
