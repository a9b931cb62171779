#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cases.h"

// The second region begins at a frame that is no multiple of 64.
static const uint64_t first_frames[REGION_COUNT] = {0, 259, 4096};
static const size_t page_counts[REGION_COUNT] = {64, 100, 32};

void machine_open(struct machine *machine) {
    memset(machine, 0, sizeof *machine);
    machine->random = 1;
    // Memory of malloc: it need not be aligned.
    machine->whole = calloc(164, PAGE);
    machine->memory[0] = machine->whole;
    machine->memory[1] = machine->whole + 64 * PAGE;
    int descriptor = memfd_create("machine", MFD_CLOEXEC);
    CHECK(descriptor >= 0 && ftruncate(descriptor, 34 * PAGE) == 0);
    machine->memory[2] = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor,
                              2 * PAGE);
    for (size_t index = 0; index < REGION_COUNT; index++) {
        machine->page_counts[index] = page_counts[index];
        machine->regions[index].size = sizeof(struct varve_region);
        machine->regions[index].guest_address = first_frames[index] * PAGE;
        machine->regions[index].byte_count = page_counts[index] * PAGE;
        machine->regions[index].address = machine->memory[index];
        machine->bitmaps[index].words = machine->words[index];
        machine->bitmaps[index].word_count = 2;
    }
    machine->regions[2].address = NULL;
    machine->regions[2].descriptor = descriptor;
    machine->regions[2].offset = 2 * PAGE;
    machine->dirty.size = sizeof machine->dirty;
    machine->dirty.bitmaps = machine->bitmaps;
    machine->dirty.bitmap_count = REGION_COUNT;
    for (size_t page = 0; page < PAGE_COUNT; page += 3)
        machine_write(machine, page);
}

void machine_close(struct machine *machine) {
    munmap(machine->memory[2], 32 * PAGE);
    close(machine->regions[2].descriptor);
    free(machine->whole);
}

static size_t region_of(const struct machine *machine, size_t *page) {
    size_t index = 0;
    while (*page >= machine->page_counts[index])
        *page -= machine->page_counts[index++];
    return index;
}

uint8_t *machine_page(const struct machine *machine, size_t page) {
    size_t index = region_of(machine, &page);
    return machine->memory[index] + page * PAGE;
}

uint64_t machine_frame(const struct machine *machine, size_t page) {
    size_t index = region_of(machine, &page);
    return first_frames[index] + page;
}

size_t machine_number(const struct machine *machine, uint64_t frame) {
    size_t number = 0;
    for (size_t index = 0; index < REGION_COUNT; index++) {
        uint64_t first = first_frames[index];
        if (frame >= first && frame < first + machine->page_counts[index])
            return number + (size_t)(frame - first);
        number += machine->page_counts[index];
    }
    return PAGE_COUNT;
}

static uint32_t next_random(struct machine *machine) {
    machine->random = machine->random * 1664525u + 1013904223u;
    return machine->random >> 8;
}

void machine_write(struct machine *machine, size_t page) {
    uint8_t *bytes = machine_page(machine, page);
    for (size_t offset = 0; offset < PAGE; offset += 4) {
        uint32_t word = next_random(machine);
        memcpy(bytes + offset, &word, 4);
    }
    size_t index = region_of(machine, &page);
    machine->words[index][page / 64] |= (uint64_t)1 << page % 64;
}

void machine_run(struct machine *machine, size_t count) {
    while (count-- > 0)
        machine_write(machine, next_random(machine) % PAGE_COUNT);
    machine->counter++;
}

void machine_clean(struct machine *machine) {
    memset(machine->words, 0, sizeof machine->words);
}

uint8_t *machine_copy(const struct machine *machine) {
    uint8_t *copy = malloc(PAGE_COUNT * PAGE);
    for (size_t page = 0; page < PAGE_COUNT; page++)
        memcpy(copy + page * PAGE, machine_page(machine, page), PAGE);
    return copy;
}

int machine_equals(const struct machine *machine, const uint8_t *copy) {
    for (size_t page = 0; page < PAGE_COUNT; page++)
        if (memcmp(copy + page * PAGE, machine_page(machine, page), PAGE) != 0)
            return 0;
    return 1;
}

struct varve_capture_input machine_input(struct machine *machine) {
    SIZED(varve_capture_input, input);
    input.dirty = &machine->dirty;
    input.state = &machine->counter;
    input.state_byte_count = sizeof machine->counter;
    return input;
}

int checkpoint_equals(varve_repository *repository, const varve_id *id,
                      const struct machine *machine, const uint8_t *copy) {
    varve_reader *reader = NULL;
    OK(varve_reader_open(repository, id, NULL, &reader));
    int is_equal = reader != NULL;
    for (size_t page = 0; page < PAGE_COUNT && is_equal; page++) {
        uint8_t bytes[PAGE];
        memset(bytes, 0xaa, PAGE);
        OK(varve_reader_read(reader, machine_frame(machine, page) * PAGE, bytes, PAGE));
        is_equal = memcmp(bytes, copy + page * PAGE, PAGE) == 0;
    }
    OK(varve_reader_close(reader));
    return is_equal;
}

// ---- As callbacks ----

static int enter(struct guest *guest, enum callback callback) {
    if (guest->visit)
        guest->visit(guest, callback);
    if (guest->failing != callback || guest->failures_left == 0)
        return 0;
    guest->failures_left--;
    return guest->result;
}

