#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <varve_xen.h>

#include "cases.h"

// Every function with handles of the sort that `handle` is: each refuses it.
static void refuse_all(void *handle, const struct machine *machine) {
    varve_id id;
    memset(&id, 0, sizeof id);
    varve_repository *repository = handle;
    varve_session *session = NULL;
    struct varve_callbacks callbacks = guest_callbacks();
    SIZED(varve_statistics, statistics);
    SIZED(varve_verify_report, report);
    SIZED(varve_checkpoint, checkpoint);
    SIZED(varve_volume, volume);
    SIZED(varve_prune_info, info);
    SIZED(varve_xen_domain, domain);
    varve_plan *plan = NULL;
    varve_reader *reader = NULL;
    varve_capture *capture = NULL;
    varve_id *ids = NULL;
    varve_range *ranges = NULL;
    void *state = NULL;
    size_t count = 0;
    int descriptor = -1;
    EXPECT(VARVE_INVALID_HANDLE, varve_repository_close(repository));
    EXPECT(VARVE_INVALID_HANDLE, varve_repository_statistics(repository, &statistics));
    EXPECT(VARVE_INVALID_HANDLE, varve_repository_verify(repository, NULL, NULL, &report));
    EXPECT(VARVE_INVALID_HANDLE, varve_repository_forget(repository, &id, 1));
    EXPECT(VARVE_INVALID_HANDLE, varve_prune_plan(repository, NULL, NULL, &plan));
    EXPECT(VARVE_INVALID_HANDLE, varve_checkpoint_list(repository, NULL, &ids, &count));
    EXPECT(VARVE_INVALID_HANDLE, varve_checkpoint_find(repository, "machine", &id));
    EXPECT(VARVE_INVALID_HANDLE, varve_checkpoint_show(repository, &id, &checkpoint));
    EXPECT(VARVE_INVALID_HANDLE, varve_checkpoint_volume(repository, &id, 0, &volume));
    EXPECT(VARVE_INVALID_HANDLE, varve_checkpoint_state(repository, &id, &state, &count));
    EXPECT(VARVE_INVALID_HANDLE,
           varve_checkpoint_diff(repository, &id, &id, NULL, &ranges, &count));
    EXPECT(VARVE_INVALID_HANDLE,
           varve_checkpoint_export(repository, &id, NULL, VARVE_FORMAT_RAW, 1, NULL));
    EXPECT(VARVE_INVALID_HANDLE, varve_checkpoint_set_label(repository, &id, "label"));
    EXPECT(VARVE_INVALID_HANDLE, varve_reader_open(repository, &id, NULL, &reader));
    EXPECT(VARVE_INVALID_HANDLE,
           varve_session_open_regions(repository, "machine", machine->regions, REGION_COUNT, NULL,
                                      &session));
    EXPECT(VARVE_INVALID_HANDLE,
           varve_session_open_callbacks(repository, "machine", &callbacks, NULL, NULL, &session));
    EXPECT(VARVE_INVALID_HANDLE,
           varve_restore_regions(repository, &id, machine->regions, REGION_COUNT, NULL, NULL,
                                 NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_HANDLE,
           varve_restore_callbacks(repository, &id, &callbacks, NULL, NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_HANDLE,
           varve_session_open_xen(repository, "web", 1, NULL, NULL, &session));
    EXPECT(VARVE_INVALID_HANDLE, varve_xen_restore(repository, &id, NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_HANDLE, varve_xen_show(handle, &domain));

    EXPECT(VARVE_INVALID_HANDLE, varve_session_capture(handle, NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_HANDLE, varve_session_begin(handle, NULL, NULL, &capture));
    EXPECT(VARVE_INVALID_HANDLE,
           varve_session_revert(handle, &id, NULL, NULL, NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_HANDLE, varve_session_parent(handle, &id));
    EXPECT(VARVE_INVALID_HANDLE, varve_session_disk_failure(handle));
    EXPECT(VARVE_INVALID_HANDLE, varve_session_cancel(handle));
    EXPECT(VARVE_INVALID_HANDLE, varve_session_close(handle));
    EXPECT(VARVE_INVALID_HANDLE, varve_capture_descriptor(handle, &descriptor));
    EXPECT(VARVE_INVALID_HANDLE, varve_capture_wait(handle, 0, NULL));
    EXPECT(VARVE_INVALID_HANDLE, varve_capture_cancel(handle));
    EXPECT(VARVE_INVALID_HANDLE, varve_capture_free(handle));
    EXPECT(VARVE_INVALID_HANDLE, varve_reader_read(handle, 0, &id, 1));
    EXPECT(VARVE_INVALID_HANDLE, varve_reader_extents(handle, &ranges, &count));
    EXPECT(VARVE_INVALID_HANDLE, varve_reader_close(handle));
    EXPECT(VARVE_INVALID_HANDLE, varve_plan_show(handle, &info));
    EXPECT(VARVE_INVALID_HANDLE, varve_plan_execute(handle, NULL, NULL));
    EXPECT(VARVE_INVALID_HANDLE, varve_plan_free(handle));
    EXPECT(VARVE_INVALID_HANDLE, varve_cancellation_cancel(handle));
    EXPECT(VARVE_INVALID_HANDLE, varve_cancellation_free(handle));
}

// NULL, freed handles of each kind, numbers that were never given, and pointers to anything.
void wrong_handles(const char *directory) {
    struct machine machine;
    machine_open(&machine);
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_session *session = NULL;
    OK(varve_session_open_regions(repository, "machine", machine.regions, REGION_COUNT, NULL,
                                  &session));
    varve_capture *capture = NULL;
    OK(varve_session_begin(session, NULL, NULL, &capture));
    SIZED(varve_capture_result, result);
    OK(varve_capture_wait(capture, -1, &result));
    varve_reader *reader = NULL;
    OK(varve_reader_open(repository, &result.id, NULL, &reader));
    varve_plan *plan = NULL;
    OK(varve_prune_plan(repository, NULL, NULL, &plan));
    varve_cancellation *cancellation = NULL;
    OK(varve_cancellation_create(&cancellation));

    // A handle of another kind.
    EXPECT(VARVE_INVALID_HANDLE, varve_session_close((varve_session *)(void *)repository));
    EXPECT(VARVE_INVALID_HANDLE, varve_repository_close((varve_repository *)(void *)session));
    EXPECT(VARVE_INVALID_HANDLE, varve_reader_close((varve_reader *)(void *)capture));

    OK(varve_cancellation_free(cancellation));
    OK(varve_plan_free(plan));
    OK(varve_capture_free(capture));
    EXPECT(VARVE_BUSY, varve_repository_close(repository));
    OK(varve_session_close(session));
    OK(varve_repository_close(repository));
    // A reader keeps what it reads.
    uint8_t page[PAGE];
    OK(varve_reader_read(reader, 0, page, PAGE));
    CHECK(memcmp(page, machine.memory[0], PAGE) == 0);
    OK(varve_reader_close(reader));

    int anything[64] = {0};
    void *handles[] = {NULL,   repository,   session,  capture,           reader,
                       plan,   cancellation, anything, (void *)(uintptr_t)-1, (void *)directory,
                       (void *)(uintptr_t)9999999};
    for (size_t index = 0; index < sizeof handles / sizeof *handles; index++)
        refuse_all(handles[index], &machine);
    machine_close(&machine);
}

struct fixture {
    struct machine machine;
    varve_repository *repository;
    varve_session *session;
    varve_id id;
};

static void open_fixture(struct fixture *fixture, const char *directory) {
    machine_open(&fixture->machine);
    OK(varve_repository_create(directory, &fixture->repository));
    OK(varve_session_open_regions(fixture->repository, "machine", fixture->machine.regions,
                                  REGION_COUNT, NULL, &fixture->session));
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(fixture->session, NULL, NULL, &result));
    fixture->id = result.id;
    machine_clean(&fixture->machine);
}

static void close_fixture(struct fixture *fixture) {
    // It still works, and has lost nothing.
    machine_run(&fixture->machine, 10);
    struct varve_capture_input input = machine_input(&fixture->machine);
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(fixture->session, &input, NULL, &result));
    uint8_t *copy = machine_copy(&fixture->machine);
    CHECK(checkpoint_equals(fixture->repository, &result.id, &fixture->machine, copy));
    free(copy);
    OK(varve_session_close(fixture->session));
    OK(varve_repository_close(fixture->repository));
    machine_close(&fixture->machine);
}

void wrong_structures(const char *directory) {
    struct fixture fixture;
    open_fixture(&fixture, directory);
    varve_repository *repository = fixture.repository;
    varve_repository *none = NULL;
    SIZED(varve_open_options, open);
    WRONG_SIZES(open, varve_repository_open(directory, &open, &none));
    SIZED(varve_statistics, statistics);
    WRONG_SIZES(statistics, varve_repository_statistics(repository, &statistics));
    SIZED(varve_verify_options, verify);
    SIZED(varve_verify_report, report);
    SIZED(varve_call, call);
    WRONG_SIZES(verify, varve_repository_verify(repository, &verify, NULL, &report));
    WRONG_SIZES(report, varve_repository_verify(repository, NULL, NULL, &report));
    WRONG_SIZES(call, varve_repository_verify(repository, NULL, &call, &report));
    SIZED(varve_prune_options, prune);
    varve_plan *plan = NULL;
    WRONG_SIZES(prune, varve_prune_plan(repository, &prune, NULL, &plan));
    SIZED(varve_selection, selection);
    varve_id *ids = NULL;
    size_t count = 0;
    WRONG_SIZES(selection, varve_checkpoint_list(repository, &selection, &ids, &count));
    SIZED(varve_checkpoint, checkpoint);
    WRONG_SIZES(checkpoint, varve_checkpoint_show(repository, &fixture.id, &checkpoint));
    SIZED(varve_volume, volume);
    WRONG_SIZES(volume, varve_checkpoint_volume(repository, &fixture.id, 0, &volume));
    struct varve_callbacks callbacks = guest_callbacks();
    SIZED(varve_session_options, options);
    varve_session *session = NULL;
    WRONG_SIZES(callbacks, varve_session_open_callbacks(repository, "other", &callbacks, NULL,
                                                        NULL, &session));
    WRONG_SIZES(options, varve_session_open_callbacks(repository, "other", &callbacks, NULL,
                                                      &options, &session));
    SIZED(varve_capture_input, input);
    WRONG_SIZES(input, varve_session_capture(fixture.session, &input, NULL, NULL));
    SIZED(varve_capture_result, result);
    WRONG_SIZES(result, varve_session_capture(fixture.session, NULL, NULL, &result));
    SIZED(varve_dirty, dirty);
    input.dirty = &dirty;
    WRONG_SIZES(dirty, varve_session_capture(fixture.session, &input, NULL, NULL));
    SIZED(varve_revert_result, reverted);
    WRONG_SIZES(reverted, varve_session_revert(fixture.session, &fixture.id, NULL, NULL,
                                               &reverted, NULL, NULL));
    SIZED(varve_restore_options, restore);
    WRONG_SIZES(restore, varve_restore_regions(repository, &fixture.id, fixture.machine.regions,
                                               REGION_COUNT, &restore, NULL, NULL, NULL, NULL));
    // A newer program: what is new must be zero.
    struct {
        struct varve_open_options options;
        uint64_t newer;
    } newer;
    memset(&newer, 0, sizeof newer);
    newer.options.size = sizeof newer;
    OK(varve_repository_open(directory, &newer.options, &none));
    OK(varve_repository_close(none));
    newer.newer = 1;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_open(directory, &newer.options, &none));
    CHECK(none == NULL);
    close_fixture(&fixture);
}

// Opens a session that must be refused.
static void refuse(struct fixture *fixture, const struct varve_region *regions, size_t count) {
    varve_session *session = NULL;
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_open_regions(fixture->repository, "other", regions, count, NULL,
                                      &session));
    CHECK(session == NULL);
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_restore_regions(fixture->repository, &fixture->id, regions, count, NULL, NULL,
                                 NULL, NULL, NULL));
}

