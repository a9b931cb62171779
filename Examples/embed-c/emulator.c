// A little emulator that takes checkpoints of its machine with libvarve.
//
//   cc emulator.c -o emulator $(pkg-config --cflags --libs varve)
//   ./emulator DIRECTORY        the repository, which does not exist yet
//
// The machine has 16 MiB of memory and a few registers. Each store marks its page in a bitmap, as
// KVM_GET_DIRTY_LOG has it. The emulator takes 1,000 checkpoints while the machine runs, reverts it
// to some of them in place, begins a branch from one, and fills the memory of another machine. Each
// time it compares the whole memory with what it was when the checkpoint was taken.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <varve.h>

enum { PAGE = 4096, PAGE_COUNT = 4096, WORD_COUNT = PAGE_COUNT / 64, CHECKPOINT_COUNT = 1000 };

// ---- The machine ----

struct registers {
    uint64_t counter;
    uint64_t accumulator;
};

struct machine {
    uint8_t *memory;
    struct registers registers;
    uint64_t dirty[WORD_COUNT];
};

// One instruction: stores somewhere, and marks the page.
static void step(struct machine *machine) {
    struct registers *registers = &machine->registers;
    registers->counter++;
    registers->accumulator = registers->accumulator * 6364136223846793005u + registers->counter;
    size_t page = (registers->accumulator >> 40) % PAGE_COUNT;
    size_t word = (registers->accumulator >> 20) % (PAGE / 8);
    memcpy(machine->memory + page * PAGE + word * 8, &registers->accumulator, 8);
    machine->dirty[page / 64] |= (uint64_t)1 << page % 64;
}

