#ifndef CLINUX_H
#define CLINUX_H

// What Swift cannot import from the kernel's headers: ioctl numbers (function-like macros),
// variadic calls, and interfaces newer than the headers of the oldest system that this builds on
// (Debian 12 has those of Linux 6.1). Layouts and numbers are those of include/uapi/linux/fs.h and
// include/uapi/linux/userfaultfd.h of Linux 6.7.
//
// Every function returns -1 and sets errno on failure, as the call behind it does.

#include <stddef.h>
#include <stdint.h>

/// One run of pages with equal categories. `struct page_region`.
struct clinux_page_region {
    uint64_t start;      // byte address
    uint64_t end;        // byte address
    uint64_t categories;
};

/// Finds the pages of [start, end) that were written since they were last protected.
/// ioctl `PAGEMAP_SCAN` on /proc/self/pagemap, with PM_SCAN_CHECK_WPASYNC and PAGE_IS_WRITTEN.
///
/// clear       write-protects each page found, in the same step (PM_SCAN_WP_MATCHING)
/// walk_end    gets the address up to which was scanned; less than `end` when `regions` is full
/// Returns how many regions were filled.
long clinux_pagemap_scan(int pagemap, uint64_t start, uint64_t end, int clear,
                         struct clinux_page_region *regions, size_t region_count,
                         uint64_t *walk_end);

/// Opens a userfaultfd for faults of this process's user mode only, which needs no privilege.
/// userfaultfd(2), UFFD_USER_MODE_ONLY. There is no libc wrapper.
int clinux_userfaultfd(void);

/// Asks for asynchronous write-protection, of pages never touched too, and of shared memory.
/// ioctl `UFFDIO_API` with UFFD_FEATURE_WP_ASYNC, _WP_UNPOPULATED, _WP_HUGETLBFS_SHMEM.
/// EINVAL: the kernel lacks one of them.
int clinux_uffd_enable_write_protect(int userfaultfd);

/// Registers memory for write-protection. ioctl `UFFDIO_REGISTER`, UFFDIO_REGISTER_MODE_WP.
int clinux_uffd_register(int userfaultfd, uint64_t start, uint64_t length);

/// Takes memory back. ioctl `UFFDIO_UNREGISTER`.
int clinux_uffd_unregister(int userfaultfd, uint64_t start, uint64_t length);

/// An anonymous file in memory. memfd_create(2), MFD_CLOEXEC; hidden behind _GNU_SOURCE.
int clinux_memfd(const char *name);

/// Asks the kernel to begin writing a file's dirty pages, and waits for none.
/// sync_file_range(2), SYNC_FILE_RANGE_WRITE; hidden behind _GNU_SOURCE.
int clinux_start_writeback(int file, uint64_t offset, uint64_t length);

/// Opens an open file once more, for writing past the page cache.
/// open(2) of its name in /proc/self/fd, O_DIRECT; hidden behind _GNU_SOURCE.
/// EINVAL: its file system cannot.
int clinux_open_direct(int file);

/// Locks all of a file for writing if nobody else has, without waiting; goes with the description.
/// fcntl(2), F_OFD_SETLK; hidden behind _GNU_SOURCE. EBADF: it was not opened for writing.
int clinux_announce_lock(int file);

/// 1 if somebody else has a write lock on a part of a file, 0 if not; takes none.
/// fcntl(2), F_OFD_GETLK; hidden behind _GNU_SOURCE.
///
/// length      0: to the end, however long it grows
int clinux_is_locked(int file, int64_t offset, int64_t length);

/// Has a file's first bytes keep room on the disk, whatever its size.
/// fallocate(2), FALLOC_FL_KEEP_SIZE; hidden behind _GNU_SOURCE.
int clinux_reserve(int file, uint64_t length);

/// What a thread had of SIGXFSZ before it was held.
struct clinux_size_signal {
    int was_blocked;
    int was_pending;
};

/// Blocks SIGXFSZ on this thread: a write past the limit of file sizes (setrlimit(2),
/// RLIMIT_FSIZE) fails with EFBIG then, and does not end the process. The process's own handling
/// of the signal stays as it is. pthread_sigmask(3); sigset_t's functions are macros.
void clinux_hold_size_signal(struct clinux_size_signal *held);

/// Undoes `clinux_hold_size_signal` on the same thread; a signal that came meanwhile is taken away.
/// Leaves errno as it is.
///
/// failed  0 if no call failed with EFBIG meanwhile, so that there is nothing to look for
void clinux_release_size_signal(const struct clinux_size_signal *held, int failed);

/// Renames a file unless the new name is taken. renameat2(2), RENAME_NOREPLACE; hidden behind
/// _GNU_SOURCE.
int clinux_rename_noreplace(const char *path, const char *new_path);

/// May not be changed or may only be appended to.
#define CLINUX_IMMUTABLE 1
/// The root of a mount: a file can be one.
#define CLINUX_MOUNT_ROOT 2

/// What forbids that another file takes the place of one: bits of the above.
/// statx(2), STATX_ATTR_*, Linux 5.8 for the second; hidden behind _GNU_SOURCE.
int clinux_attributes(const char *path);

/// How many bytes are free for a file, and how many a file can have; UINT64_MAX where that is not
/// known, as on file systems that compress or share what is written. fstatfs(2).
int clinux_room(int file, uint64_t *free_bytes, uint64_t *largest);

#endif