void wrong_regions(const char *directory) {
    struct fixture fixture;
    open_fixture(&fixture, directory);
    struct varve_region regions[REGION_COUNT];
    size_t size = sizeof regions;
    const struct varve_region *right = fixture.machine.regions;
    refuse(&fixture, NULL, 3);
    refuse(&fixture, right, 0);
#define WITH(change)                                                                              \
    do {                                                                                          \
        memcpy(regions, right, size);                                                             \
        change;                                                                                   \
        refuse(&fixture, regions, REGION_COUNT);                                                  \
    } while (0)
    WITH(regions[0].size = 0);
    WITH(regions[1].size = 8);
    WITH(regions[0].byte_count = 0);
    WITH(regions[0].byte_count = 5000);
    WITH(regions[0].byte_count = UINT64_MAX - 4095);
    WITH(regions[0].guest_address = 1);
    WITH(regions[0].guest_address = UINT64_MAX - 4095);
    WITH(regions[0].guest_address = (uint64_t)1 << 44);
    // A hole that a page map cannot have.
    WITH(regions[0].guest_address = ((uint64_t)1 << 44) - 64 * PAGE);
    WITH(regions[1].guest_address = 63 * PAGE);
    WITH(regions[1].guest_address = regions[0].guest_address);
    WITH(regions[1].address = (uint8_t *)regions[0].address + PAGE);
    WITH(regions[2].offset = 1);
    WITH(regions[2].offset = 3 * PAGE);
    WITH(regions[2].offset = UINT64_MAX - 4095);
    WITH(regions[0].address = NULL; regions[0].descriptor = regions[2].descriptor;
         regions[0].byte_count = 3 * PAGE);
#undef WITH
    memcpy(regions, right, size);
    regions[2].descriptor = -1;
    varve_session *session = NULL;
    EXPECT(VARVE_CALL_FAILED, varve_session_open_regions(fixture.repository, "other", regions,
                                                         REGION_COUNT, NULL, &session));
    CHECK(varve_error_number() != 0);
    // Memory that the other session has, and a checkpoint of another shape.
    EXPECT(VARVE_BUSY, varve_session_open_regions(fixture.repository, "other", right, 2, NULL,
                                                  &session));
    EXPECT(VARVE_SIZE_MISMATCH, varve_restore_regions(fixture.repository, &fixture.id, right, 2,
                                                      NULL, NULL, NULL, NULL, NULL));
    close_fixture(&fixture);
}

