/* diskkeeper DEVICE DIRECTORY DEVICE DIRECTORY: the whole user space of the guest with two disks, A
 * and B. It knows in memory exactly what is on them (keeper.h), and checks it all the time past the
 * page cache:
 *
 *   4 threads   write records synchronously into the raw areas, two on each disk
 *   1 thread    has up to 16 asynchronous writes under way, half of them on each disk; the kernel
 *               does not wait for these when it suspends itself
 *   1 thread    writes a ledger into the raw area of A through the page cache, synchronizes it, and
 *               does the same on B
 *   1 thread    does the same with a file of each file system
 *   1 thread    makes, changes and removes files, looks at their names and contents, and makes the
 *               kernel forget what it has read
 *
 * Once a second it prints its counts; `errors` counts whatever is not on the disks as memory knows
 * it, and failed calls. TICK (milliseconds, 20) is the pause after each write; ONLY=asynchronous
 * leaves only the asynchronous writes, without reads. They come from the kernel's command line,
 * diskkeeper.tick= and diskkeeper.only=. SIGTERM ends it: all is written, the file systems are
 * unmounted, the machine is powered off. */
#define _GNU_SOURCE
#include "keeper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { RAW_LENGTH = 8 << 20, SYNCHRONOUS_LANES = 4, UNDER_WAY = 16, FILES = 24, FILE_SECTORS = 16 };
enum { FIRST_ASYNCHRONOUS = SYNCHRONOUS_LANES, FIRST_LEDGER = FIRST_ASYNCHRONOUS + UNDER_WAY,
       FIRST_HISTORY = FIRST_LEDGER + 2 };
_Static_assert(FIRST_HISTORY + 2 == LANES, "all lanes have a writer");

static struct page *page;
static const char *device[2], *directory[2];
static long tick = 20;
static atomic_ulong errors, reads, files;
static atomic_int ending;
/* ONLY=asynchronous: there are only the asynchronous writes, and no reads. A suspension waits for
 * what is synchronous, reads included, and by then the asynchronous writes have ended too. */
static int only_asynchronous;
/* The record of each slot that memory knows as written. Only the lane's own thread uses it. */
static uint64_t *newest[LANES];

static void nap(long milliseconds) {
    struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000 };
    while (nanosleep(&time, &time) && errno == EINTR && !ending);
}

/* The first errors are printed, all are counted. */
#define WRONG(...) do { \
    if (atomic_fetch_add(&errors, 1) < 20) { printf("diskkeeper: " __VA_ARGS__); putchar('\n'); } \
} while (0)
#define FAILED(what) WRONG("%s failed: %s", what, strerror(errno))

static void give_up(const char *why) {
    printf("diskkeeper: %s\n", why);
    exit(1);
}

static void *whole_pages(size_t size) {
    void *memory = aligned_alloc(PAGE, (size + PAGE - 1) / PAGE * PAGE);
    if (!memory) give_up("there is no memory");
    return memory;
}

static int open_or_die(const char *path, int flags) {
    int file = open(path, flags, 0600);
    if (file < 0) { printf("diskkeeper: %s: %s\n", path, strerror(errno)); exit(1); }
    return file;
}

static void make_record(struct sector *s, int lane, uint64_t record) {
    for (uint32_t i = 0; i < page->lane[lane].sectors; i++)
        make_sector(&s[i], page->run, lane, record, i);
}

