#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

const int clinux_unnamed_file = O_TMPFILE;

// struct pm_scan_arg, Linux 6.7.
struct clinux_pm_scan_arg {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};

enum {
    PM_SCAN_WP_MATCHING_ = 1 << 0,
    PM_SCAN_CHECK_WPASYNC_ = 1 << 1,
    PAGE_IS_WRITTEN_ = 1 << 1,
    UFFD_USER_MODE_ONLY_ = 1,
};

#define CLINUX_PAGEMAP_SCAN _IOWR('f', 16, struct clinux_pm_scan_arg)

// Features of Linux 5.19, 6.4 and 6.7.
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM_ (1ull << 12)
#define UFFD_FEATURE_WP_UNPOPULATED_ (1ull << 13)
#define UFFD_FEATURE_WP_ASYNC_ (1ull << 15)

long clinux_pagemap_scan(int pagemap, uint64_t start, uint64_t end, int clear,
                         struct clinux_page_region *regions, size_t region_count,
                         uint64_t *walk_end) {
    struct clinux_pm_scan_arg arg = {
        .size = sizeof arg,
        .flags = PM_SCAN_CHECK_WPASYNC_ | (clear ? PM_SCAN_WP_MATCHING_ : 0),
        .start = start,
        .end = end,
        .vec = (uintptr_t)regions,
        .vec_len = region_count,
        .category_mask = PAGE_IS_WRITTEN_,
        .return_mask = PAGE_IS_WRITTEN_,
    };
    long count = ioctl(pagemap, CLINUX_PAGEMAP_SCAN, &arg);
    *walk_end = arg.walk_end;
    return count;
}

int clinux_userfaultfd(void) {
    // O_CLOEXEC is 02000000 on all supported Linux targets.
    return (int)syscall(SYS_userfaultfd, 02000000 | UFFD_USER_MODE_ONLY_);
}

int clinux_uffd_enable_write_protect(int userfaultfd) {
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_WP_ASYNC_ | UFFD_FEATURE_WP_UNPOPULATED_
                    | UFFD_FEATURE_WP_HUGETLBFS_SHMEM_,
    };
    return ioctl(userfaultfd, UFFDIO_API, &api);
}

int clinux_uffd_register(int userfaultfd, uint64_t start, uint64_t length) {
    struct uffdio_register request = {
        .range = {.start = start, .len = length},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    return ioctl(userfaultfd, UFFDIO_REGISTER, &request);
}

int clinux_uffd_unregister(int userfaultfd, uint64_t start, uint64_t length) {
    struct uffdio_range range = {.start = start, .len = length};
    return ioctl(userfaultfd, UFFDIO_UNREGISTER, &range);
}

int clinux_start_writeback(int file, uint64_t offset, uint64_t length) {
    return sync_file_range(file, (off64_t)offset, (off64_t)length, SYNC_FILE_RANGE_WRITE);
}

int clinux_open_direct(int file) {
    char name[32];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    return open(name, O_WRONLY | O_DIRECT | O_CLOEXEC);
}

static int lock_range(int file, int command, short type, int64_t offset, int64_t length,
                      short *found) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET};
    lock.l_start = (off_t)offset;
    lock.l_len = (off_t)length;
    int result = fcntl(file, command, &lock);
    *found = lock.l_type;
    return result;
}

int clinux_announce_lock(int file) {
    short found;
    return lock_range(file, F_OFD_SETLK, F_WRLCK, 0, 0, &found);
}

int clinux_is_locked(int file, int64_t offset, int64_t length) {
    short found;
    if (lock_range(file, F_OFD_GETLK, F_RDLCK, offset, length, &found) != 0) return -1;
    return found != F_UNLCK;
}

int clinux_reserve(int file, uint64_t length) {
    return fallocate(file, FALLOC_FL_KEEP_SIZE, 0, (off64_t)length);
}

int clinux_memfd(const char *name) { return memfd_create(name, MFD_CLOEXEC); }

void clinux_trim_memory(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

static void size_signal(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGXFSZ);
}

void clinux_hold_size_signal(struct clinux_size_signal *held)
{
    sigset_t set, old, pending;
    size_signal(&set);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    held->was_blocked = sigismember(&old, SIGXFSZ) == 1;
    held->was_pending = held->was_blocked && sigpending(&pending) == 0
                        && sigismember(&pending, SIGXFSZ) == 1;
}