void wrong_dirty(const char *directory) {
    struct fixture fixture;
    open_fixture(&fixture, directory);
    struct machine *machine = &fixture.machine;
    struct varve_capture_input input = machine_input(machine);
    varve_capture *capture = NULL;
    uint64_t frames[] = {3, 64};
    // In the first region, whose bitmap is right: nothing of a refused input is taken.
    machine->words[0][0] = 1;
#define REFUSED()                                                                                 \
    do {                                                                                          \
        EXPECT(VARVE_INVALID_ARGUMENT, varve_session_capture(fixture.session, &input, NULL,       \
                                                             NULL));                              \
        EXPECT(VARVE_INVALID_ARGUMENT, varve_session_begin(fixture.session, &input, NULL,         \
                                                           &capture));                            \
        EXPECT(VARVE_INVALID_ARGUMENT, varve_session_revert(fixture.session, &fixture.id,         \
                                                            input.dirty, NULL, NULL, NULL,        \
                                                            NULL));                               \
    } while (0)
    machine->bitmaps[1].word_count = 1; // too short: 100 pages
    REFUSED();
    machine->bitmaps[1].word_count = 2;
    machine->bitmaps[2].words = NULL;
    REFUSED();
    machine->bitmaps[2].words = machine->words[2];
    machine->dirty.bitmap_count = 2;
    REFUSED();
    machine->dirty.bitmap_count = 4;
    REFUSED();
    machine->dirty.bitmap_count = (size_t)-1;
    REFUSED();
    machine->dirty.bitmap_count = REGION_COUNT;
    machine->dirty.bitmaps = NULL;
    REFUSED();
    machine->dirty.bitmaps = machine->bitmaps;
    machine->dirty.frames = frames; // the second is in a hole
    machine->dirty.frame_count = 2;
    REFUSED();
    machine->dirty.frame_count = (size_t)-1;
    REFUSED();
    machine->dirty.frame_count = 2;
    machine->dirty.frames = NULL;
    REFUSED();
    machine->dirty.frame_count = 0;
    machine_clean(machine);
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(fixture.session, &input, NULL, &result));
    CHECK(result.dirty_page_count == 0);
    input.state = NULL;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_session_capture(fixture.session, &input, NULL, NULL));