/* One that is stored before anything that follows, and after all that came before. */
static void store(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static uint64_t issue(int lane) {
    uint64_t record = page->lane[lane].issued + 1;
    store(&page->lane[lane].issued, record);
    return record;
}

static void commit(int lane, uint64_t record) {
    newest[lane][slot_of(&page->lane[lane], record)] = record;
    store(&page->lane[lane].committed, record);
}

/* Reads a slot back past the page cache, by a descriptor with O_DIRECT; not one that is written. */
static void look(int lane, int file, struct sector *s, uint64_t slot) {
    const struct lane *l = &page->lane[lane];
    ssize_t size = l->sectors * SECTOR;
    if (l->issued != l->committed && slot == slot_of(l, l->issued)) return;
    /* A file ends after its newest record. */
    if (l->kind == HISTORY && newest[lane][slot] == 0) return;
    if (pread(file, s, size, offset_of(l, slot)) != size) { FAILED("a read"); return; }
    reads++;
    for (uint32_t i = 0; i < l->sectors; i++) {
        uint64_t found;
        enum finding what = read_sector(&s[i], page->run, lane, i, &found);
        if (what <= EMPTY && found == newest[lane][slot]) continue;
        WRONG("lane %d, slot %lu: memory knows record %lu, disk %c holds %s %lu", lane, slot,
              newest[lane][slot], 'A' + l->disk, what == DAMAGED ? "something else" : "record",
              found);
        return;
    }
}

static void look_anywhere(int lane, int file, struct sector *s, unsigned *seed) {
    look(lane, file, s, rand_r(seed) % page->lane[lane].slots);
}

static void *write_synchronously(void *argument) {
    int lane = (long)argument;
    unsigned seed = lane + 1;
    struct lane *l = &page->lane[lane];
    ssize_t size = l->sectors * SECTOR;
    struct sector *s = whole_pages(size);
    int file = open_or_die(device[l->disk], O_RDWR | O_DIRECT | O_SYNC);
    while (!ending) {
        uint64_t record = issue(lane);
        make_record(s, lane, record);
        if (pwrite(file, s, size, offset_of(l, slot_of(l, record))) == size) commit(lane, record);
        else { FAILED("a synchronous write"); break; }
        look_anywhere(lane, file, s, &seed);
        nap(tick);
    }
    return NULL;
}

static void *write_asynchronously(void *argument) {
    (void)argument;
    unsigned seed = 100;
    int file[2], busy = 0;
    aio_context_t context = 0;
    struct sector *s[UNDER_WAY], *other = whole_pages(PAGE);
    struct iocb request[UNDER_WAY];
    char idle[UNDER_WAY];
    for (int d = 0; d < 2; d++) file[d] = open_or_die(device[d], O_RDWR | O_DIRECT);
    if (syscall(SYS_io_setup, UNDER_WAY, &context)) { FAILED("io_setup"); return NULL; }
    for (int k = 0; k < UNDER_WAY; k++) s[k] = whole_pages(PAGE);
    memset(idle, 1, sizeof idle);
    while (!ending || busy) {
        struct iocb *batch[UNDER_WAY];
        long count = 0;
        for (int k = 0; k < UNDER_WAY && !ending; k++) {
            int lane = FIRST_ASYNCHRONOUS + k;
            struct lane *l = &page->lane[lane];
            if (!idle[k]) continue;
            uint64_t record = issue(lane);
            make_record(s[k], lane, record);
            request[k] = (struct iocb){
                .aio_data = k, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = file[l->disk],
                .aio_buf = (uintptr_t)s[k], .aio_nbytes = l->sectors * SECTOR,
                .aio_offset = offset_of(l, slot_of(l, record)),
            };
            batch[count++] = &request[k];
            idle[k] = 0;
        }
        busy += count;
        for (long done = 0; done < count;) {
            long taken = syscall(SYS_io_submit, context, count - done, batch + done);
            if (taken > 0) done += taken;
            else if (errno != EAGAIN && errno != EINTR) { FAILED("io_submit"); return NULL; }
        }
        struct io_event event[UNDER_WAY];
        long ended = syscall(SYS_io_getevents, context, 1, UNDER_WAY, event, NULL);
        if (ended < 0 && errno != EINTR) { FAILED("io_getevents"); return NULL; }
        for (long e = 0; e < ended; e++) {
            int k = event[e].data, lane = FIRST_ASYNCHRONOUS + k;
            busy--;
            /* A lane whose write failed rests. */
            if (event[e].res != page->lane[lane].sectors * SECTOR) {
                errno = event[e].res < 0 ? -event[e].res : EIO;
                FAILED("an asynchronous write");
                continue;
            }
            commit(lane, page->lane[lane].issued);
            idle[k] = 1;
            if (e % 4 == 0 && !only_asynchronous)
                look_anywhere(lane, file[page->lane[lane].disk], other, &seed);
        }
        nap(tick);
    }
    return NULL;
}

/* Two lanes with the same records: on B only what is synchronized on A. */
static void *write_in_order(void *argument) {
    int first = (long)argument;
    unsigned seed = first;
    struct sector *s = whole_pages(SECTOR);
    int cached[2], direct[2];
    for (int d = 0; d < 2; d++) {
        char path[64];
        int ledger = page->lane[first].kind == LEDGER;
        if (ledger) snprintf(path, sizeof path, "%s", device[d]);
        else snprintf(path, sizeof path, "%s/history", directory[d]);
        cached[d] = open_or_die(path, ledger ? O_RDWR : O_RDWR | O_CREAT | O_TRUNC);
        direct[d] = open_or_die(path, O_RDONLY | O_DIRECT);
    }
    while (!ending) {
        for (int d = 0; d < 2; d++) {
            int lane = first + d;
            struct lane *l = &page->lane[lane];
            uint64_t record = issue(lane);
            make_record(s, lane, record);
            if (pwrite(cached[d], s, SECTOR, offset_of(l, slot_of(l, record))) != SECTOR
                || fdatasync(cached[d])) {
                FAILED(l->kind == LEDGER ? "writing the ledger" : "writing the history");
                return NULL;
            }
            commit(lane, record);
            /* A recent one, and any. */
            uint64_t recent = record < 64 ? record : 64;
            look(lane, direct[d], s, slot_of(l, record - rand_r(&seed) % recent));
            look_anywhere(lane, direct[d], s, &seed);
        }
        nap(tick);
    }
    /* So that the file systems can be unmounted. */
    for (int d = 0; d < 2; d++) close(cached[d]), close(direct[d]);
    return NULL;
}

/* Files: which there are, and which version of each. */
static uint64_t version[2][FILES];

static void file_path(char *path, int disk, int number) {
    sprintf(path, "%s/files/keep-%02d", directory[disk], number);
}

static void write_file(int disk, int number, uint64_t to, int synchronize, struct sector *s) {
    char path[64];
    file_path(path, disk, number);
    for (int i = 0; i < FILE_SECTORS; i++)
        make_sector(&s[i], page->run, FILE_LANE + disk * FILES + number, to, i);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || write(file, s, FILE_SECTORS * SECTOR) != FILE_SECTORS * SECTOR
        || (synchronize && fsync(file)) || close(file)) FAILED("writing a file");
    else version[disk][number] = to;
}