// A number that depends on every byte of the memory, and on the registers.
static uint64_t fingerprint(const struct machine *machine) {
    uint64_t sum = machine->registers.counter ^ machine->registers.accumulator << 1;
    for (size_t offset = 0; offset < (size_t)PAGE_COUNT * PAGE; offset += 8) {
        uint64_t word;
        memcpy(&word, machine->memory + offset, 8);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    return sum;
}

// ---- Its checkpoints ----

// Ends the program with libvarve's sentence if a call failed.
static void must(int code, const char *what) {
    if (code == VARVE_OK)
        return;
    fprintf(stderr, "emulator: %s: %s\n", what, varve_error_message());
    exit(1);
}

// The machine's memory, as it is passed to a session: one region from guest address 0 on.
static struct varve_region region(const struct machine *machine) {
    struct varve_region region;
    memset(&region, 0, sizeof region);
    region.size = sizeof region;
    region.address = machine->memory;
    region.byte_count = (uint64_t)PAGE_COUNT * PAGE;
    return region;
}

static varve_session *begin_session(varve_repository *repository, const char *lineage,
                                    struct machine *machine, const varve_id *parent) {
    struct varve_session_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.parent = parent;
    struct varve_region memory = region(machine);
    varve_session *session;
    must(varve_session_open_regions(repository, lineage, &memory, 1, &options, &session),
         "beginning a session");
    return session;
}

// The pages that were stored to since the last capture or revert. The machine does not run.
struct log {
    struct varve_bitmap bitmap;
    struct varve_dirty dirty;
};

static const struct varve_dirty *dirty(struct machine *machine, struct log *log) {
    memset(log, 0, sizeof *log);
    log->bitmap.words = machine->dirty;
    log->bitmap.word_count = WORD_COUNT;
    log->dirty.size = sizeof log->dirty;
    log->dirty.bitmaps = &log->bitmap;
    log->dirty.bitmap_count = 1;
    return &log->dirty;
}

// Begins a checkpoint. When this returns the machine may run again; the disk is busy still.
static varve_capture *begin_capture(varve_session *session, struct machine *machine) {
    struct log log;
    struct varve_capture_input input;
    memset(&input, 0, sizeof input);
    input.size = sizeof input;
    input.dirty = dirty(machine, &log);
    input.state = &machine->registers;
    input.state_byte_count = sizeof machine->registers;
    varve_capture *capture;
    must(varve_session_begin(session, &input, NULL, &capture), "beginning a checkpoint");
    // What the log said is with the session now, also if the checkpoint should fail.
    memset(machine->dirty, 0, sizeof machine->dirty);
    return capture;
}

static varve_id end_capture(varve_capture *capture) {
    struct varve_capture_result result;
    memset(&result, 0, sizeof result);
    result.size = sizeof result;
    must(varve_capture_wait(capture, -1, &result), "waiting for a checkpoint");
    must(varve_capture_free(capture), "freeing a capture");
    return result.id;
}

static void revert(varve_session *session, struct machine *machine, const varve_id *id) {
    struct log log;
    void *state;
    size_t byte_count;
    must(varve_session_revert(session, id, dirty(machine, &log), NULL, NULL, &state, &byte_count),
         "reverting");
    memcpy(&machine->registers, state, sizeof machine->registers);
    varve_free(state);
    memset(machine->dirty, 0, sizeof machine->dirty);
}

static void compare(const struct machine *machine, uint64_t expected, const char *what) {
    if (fingerprint(machine) == expected)
        return;
    fprintf(stderr, "emulator: the memory differs after %s\n", what);
    exit(1);
}

int main(int argument_count, char **arguments) {
    if (argument_count != 2) {
        fprintf(stderr, "usage: emulator DIRECTORY\n");
        return 2;
    }
    static varve_id ids[CHECKPOINT_COUNT];
    static uint64_t fingerprints[CHECKPOINT_COUNT];
    static struct machine machine;
    machine.memory = calloc(PAGE_COUNT, PAGE);
    varve_repository *repository;
    must(varve_repository_create(arguments[1], &repository), "creating the repository");
    varve_session *session = begin_session(repository, "machine", &machine, NULL);

    varve_capture *capture = NULL;
    for (int number = 0; number < CHECKPOINT_COUNT; number++) {
        for (int count = 0; count < 100; count++)
            step(&machine);
        varve_capture *next = begin_capture(session, &machine);
        fingerprints[number] = fingerprint(&machine);
        // While this one is written, the machine has run for the next.
        if (capture)
            ids[number - 1] = end_capture(capture);
        capture = next;
    }
    ids[CHECKPOINT_COUNT - 1] = end_capture(capture);
    printf("checkpoints: %d\n", CHECKPOINT_COUNT);

    int revert_count = 0;
    for (int number = CHECKPOINT_COUNT - 1; number >= 0; number -= 111, revert_count++) {
        revert(session, &machine, &ids[number]);
        compare(&machine, fingerprints[number], "a revert");
        for (int count = 0; count < 1000; count++)
            step(&machine);
    }
    printf("reverts: %d, the memory was equal each time\n", revert_count);
    must(varve_session_close(session), "closing the session");

    // A branch: the machine goes another way from checkpoint 500 on.
    session = begin_session(repository, "branch", &machine, &ids[500]);
    revert(session, &machine, &ids[500]);
    machine.registers.accumulator ^= 1;
    for (int count = 0; count < 100; count++)
        step(&machine);
    varve_id branched = end_capture(begin_capture(session, &machine));
    uint64_t expected = fingerprint(&machine);
    varve_range *ranges;
    size_t range_count;
    must(varve_checkpoint_diff(repository, &ids[500], &branched, NULL, &ranges, &range_count),
         "comparing two checkpoints");
    uint64_t page_count = 0;
    for (size_t index = 0; index < range_count; index++)
        page_count += ranges[index].count;
    varve_free(ranges);
    printf("branch: differs from its parent in 1 to 100 pages: %s\n",
           page_count >= 1 && page_count <= 100 ? "true" : "false");
    must(varve_session_close(session), "closing the session");

    // Another machine.
    static struct machine other;
    other.memory = calloc(PAGE_COUNT, PAGE);
    struct varve_restore_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.starts_zeroed = 1;
    struct varve_region memory = region(&other);
    void *state;
    size_t byte_count;
    must(varve_restore_regions(repository, &branched, &memory, 1, &options, NULL, NULL, &state,
                               &byte_count),
         "restoring");
    memcpy(&other.registers, state, sizeof other.registers);
    varve_free(state);
    compare(&other, expected, "a restore");
    printf("restore: the memory is equal\n");

    struct varve_verify_report report;
    memset(&report, 0, sizeof report);
    report.size = sizeof report;
    must(varve_repository_verify(repository, NULL, NULL, &report), "verifying");
    printf("verified: %llu checkpoints, %llu damaged places\n",
           (unsigned long long)report.checkpoint_count, (unsigned long long)report.finding_count);
    must(varve_repository_close(repository), "closing the repository");
    free(machine.memory);
    free(other.memory);
    return 0;
}