#undef REFUSED
    close_fixture(&fixture);
}

static void refuse_options(struct fixture *fixture, const struct varve_session_options *options) {
    struct machine machine;
    machine_open(&machine);
    varve_session *session = NULL;
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_open_regions(fixture->repository, "other", machine.regions, REGION_COUNT,
                                      options, &session));
    CHECK(session == NULL);
    machine_close(&machine);
}

static void wrong_options(struct fixture *fixture) {
    SIZED(varve_session_options, options);
#define WITH(field, value)                                                                        \
    do {                                                                                          \
        options.field = value;                                                                    \
        refuse_options(fixture, &options);                                                        \
        options.field = 0;                                                                        \
    } while (0)
    WITH(pool_byte_count, UINT64_MAX);
    WITH(overlapping_captures_max, -1);
    WITH(overlapping_captures_max, 100000);
    WITH(worker_count, -1);
    WITH(worker_count, 100000);
    WITH(compression_level, 100);
    WITH(audit_page_count, -1);
    WITH(precopy_rounds_max, 100000000);
    WITH(precopy_rounds_max, -2);
#undef WITH
    SIZED(varve_open_options, open);
    varve_repository *none = NULL;
    open.access = 2;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_open("/nowhere", &open, &none));
    open.access = VARVE_WRITING;
    open.wait_nanoseconds = -2;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_open("/nowhere", &open, &none));
    SIZED(varve_verify_options, verify);
    SIZED(varve_verify_report, report);
    verify.depth = 3;
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_repository_verify(fixture->repository, &verify, NULL, &report));
    verify.depth = VARVE_DEPTH_SAMPLE;
    verify.share = 2;
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_repository_verify(fixture->repository, &verify, NULL, &report));
    SIZED(varve_prune_options, prune);
    prune.unused_percent_max = -1;
    varve_plan *plan = NULL;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_prune_plan(fixture->repository, &prune, NULL, &plan));
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_checkpoint_export(fixture->repository, &fixture->id, NULL, 9, 1, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_open("", NULL, &none));
}