static void look_at_file(int disk, int number, struct sector *s) {
    char path[64];
    file_path(path, disk, number);
    int file = open(path, O_RDONLY | O_DIRECT);
    if (file < 0 || read(file, s, FILE_SECTORS * SECTOR) != FILE_SECTORS * SECTOR)
        FAILED("reading a file");
    if (file < 0) return;
    close(file);
    reads++;
    for (int i = 0; i < FILE_SECTORS; i++) {
        uint64_t found;
        if (read_sector(&s[i], page->run, FILE_LANE + disk * FILES + number, i, &found) == RECORD
            && found == version[disk][number]) continue;
        WRONG("%s: memory knows version %lu, the file holds %lu", path, version[disk][number],
              found);
        return;
    }
}

static void look_at_names(int disk) {
    char path[64], there[FILES] = { 0 };
    snprintf(path, sizeof path, "%s/files", directory[disk]);
    DIR *names = opendir(path);
    if (!names) { FAILED("opendir"); return; }
    for (struct dirent *entry; (entry = readdir(names));) {
        int number;
        if (sscanf(entry->d_name, "keep-%d", &number) == 1 && number < FILES) there[number] = 1;
        else if (entry->d_name[0] != '.') WRONG("%s has a strange %s", path, entry->d_name);
    }
    closedir(names);
    for (int n = 0; n < FILES; n++)
        if (there[n] != (version[disk][n] > 0))
            WRONG("%s: memory knows version %lu of file %d, the directory %s it", path,
                  version[disk][n], n, there[n] ? "has" : "lacks");
}

