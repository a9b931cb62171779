/* What diskkeeper, in the guest, and diskcheck, outside of it, agree on: the page in which the
 * guest's memory knows what is on its disks, and what is on them.
 *
 * The page
 *
 * One page of diskkeeper's memory begins with PAGE_MAGIC, 32 bytes that occur nowhere else in the
 * guest: the program itself holds them in two parts. All numbers are little endian.
 *
 *     0  32  magic
 *    32   8  run        a number drawn at the start; each sector on disk repeats it
 *    40   4  disks      2: A (0) and B (1)
 *    44   4  lanes      how many follow
 *    48   8  raw        where the raw area begins on both disks, in bytes, behind the file system
 *    56   8  rawLength
 *    64   8  seconds    lines that were printed
 *    72   8  errors     what the guest itself has found
 *    80  48  0
 *   128  64  each lane:
 *         0   1  disk
 *         1   1  kind       1 synchronous, 2 asynchronous, 3 ledger (raw areas); 4 history (a file)
 *         2   2  sectors    of a record, 512 bytes each
 *         4   4  slots      records that there is room for
 *         8   8  first      the offset of slot 0: on the disk, or in the file
 *        16   4  stride     record n, from 1, is in slot n * stride % slots
 *        20   4  leader     the lane that must never be behind this one, or -1
 *        24   8  issued     the newest record whose writing has begun
 *        32   8  committed  the newest record that is on the disk: its write was answered
 *        40  24  0
 *
 * Each lane has at most one record under way: committed <= issued <= committed + 1. `issued` is
 * stored before a write begins, `committed` after it was answered, each in one instruction; the
 * page is therefore right at every instant, and needs no checksum.
 *
 * The disks
 *
 * A sector names the run, the lane, the record and its place in the record; its other bytes follow
 * from these. So of the disks of the same instant as a page:
 *
 * - each slot holds the newest of its records up to `committed`, whole;
 * - but the slot of a record under way holds in each sector that one or the one before it;
 * - a slot without a record is zero: the raw area is cleared at the start;
 * - the newest record of a lane on the disk is not newer than that of its leader. The ledger and
 *   the history are written to A, synchronized, and only then written to B.
 *
 * The raw area begins with a sector of lane NAME_LANE + disk, which names disk and run. */
#ifndef KEEPER_H
#define KEEPER_H
#include <stdint.h>
#include <string.h>

#define PAGE_MAGIC_1 "Varve's rig: "
#define PAGE_MAGIC_2 "what is on disk, 1\n"
#define SECTOR_MAGIC "KEEPSECT"

enum { PAGE = 4096, SECTOR = 512, MAGIC_SIZE = 32, LANES = 24, NAME_LANE = 1000, FILE_LANE = 2000 };
enum { SYNCHRONOUS = 1, ASYNCHRONOUS, LEDGER, HISTORY };

struct lane {
    uint8_t disk, kind;
    uint16_t sectors;
    uint32_t slots;
    uint64_t first;
    uint32_t stride;
    int32_t leader;
    uint64_t issued, committed;
    uint64_t zero[3];
};

struct page {
    char magic[MAGIC_SIZE];
    uint64_t run;
    uint32_t disks, lanes;
    uint64_t raw, rawLength, seconds, errors;
    uint64_t zero[6];
    struct lane lane[(PAGE - 128) / sizeof(struct lane)];
};
_Static_assert(sizeof(struct page) == PAGE, "one page");
_Static_assert(sizeof(struct lane) == 64, "as described");

struct sector {
    char magic[8];
    uint64_t run;
    uint32_t lane, index;
    uint64_t record, sum, fill[59];
};
_Static_assert(sizeof(struct sector) == SECTOR, "one sector");

/* The next of a series of numbers (splitmix64). */
static inline uint64_t next_number(uint64_t *state) {
    uint64_t x = *state += 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

static inline void make_sector(struct sector *s, uint64_t run, uint32_t lane, uint64_t record,
                               uint32_t index) {
    memcpy(s->magic, SECTOR_MAGIC, sizeof s->magic);
    s->run = run;
    s->lane = lane;
    s->index = index;
    s->record = record;
    uint64_t state = run ^ (uint64_t)lane << 40 ^ record << 4 ^ index;
    s->sum = next_number(&state);
    for (int i = 0; i < 59; i++) s->fill[i] = next_number(&state);
}

/* What a sector is: a record of this lane and place, with its number; or zero; or neither. */
enum finding { RECORD, EMPTY, OTHER_RUN, DAMAGED };
static inline enum finding read_sector(const struct sector *s, uint64_t run, uint32_t lane,
                                       uint32_t index, uint64_t *record) {
    static const struct sector zero;
    struct sector right;
    *record = 0;
    if (!memcmp(s, &zero, sizeof zero)) return EMPTY;
    make_sector(&right, s->run, lane, s->record, index);
    if (memcmp(s, &right, sizeof right)) return DAMAGED;
    *record = s->record;
    return s->run == run ? RECORD : OTHER_RUN;
}

static inline uint64_t slot_of(const struct lane *lane, uint64_t record) {
    return record * lane->stride % lane->slots;
}

static inline uint64_t offset_of(const struct lane *lane, uint64_t slot) {
    return lane->first + slot * lane->sectors * SECTOR;
}
#endif
