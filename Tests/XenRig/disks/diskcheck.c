/* diskcheck MEMORY [A B [HISTORY-A HISTORY-B]]
 *
 * Compares what the memory of the guest with two disks knows with what is on its disks (keeper.h).
 * MEMORY is any file that holds the guest's page anywhere: the page alone, an image of memory, a
 * stream of xl; the last one counts. A and B are the disks, as devices or files; the two others are
 * the file /history of each file system, mounted or copied out; without them these lanes are not
 * looked at. With MEMORY alone it prints the page.
 *
 * Status 0: memory and disks are of the same instant; 1: they are not; 2: nothing was compared. */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned long lost, later, damaged, other_runs, ahead, under_way;

static void say(const char *kind, int lane, uint64_t slot, uint64_t known, uint64_t found) {
    if (lost + later + damaged + other_runs <= 20)
        printf("lane %d, slot %lu: %s: memory knows record %lu, the disk holds %lu\n", lane, slot,
               kind, known, found);
}

static int stop(const char *what, const char *why) {
    fprintf(stderr, "diskcheck: %s: %s\n", what, why);
    exit(2);
}

static int open_file(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    return file >= 0 ? file : stop(path, strerror(errno));
}

static void find_page(const char *path, struct page *page) {
    char magic[MAGIC_SIZE] = PAGE_MAGIC_1;
    memcpy(magic + sizeof PAGE_MAGIC_1 - 1, PAGE_MAGIC_2, sizeof PAGE_MAGIC_2 - 1);
    int file = open_file(path);
    struct stat status;
    if (fstat(file, &status)) stop(path, strerror(errno));
    if (status.st_size < PAGE) stop(path, "it is smaller than a page");
    const char *start = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, file, 0), *at = start;
    if (start == MAP_FAILED) stop(path, strerror(errno));
    const char *end = start + status.st_size, *last = NULL;
    while ((at = memmem(at, end - at, magic, MAGIC_SIZE))) {
        if (end - at >= PAGE) last = at;
        at++;
    }
    if (!last) stop(path, "the guest's page is not in it");
    memcpy(page, last, PAGE);
    munmap((void *)start, status.st_size);
    close(file);
    if (page->lanes != LANES || page->disks != 2) stop(path, "the guest's page is of another kind");
    for (int i = 0; i < LANES; i++) {
        const struct lane *l = &page->lane[i];
        if (l->slots == 0 || l->sectors == 0 || l->disk > 1 || l->leader >= LANES
            || l->committed > l->issued || l->issued > l->committed + 1)
            stop(path, "the guest's page contradicts itself");
    }
}

/* All of a lane's slots; what a file lacks is zero. */
static struct sector *read_lane(const struct lane *l, int file) {
    size_t size = (size_t)l->slots * l->sectors * SECTOR, done = 0;
    char *content = calloc(1, size);
    if (!content) stop("memory", strerror(errno));
    while (done < size) {
        ssize_t count = pread(file, content + done, size - done, l->first + done);
        if (count < 0) stop("a read", strerror(errno));
        if (count == 0) break;
        done += count;
    }
    return (struct sector *)content;
}

/* Returns the newest record that is on the disk. */
static uint64_t check_lane(const struct page *page, int number, int file) {
    const struct lane *l = &page->lane[number];
    struct sector *s = read_lane(l, file);
    uint64_t *known = calloc(l->slots, sizeof *known), newest = 0;
    if (!known) stop("memory", strerror(errno));
    uint64_t from = l->committed > l->slots ? l->committed - l->slots + 1 : 1;
    for (uint64_t n = from; n <= l->committed; n++) known[slot_of(l, n)] = n;
    for (uint64_t slot = 0; slot < l->slots; slot++) {
        const struct sector *first = &s[slot * l->sectors];
        int writing = l->issued > l->committed && slot_of(l, l->issued) == slot;
        uint64_t right = known[slot], found;
        for (uint32_t i = 0; i < l->sectors; i++) {
            enum finding what = read_sector(&first[i], page->run, number, i, &found);
            if (what == RECORD && found > newest) newest = found;
            if (what <= EMPTY && (found == right || (writing && found == l->issued))) continue;
            if (what == OTHER_RUN) other_runs++, say("of another run", number, slot, right, found);
            else if (what == DAMAGED) damaged++, say("damaged", number, slot, right, found);
            else if (found > right) later++, say("later", number, slot, right, found);
            else lost++, say("lost", number, slot, right, found);
            break;
        }
    }
    free(known);
    free(s);
    return newest;
}

int main(int count, char **words) {
    static const char *kinds[] = { "", "synchronous", "asynchronous", "ledger", "history" };
    struct page page;
    uint64_t newest[LANES];
    if (count != 2 && count != 4 && count != 6) {
        fprintf(stderr, "usage: diskcheck MEMORY [A B [HISTORY-A HISTORY-B]]\n");
        return 2;
    }
    find_page(words[1], &page);
    uint64_t committed = 0;
    for (int i = 0; i < LANES; i++) {
        const struct lane *l = &page.lane[i];
        if (count == 2)
            printf("lane %d %s disk %c issued %lu committed %lu\n", i,
                   l->kind <= HISTORY ? kinds[l->kind] : "unknown", 'A' + l->disk, l->issued,
                   l->committed);
        committed += l->committed;
        under_way += l->issued - l->committed;
    }
    printf("run=%016lx seconds=%lu committed=%lu underway=%lu errors=%lu\n", page.run, page.seconds,
           committed, under_way, page.errors);
    if (count == 2) return 0;

    int disk[2], history[2] = { -1, -1 };
    for (int d = 0; d < 2; d++) {
        struct sector name;
        uint64_t found;
        disk[d] = open_file(words[2 + d]);
        if (count == 6) history[d] = open_file(words[4 + d]);
        if (pread(disk[d], &name, SECTOR, page.raw) != SECTOR)
            stop(words[2 + d], "it is too short");
        if (read_sector(&name, page.run, NAME_LANE + d, 0, &found) != RECORD) {
            printf("%s is not disk %c of this guest\n", words[2 + d], 'A' + d);
            other_runs++;
        }
    }
    int looked = 0;
    for (int i = 0; i < LANES; i++) {
        const struct lane *l = &page.lane[i];
        int file = l->kind == HISTORY ? history[l->disk] : disk[l->disk];
        newest[i] = 0;
        if (file < 0) continue;
        looked++;
        newest[i] = check_lane(&page, i, file);
        if (l->leader >= 0 && newest[i] > newest[l->leader]) {
            ahead++;
            printf("lane %d is ahead: disk %c holds record %lu, disk %c only %lu\n", i,
                   'A' + l->disk, newest[i], 'A' + page.lane[l->leader].disk, newest[l->leader]);
        }
    }
    int right = !(lost || later || damaged || other_runs || ahead);
    printf("%s: lanes=%d lost=%lu later=%lu damaged=%lu otherruns=%lu ahead=%lu\n",
           right ? "agree" : "disagree", looked, lost, later, damaged, other_runs, ahead);
    return right ? 0 : 1;
}