static void *keep_files(void *argument) {
    (void)argument;
    unsigned seed = 7;
    uint64_t last = 0;
    struct sector *s = whole_pages(FILE_SECTORS * SECTOR);
    int forget = open("/proc/sys/vm/drop_caches", O_WRONLY);
    while (!ending) {
        int disk = rand_r(&seed) % 2, number = rand_r(&seed) % FILES;
        char path[64];
        file_path(path, disk, number);
        if (version[disk][number]) look_at_file(disk, number, s);
        if (version[disk][number] && rand_r(&seed) % 3 == 0) {
            if (unlink(path)) FAILED("unlink");
            version[disk][number] = 0;
        } else {
            last++;
            write_file(disk, number, last, last % 4 == 0, s);
        }
        files++;
        if (files % 16 == 0) for (int d = 0; d < 2; d++) look_at_names(d);
        /* Clean pages, names and inodes, so that the next look goes to the disks. */
        if (files % 32 == 0 && write(forget, "3", 1) != 1) FAILED("drop_caches");
        nap(tick * 2);
    }
    return NULL;
}

/* Describes the lanes: those of the raw areas follow each other after the first 64 KiB. */
static void lay_out(void) {
    uint64_t used[2] = { page->raw + 65536, page->raw + 65536 };
    page->disks = 2;
    page->lanes = LANES;
    for (int i = 0; i < LANES; i++) {
        struct lane *l = &page->lane[i];
        *l = (struct lane){ .disk = i % 2, .kind = HISTORY, .sectors = 1, .slots = 8192,
                            .stride = 1, .leader = -1 };
        if (i < FIRST_ASYNCHRONOUS) {
            l->kind = SYNCHRONOUS, l->sectors = PAGE / SECTOR, l->slots = 128, l->stride = 37;
        } else if (i < FIRST_LEDGER) {
            l->kind = ASYNCHRONOUS, l->sectors = PAGE / SECTOR, l->slots = 64, l->stride = 19;
        } else {
            if (i < FIRST_HISTORY) l->kind = LEDGER, l->slots = 2048;
            if (l->disk == 1) l->leader = i - 1;
        }
        if (l->kind != HISTORY) {
            l->first = used[l->disk];
            used[l->disk] = offset_of(l, l->slots);
        }
        newest[i] = calloc(l->slots, sizeof *newest[i]);
    }
}

/* Clears the raw area of a disk and names it. */
static void begin_disk(int disk) {
    int file = open_or_die(device[disk], O_RDWR | O_DIRECT);
    size_t size = 1 << 16;
    struct sector *s = whole_pages(size);
    uint32_t blocks, shift;
    /* The file system must end before: s_blocks_count and s_log_block_size of ext4. */
    if (pread(file, s, PAGE, 0) != PAGE) give_up("the disk cannot be read");
    memcpy(&blocks, (char *)s + 1024 + 4, 4);
    memcpy(&shift, (char *)s + 1024 + 24, 4);
    if ((uint64_t)blocks << (10 + shift) > page->raw) {
        printf("diskkeeper: the file system of %s has no %d MiB behind it\n", device[disk],
               RAW_LENGTH >> 20);
        exit(1);
    }
    memset(s, 0, size);
    for (uint64_t at = page->raw; at < page->raw + page->rawLength; at += size)
        if (pwrite(file, s, size, at) != (ssize_t)size) give_up("the disk cannot be cleared");
    make_sector(s, page->run, NAME_LANE + disk, 1, 0);
    if (pwrite(file, s, PAGE, page->raw) != PAGE || fsync(file)) give_up("it cannot be named");
    free(s);
    close(file);
}