static int layout(void *context, const varve_range **ranges, size_t *count) {
    struct guest *guest = context;
    for (size_t index = 0; index < REGION_COUNT; index++) {
        guest->ranges[index].first = first_frames[index];
        guest->ranges[index].count = page_counts[index];
    }
    *ranges = guest->ranges;
    *count = REGION_COUNT;
    return enter(guest, LAYOUT);
}

static int pause_guest(void *context) {
    struct guest *guest = context;
    int result = enter(guest, PAUSE);
    if (result == 0) {
        CHECK(!guest->is_paused);
        guest->is_paused = 1;
        guest->pause_count++;
    }
    return result;
}

static int resume_guest(void *context) {
    struct guest *guest = context;
    int result = enter(guest, RESUME);
    if (result == 0) {
        CHECK(guest->is_paused);
        guest->is_paused = 0;
        guest->resume_count++;
    }
    return result;
}

static int copy_pages(void *context, const varve_range *ranges, size_t count, void *pages) {
    struct guest *guest = context;
    uint8_t *to = pages;
    for (size_t index = 0; index < count; index++)
        for (uint64_t frame = 0; frame < ranges[index].count; frame++, to += PAGE) {
            size_t page = machine_number(&guest->machine, ranges[index].first + frame);
            CHECK(page < PAGE_COUNT);
            memcpy(to, machine_page(&guest->machine, page), PAGE);
        }
    return enter(guest, COPY);
}

static int start_dirty(void *context) {
    struct guest *guest = context;
    machine_clean(&guest->machine);
    return enter(guest, START);
}

static int take_dirty(void *context, uint64_t *words, size_t word_count, int is_final) {
    struct guest *guest = context;
    CHECK(is_final == guest->is_paused);
    for (size_t page = 0; page < PAGE_COUNT; page++) {
        size_t number = page;
        size_t index = region_of(&guest->machine, &number);
        if (!(guest->machine.words[index][number / 64] >> number % 64 & 1))
            continue;
        uint64_t frame = machine_frame(&guest->machine, page);
        CHECK(frame / 64 < word_count);
        words[frame / 64] |= (uint64_t)1 << frame % 64;
    }
    machine_clean(&guest->machine);
    int result = enter(guest, TAKE);
    return result ? result : guest->is_unknown ? VARVE_DIRTY_UNKNOWN : 0;
}

static int64_t count_dirty(void *context) {
    struct guest *guest = context;
    return enter(guest, COUNT) ? -7 : 10;
}

static int stop_dirty(void *context) {
    struct guest *guest = context;
    guest->stop_count++;
    return 0;
}

static int save_state(void *context, const void **state, size_t *byte_count) {
    struct guest *guest = context;
    *state = &guest->machine.counter;
    *byte_count = sizeof guest->machine.counter;
    return enter(guest, SAVE);
}

static int write_pages(void *context, const varve_range *ranges, size_t count,
                       const void *pages) {
    struct guest *guest = context;
    const uint8_t *from = pages;
    for (size_t index = 0; index < count; index++)
        for (uint64_t frame = 0; frame < ranges[index].count; frame++, from += PAGE) {
            size_t page = machine_number(&guest->machine, ranges[index].first + frame);
            CHECK(page < PAGE_COUNT);
            memcpy(machine_page(&guest->machine, page), from, PAGE);
        }
    return enter(guest, WRITE);
}

static int restore_state(void *context, const void *state, size_t byte_count) {
    struct guest *guest = context;
    CHECK(byte_count == sizeof guest->machine.counter);
    memcpy(&guest->machine.counter, state, sizeof guest->machine.counter);
    return enter(guest, RESTORE);
}

void guest_open(struct guest *guest) {
    memset(guest, 0, sizeof *guest);
    machine_open(&guest->machine);
    guest->failing = CALLBACK_COUNT;
    guest->result = 5;
}

void guest_close(struct guest *guest) {
    machine_close(&guest->machine);
}

struct varve_callbacks guest_callbacks(void) {
    SIZED(varve_callbacks, callbacks);
    callbacks.layout = layout;
    callbacks.pause = pause_guest;
    callbacks.resume = resume_guest;
    callbacks.copy_pages = copy_pages;
    callbacks.start_dirty = start_dirty;
    callbacks.take_dirty = take_dirty;
    callbacks.count_dirty = count_dirty;
    callbacks.stop_dirty = stop_dirty;
    callbacks.save_state = save_state;
    callbacks.write_pages = write_pages;
    callbacks.restore_state = restore_state;
    return callbacks;
}

void machine_fill(varve_repository *repository, const char *lineage, varve_id *ids, int count) {
    struct machine machine;
    machine_open(&machine);
    varve_session *session = NULL;
    OK(varve_session_open_regions(repository, lineage, machine.regions, REGION_COUNT, NULL,
                                  &session));
    for (int index = 0; index < count; index++) {
        struct varve_capture_input input = machine_input(&machine);
        SIZED(varve_capture_result, result);
        OK(varve_session_capture(session, &input, NULL, &result));
        ids[index] = result.id;
        machine_clean(&machine);
        machine_run(&machine, 50);
    }
    OK(varve_session_close(session));
    machine_close(&machine);
}