// Pointers that are NULL, and names and paths that are wrong.
void wrong_values(const char *directory) {
    struct fixture fixture;
    open_fixture(&fixture, directory);
    varve_repository *repository = fixture.repository, *none = NULL;
    varve_id id, *ids = NULL;
    size_t count = 0;
    void *state = NULL;
    wrong_options(&fixture);
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_create(NULL, &none));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_create(directory, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_open(NULL, NULL, &none));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_cancellation_create(NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_statistics(repository, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_verify(repository, NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repository_forget(repository, NULL, 1));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_checkpoint_list(repository, NULL, NULL, &count));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_checkpoint_list(repository, NULL, &ids, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_checkpoint_find(repository, NULL, &id));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_checkpoint_find(repository, "machine", NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_checkpoint_find(repository, "\xff\xfe", &id));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_checkpoint_show(repository, NULL, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_checkpoint_state(repository, &fixture.id, &state, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_checkpoint_diff(repository, &fixture.id, NULL, NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_reader_open(repository, &fixture.id, NULL, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_session_begin(fixture.session, NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_revert(fixture.session, NULL, NULL, NULL, NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_session_revert(fixture.session, &fixture.id, NULL, NULL,
                                                        NULL, &state, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_session_parent(fixture.session, NULL));
    CHECK(varve_error_corruption(NULL) == VARVE_INVALID_ARGUMENT);

    memset(&id, 7, sizeof id);
    SIZED(varve_checkpoint, checkpoint);
    varve_reader *reader = NULL;
    EXPECT(VARVE_NOT_FOUND, varve_checkpoint_show(repository, &id, &checkpoint));
    EXPECT(VARVE_NOT_FOUND, varve_checkpoint_find(repository, "nothing", &id));
    EXPECT(VARVE_NOT_FOUND, varve_reader_open(repository, &fixture.id, "xvda", &reader));
    EXPECT(VARVE_EXISTS, varve_repository_create(directory, &none));
    EXPECT(VARVE_NOT_FOUND, varve_repository_open("/nowhere", NULL, &none));
    OK(varve_reader_open(repository, &fixture.id, NULL, &reader));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_reader_read(reader, 0, NULL, 1));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_reader_extents(reader, NULL, NULL));
    EXPECT(VARVE_SIZE_MISMATCH, varve_reader_read(reader, UINT64_MAX, &id, sizeof id));
    OK(varve_reader_read(reader, (uint64_t)1 << 50, &id, sizeof id));
    OK(varve_reader_close(reader));
    struct machine machine;
    machine_open(&machine);
    varve_session *session = NULL;
    EXPECT(VARVE_INVALID_NAME, varve_session_open_regions(repository, "-", machine.regions,
                                                          REGION_COUNT, NULL, &session));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_session_open_regions(repository, NULL, machine.regions,
                                                              REGION_COUNT, NULL, &session));
    machine_close(&machine);
    close_fixture(&fixture);
}

// Calls in an order that makes no sense.
void wrong_order(const char *directory) {
    struct fixture fixture;
    open_fixture(&fixture, directory);
    EXPECT(VARVE_BUSY, varve_repository_close(fixture.repository));
    varve_capture *capture = NULL;
    OK(varve_session_begin(fixture.session, NULL, NULL, &capture));
    OK(varve_capture_cancel(capture));
    int code = varve_capture_wait(capture, -1, NULL);
    CHECK(code == VARVE_OK || code == VARVE_CANCELLED);
    OK(varve_capture_cancel(capture));
    CHECK(varve_capture_wait(capture, 0, NULL) == code);
    int first = -1, second = -1;
    OK(varve_capture_descriptor(capture, &first));
    OK(varve_capture_descriptor(capture, &second));
    CHECK(first == second && first >= 0);
    EXPECT(VARVE_INVALID_ARGUMENT, varve_capture_wait(capture, -2, NULL));
    OK(varve_capture_free(capture));
    // Freed before it has ended; the next one follows it.
    OK(varve_session_begin(fixture.session, NULL, NULL, &capture));
    OK(varve_capture_descriptor(capture, &first));
    OK(varve_capture_free(capture));
    OK(varve_session_cancel(fixture.session));
    // One that begins before the other has ended would lack its pages.
    code = varve_session_capture(fixture.session, NULL, NULL, NULL);
    CHECK(code == VARVE_OK || code == VARVE_PREDECESSOR_FAILED);
    // A plan whose repository was closed.
    varve_repository *repository = NULL;
    OK(varve_repository_create_volatile(NULL, &repository));
    varve_plan *plan = NULL;
    OK(varve_prune_plan(repository, NULL, NULL, &plan));
    OK(varve_repository_close(repository));
    CHECK(varve_plan_execute(plan, NULL, NULL) != VARVE_OK);
    OK(varve_plan_free(plan));
    close_fixture(&fixture);
}