static void end(int number) {
    (void)number;
    ending = 1;
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count != 5) { puts("usage: diskkeeper DEVICE DIRECTORY DEVICE DIRECTORY"); return 2; }
    for (int d = 0; d < 2; d++) device[d] = words[1 + 2 * d], directory[d] = words[2 + 2 * d];
    if (getenv("TICK")) tick = atol(getenv("TICK"));
    only_asynchronous = getenv("ONLY") && !strcmp(getenv("ONLY"), "asynchronous");
    signal(SIGTERM, end);
    signal(SIGHUP, SIG_IGN);

    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1,
                0);
    if (page == MAP_FAILED) give_up("there is no memory");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (getrandom(&page->run, sizeof page->run, GRND_NONBLOCK) < 0) page->run = 0;
    page->run = (page->run ^ (uint64_t)now.tv_sec << 30 ^ now.tv_nsec) | 1;
    uint64_t size[2];
    for (int d = 0; d < 2; d++) {
        char path[64];
        int file = open_or_die(device[d], O_RDONLY);
        if (ioctl(file, BLKGETSIZE64, &size[d]) || size[d] != size[0])
            give_up("the disks must be of one size");
        close(file);
        snprintf(path, sizeof path, "%s/files", directory[d]);
        mkdir(path, 0700);
    }
    page->raw = (size[0] - RAW_LENGTH) / PAGE * PAGE;
    page->rawLength = RAW_LENGTH;
    lay_out();
    for (int d = 0; d < 2; d++) begin_disk(d);
    memcpy(page->magic, PAGE_MAGIC_1, sizeof PAGE_MAGIC_1 - 1);
    memcpy(page->magic + sizeof PAGE_MAGIC_1 - 1, PAGE_MAGIC_2, sizeof PAGE_MAGIC_2 - 1);

    pthread_t thread[SYNCHRONOUS_LANES + 4];
    int threads = 0;
    pthread_create(&thread[threads++], NULL, write_asynchronously, NULL);
    if (!only_asynchronous) {
        for (long lane = 0; lane < SYNCHRONOUS_LANES; lane++)
            pthread_create(&thread[threads++], NULL, write_synchronously, (void *)lane);
        pthread_create(&thread[threads++], NULL, write_in_order, (void *)(long)FIRST_LEDGER);
        pthread_create(&thread[threads++], NULL, write_in_order, (void *)(long)FIRST_HISTORY);
        pthread_create(&thread[threads++], NULL, keep_files, NULL);
    }
    printf("diskkeeper: ready\n");
    while (!ending) {
        nap(1000);
        uint64_t written[HISTORY + 1] = { 0 }, all = 0;
        for (int i = 0; i < LANES; i++) {
            written[page->lane[i].kind] += page->lane[i].committed;
            all += page->lane[i].committed;
        }
        page->errors = errors;
        page->seconds++;
        struct timespec wall, monotonic;
        clock_gettime(CLOCK_REALTIME, &wall);
        clock_gettime(CLOCK_MONOTONIC, &monotonic);
        printf("diskkeeper: seconds=%lu writes=%lu synchronous=%lu asynchronous=%lu ledger=%lu "
               "history=%lu files=%lu reads=%lu errors=%lu wall=%ld monotonic=%ld\n",
               page->seconds, all, written[SYNCHRONOUS], written[ASYNCHRONOUS], written[LEDGER],
               written[HISTORY], files, reads, page->errors, wall.tv_sec, monotonic.tv_sec);
    }
    for (int t = 0; t < threads; t++) pthread_join(thread[t], NULL);
    for (int d = 0; d < 2; d++) if (umount(directory[d])) FAILED("umount");
    printf("diskkeeper: ended errors=%lu\n", errors);
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