void clinux_release_size_signal(const struct clinux_size_signal *held, int failed)
{
    const int error = errno;
    const struct timespec now = {0, 0};
    sigset_t set;
    size_signal(&set);
    if (failed && !held->was_pending) {
        while (sigtimedwait(&set, NULL, &now) == -1 && errno == EINTR) {
        }
    }
    if (!held->was_blocked) {
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    }
    errno = error;
}

int clinux_rename_noreplace(const char *path, const char *new_path) {
    return renameat2(AT_FDCWD, path, AT_FDCWD, new_path, RENAME_NOREPLACE);
}

int clinux_attributes(const char *path) {
    struct statx status;
    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, 0, &status) != 0) return -1;
    int found = 0;
    if (status.stx_attributes & (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND))
        found |= CLINUX_IMMUTABLE;
    if (status.stx_attributes & STATX_ATTR_MOUNT_ROOT) found |= CLINUX_MOUNT_ROOT;
    return found;
}

int clinux_room(int file, uint64_t *free_bytes, uint64_t *largest) {
    struct statfs status;
    if (fstatfs(file, &status) != 0) return -1;
    *free_bytes = UINT64_MAX;
    *largest = UINT64_MAX;
    // Magic numbers from include/uapi/linux/magic.h.
    switch ((uint32_t)status.f_type) {
    case 0x4d44: // FAT: a length has 32 bits
        *largest = UINT32_MAX;
        // fall through
    case 0x2011bab0: // exFAT
    case 0xef53:     // ext2, ext3, ext4
    case 0x58465342: // XFS
    case 0x01021994: // tmpfs
        // Root may use reserved blocks. A tmpfs without a limit reports no blocks.
        if (status.f_blocks > 0)
            *free_bytes = (uint64_t)status.f_bfree * (uint64_t)status.f_bsize;
    }
    return 0;
}

int clinux_clone_file(int file, int source) { return ioctl(file, FICLONE, source); }

int clinux_clone_beginning(int file, int source, uint64_t length) {
    struct file_clone_range range = {.src_fd = source, .src_length = length};
    return ioctl(file, FICLONERANGE, &range);
}

int clinux_is_nocow(int file) {
    int flags = 0;
    if (ioctl(file, FS_IOC_GETFLAGS, &flags) != 0) return -1;
    return (flags & FS_NOCOW_FL) != 0;
}

int clinux_set_nocow(int file) {
    int flags = 0;
    if (ioctl(file, FS_IOC_GETFLAGS, &flags) != 0) return -1;
    flags |= FS_NOCOW_FL;
    return ioctl(file, FS_IOC_SETFLAGS, &flags);
}

enum { MAX_EXTENTS = 256 };

int clinux_extents(int file, uint64_t start, struct clinux_extent *extents, unsigned count) {
    _Alignas(struct fiemap) char room[sizeof(struct fiemap)
                                      + MAX_EXTENTS * sizeof(struct fiemap_extent)];
    struct fiemap *map = (struct fiemap *)room;
    // All of it: valgrind does not know what this call fills in.
    memset(room, 0, sizeof room);
    map->fm_start = start;
    map->fm_length = FIEMAP_MAX_OFFSET - start;
    map->fm_flags = FIEMAP_FLAG_SYNC;
    map->fm_extent_count = count < MAX_EXTENTS ? count : MAX_EXTENTS;
    if (ioctl(file, FS_IOC_FIEMAP, map) != 0) return -1;
    for (unsigned i = 0; i < map->fm_mapped_extents; i++) {
        const struct fiemap_extent *found = &map->fm_extents[i];
        extents[i] = (struct clinux_extent){
            .logical = found->fe_logical,
            .physical = found->fe_physical,
            .length = found->fe_length,
            .flags = found->fe_flags,
        };
    }
    return (int)map->fm_mapped_extents;
}

int clinux_file_system(int file, uint32_t *magic) {
    struct statfs status;
    if (fstatfs(file, &status) != 0) return -1;
    *magic = (uint32_t)status.f_type;
    return 0;
}

int clinux_device_size(int device, uint64_t *bytes) { return ioctl(device, BLKGETSIZE64, bytes); }

int clinux_device_sector(int device, int *bytes) { return ioctl(device, BLKSSZGET, bytes); }

int clinux_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC); }
