#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cases.h"

static int same_id(const varve_id *one, const varve_id *other) {
    return memcmp(one, other, sizeof *one) == 0;
}

static void check_diff(varve_repository *repository, const varve_id *from, const varve_id *to,
                       const struct machine *machine, const uint8_t *before,
                       const uint8_t *after) {
    varve_range *ranges = NULL;
    size_t count = 0;
    OK(varve_checkpoint_diff(repository, from, to, "memory", &ranges, &count));
    uint8_t named[PAGE_COUNT] = {0};
    for (size_t index = 0; index < count; index++)
        for (uint64_t frame = 0; frame < ranges[index].count; frame++)
            named[machine_number(machine, ranges[index].first + frame)] = 1;
    for (size_t page = 0; page < PAGE_COUNT; page++) {
        int differs = memcmp(before + page * PAGE, after + page * PAGE, PAGE) != 0;
        CHECK(named[page] == differs);
    }
    varve_free(ranges);
}

static void check_restore(varve_repository *repository, const varve_id *id, const uint8_t *copy,
                          uint32_t counter) {
    struct machine other;
    machine_open(&other);
    SIZED(varve_restore_result, result);
    void *state = NULL;
    size_t byte_count = 0;
    OK(varve_restore_regions(repository, id, other.regions, REGION_COUNT, NULL, NULL, &result,
                             &state, &byte_count));
    CHECK(machine_equals(&other, copy));
    CHECK(byte_count == sizeof counter && memcmp(state, &counter, sizeof counter) == 0);
    CHECK(result.written_page_count == PAGE_COUNT && result.read_byte_count > 0);
    varve_free(state);
    machine_close(&other);
}

static void check_branch(varve_repository *repository, struct machine *machine,
                         const varve_id *parent) {
    SIZED(varve_session_options, options);
    options.parent = parent;
    options.worker_count = 1;
    varve_session *session = NULL;
    OK(varve_session_open_regions(repository, "branch", machine->regions, REGION_COUNT, &options,
                                  &session));
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(session, NULL, NULL, &result));
    SIZED(varve_checkpoint, checkpoint);
    OK(varve_checkpoint_show(repository, &result.id, &checkpoint));
    CHECK(strcmp(checkpoint.lineage, "branch") == 0);
    CHECK(checkpoint.has_parent && same_id(&checkpoint.parent, parent));
    OK(varve_session_close(session));
}

void right_regions(const char *directory) {
    struct machine machine;
    machine_open(&machine);
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_session *session = NULL;
    OK(varve_session_open_regions(repository, "machine", machine.regions, REGION_COUNT, NULL,
                                  &session));
    varve_id id;
    EXPECT(VARVE_NOT_FOUND, varve_session_parent(session, &id));

    // The first copies every page, whatever it is told.
    machine_clean(&machine);
    struct varve_capture_input input = machine_input(&machine);
    SIZED(varve_capture_result, first);
    OK(varve_session_capture(session, &input, NULL, &first));
    uint8_t *before = machine_copy(&machine);
    uint32_t counter = machine.counter;
    CHECK(first.changed_page_count == PAGE_COUNT && first.added_byte_count > 0);
    CHECK(checkpoint_equals(repository, &first.id, &machine, before));

    // Bitmaps, with bits past the regions; a frame of which only the list knows; begun and waited.
    machine_run(&machine, 20);
    machine.words[1][1] |= ~(uint64_t)0 << 36;
    uint64_t frame = machine_frame(&machine, 190);
    memset(machine_page(&machine, 190), 0, PAGE);
    machine.words[2][0] &= ~((uint64_t)1 << 26);
    machine.dirty.frames = &frame;
    machine.dirty.frame_count = 1;
    input.label = "second";
    varve_capture *capture = NULL;
    OK(varve_session_begin(session, &input, NULL, &capture));
    uint8_t *after = machine_copy(&machine);
    machine.dirty.frame_count = 0;
    machine_clean(&machine);
    machine_run(&machine, 5); // the machine runs
    int descriptor = -1;
    OK(varve_capture_descriptor(capture, &descriptor));
    struct pollfd polled = {descriptor, POLLIN, 0};
    CHECK(poll(&polled, 1, 60000) == 1);
    SIZED(varve_capture_result, second);
    OK(varve_capture_wait(capture, 0, &second));
    OK(varve_capture_wait(capture, -1, &second));
    OK(varve_capture_free(capture));
    CHECK(checkpoint_equals(repository, &second.id, &machine, after));
    CHECK(second.dirty_page_count < 30 && second.downtime_nanoseconds >= 0);
    check_diff(repository, &first.id, &second.id, &machine, before, after);
    OK(varve_checkpoint_find(repository, "second", &id));
    CHECK(same_id(&id, &second.id));
    OK(varve_session_parent(session, &id));
    CHECK(same_id(&id, &second.id));

    // Back to the first, with what was written since the second; then only new writes count.
    SIZED(varve_revert_result, reverted);
    void *state = NULL;
    size_t byte_count = 0;
    OK(varve_session_revert(session, &first.id, &machine.dirty, NULL, &reverted, &state,
                            &byte_count));
    CHECK(machine_equals(&machine, before));
    CHECK(byte_count == sizeof counter && memcmp(state, &counter, sizeof counter) == 0);
    CHECK(reverted.written_page_count > 0);
    CHECK(reverted.compared_page_count >= reverted.written_page_count);
    varve_free(state);
    machine_clean(&machine);
    machine_write(&machine, 7);
    input.label = NULL;
    OK(varve_session_capture(session, &input, NULL, &second));
    uint8_t *third = machine_copy(&machine);
    CHECK(second.changed_page_count == 1);
    CHECK(checkpoint_equals(repository, &second.id, &machine, third));

    check_restore(repository, &first.id, before, counter);
    // Reverts without a place for the state, and with an unknown log.
    memset(machine.memory[1], 1, 50 * PAGE);
    OK(varve_session_revert(session, &first.id, NULL, NULL, NULL, NULL, NULL));
    CHECK(machine_equals(&machine, before));
    OK(varve_session_close(session));
    check_branch(repository, &machine, &first.id);
    OK(varve_repository_close(repository));
    free(before);
    free(after);
    free(third);
    machine_close(&machine);
}

void right_callbacks(const char *directory) {
    struct guest guest;
    guest_open(&guest);
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    struct varve_callbacks callbacks = guest_callbacks();
    varve_session *session = NULL;
    OK(varve_session_open_callbacks(repository, "guest", &callbacks, &guest, NULL, &session));
    uint8_t *copies[10];
    varve_id ids[10];
    uint32_t counters[10];
    for (int index = 0; index < 10; index++) {
        machine_run(&guest.machine, 10);
        guest.is_unknown = index == 5;
        if (index == 5)
            machine_clean(&guest.machine);
        SIZED(varve_capture_result, result);
        OK(varve_session_capture(session, NULL, NULL, &result));
        ids[index] = result.id;
        copies[index] = machine_copy(&guest.machine);
        counters[index] = guest.machine.counter;
        CHECK(index == 0 || result.changed_page_count <= 10);
    }
    guest.is_unknown = 0;
    for (int index = 0; index < 10; index++)
        CHECK(checkpoint_equals(repository, &ids[index], &guest.machine, copies[index]));
    for (int index = 9; index >= 0; index -= 3) {
        machine_run(&guest.machine, 10);
        SIZED(varve_revert_result, result);
        OK(varve_session_revert(session, &ids[index], NULL, NULL, &result, NULL, NULL));
        CHECK(machine_equals(&guest.machine, copies[index]));
        CHECK(guest.machine.counter == counters[index]);
    }
    CHECK(guest.pause_count == guest.resume_count && guest.pause_count == 14);
    OK(varve_session_close(session));
    CHECK(guest.stop_count == 1);

    machine_run(&guest.machine, 100);
    SIZED(varve_restore_result, restored);
    OK(varve_restore_callbacks(repository, &ids[4], &callbacks, &guest, NULL, NULL, &restored));
    CHECK(machine_equals(&guest.machine, copies[4]) && guest.machine.counter == counters[4]);
    CHECK(guest.pause_count == 14);

    // Without a log every page is compared, and no page is lost.
    callbacks.take_dirty = NULL;
    OK(varve_session_open_callbacks(repository, "guest", &callbacks, &guest, NULL, &session));
    machine_run(&guest.machine, 3);
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(session, NULL, NULL, &result));
    uint8_t *copy = machine_copy(&guest.machine);
    CHECK(checkpoint_equals(repository, &result.id, &guest.machine, copy));
    OK(varve_session_close(session));
    free(copy);
    for (int index = 0; index < 10; index++)
        free(copies[index]);
    OK(varve_repository_close(repository));
    guest_close(&guest);
}

static void check_list(const char *directory, const varve_id *ids) {
    SIZED(varve_open_options, options);
    options.access = VARVE_READING;
    varve_repository *reading = NULL;
    OK(varve_repository_open(directory, &options, &reading));
    varve_id *found = NULL;
    size_t count = 0;
    SIZED(varve_selection, selection);
    selection.lineage = "one";
    selection.newest = 2;
    selection.before = &ids[3];
    OK(varve_checkpoint_list(reading, &selection, &found, &count));
    CHECK(count == 2 && same_id(&found[0], &ids[1]) && same_id(&found[1], &ids[2]));
    varve_free(found);
    selection.lineage = "none";
    selection.before = NULL;
    OK(varve_checkpoint_list(reading, &selection, &found, &count));
    CHECK(count == 0 && found == NULL);
    OK(varve_checkpoint_list(reading, NULL, &found, &count));
    CHECK(count == 5);
    varve_free(found);

    SIZED(varve_checkpoint, checkpoint);
    OK(varve_checkpoint_show(reading, &ids[1], &checkpoint));
    CHECK(same_id(&checkpoint.id, &ids[1]) && same_id(&checkpoint.parent, &ids[0]));
    CHECK(checkpoint.page_count == PAGE_COUNT && checkpoint.volume_count == 1);
    CHECK(checkpoint.time_nanoseconds > 0 && strcmp(checkpoint.label, "") == 0);
    SIZED(varve_volume, volume);
    OK(varve_checkpoint_volume(reading, &ids[1], 0, &volume));
    CHECK(strcmp(volume.name, "memory") == 0 && !volume.is_disk);
    CHECK(volume.byte_count == PAGE_COUNT * PAGE && volume.block_byte_count == PAGE);
    EXPECT(VARVE_NOT_FOUND, varve_checkpoint_volume(reading, &ids[1], 1, &volume));
    varve_session *session = NULL;
    struct machine machine;
    machine_open(&machine);
    EXPECT(VARVE_READ_ONLY, varve_session_open_regions(reading, "one", machine.regions,
                                                       REGION_COUNT, NULL, &session));
    CHECK(session == NULL);
    machine_close(&machine);
    OK(varve_repository_close(reading));
}

void right_upkeep(const char *directory) {
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_id ids[5];
    machine_fill(repository, "one", ids, 5);
    check_list(directory, ids);
    SIZED(varve_statistics, statistics);
    OK(varve_repository_statistics(repository, &statistics));
    CHECK(statistics.checkpoint_count == 5 && statistics.page_count == 5 * PAGE_COUNT);
    CHECK(statistics.byte_count > 0 && statistics.logical_byte_count == 5 * PAGE_COUNT * PAGE);
    SIZED(varve_verify_report, report);
    OK(varve_repository_verify(repository, NULL, NULL, &report));
    CHECK(report.checkpoint_count == 5 && report.finding_count == 0 && report.page_count > 0);
    SIZED(varve_verify_options, options);
    options.depth = VARVE_DEPTH_STRUCTURE;
    OK(varve_repository_verify(repository, &options, NULL, &report));
    CHECK(report.page_count == 0 && report.finding_count == 0);

    OK(varve_repository_forget(repository, ids, 4));
    EXPECT(VARVE_NOT_FOUND, varve_repository_forget(repository, ids, 1));
    SIZED(varve_prune_options, prune);
    varve_plan *plan = NULL;
    OK(varve_prune_plan(repository, &prune, NULL, &plan));
    SIZED(varve_prune_info, planned);
    OK(varve_plan_show(plan, &planned));
    CHECK(planned.freed_byte_count > 0 && planned.dead_page_count > 0);
    SIZED(varve_prune_info, done);
    OK(varve_plan_execute(plan, NULL, &done));
    CHECK(done.freed_byte_count == planned.freed_byte_count);
    CHECK(done.rewritten_pack_count + done.removed_pack_count > 0);
    EXPECT(VARVE_PLAN_STALE, varve_plan_execute(plan, NULL, NULL));
    OK(varve_plan_free(plan));
    OK(varve_repository_verify(repository, NULL, NULL, &report));
    CHECK(report.checkpoint_count == 1 && report.finding_count == 0);
    OK(varve_repository_close(repository));

    OK(varve_repository_create_volatile("/dev/shm", &repository));
    machine_fill(repository, "one", ids, 2);
    OK(varve_repository_close(repository));
}

static int count_progress(void *context, const struct varve_progress *progress) {
    int *calls = context;
    CHECK(progress->size >= sizeof *progress && strlen(progress->phase) > 0);
    return ++*calls < 0;
}

static int end_at_once(void *context, const struct varve_progress *progress) {
    (void)context;
    (void)progress;
    return 1;
}

// The extents are the pages of the image that are not zero.
static void check_extents(varve_reader *reader, int image) {
    varve_range *ranges = NULL;
    size_t count = 0, next = 0;
    uint64_t byte_count = (uint64_t)lseek(image, 0, SEEK_END);
    uint64_t frame_end = 0, found_count = 0, range_page_count = 0;
    OK(varve_reader_extents(reader, &ranges, &count));
    CHECK(count > 0);
    for (size_t i = 0; i < count; i++) {
        CHECK(ranges[i].count > 0 && (i == 0 || ranges[i].first > frame_end));
        frame_end = ranges[i].first + ranges[i].count;
        range_page_count += ranges[i].count;
    }
    for (uint64_t frame = 0; frame < byte_count / PAGE; frame++) {
        uint8_t page[PAGE], zeros[PAGE] = {0};
        CHECK(pread(image, page, PAGE, (off_t)frame * PAGE) == PAGE);
        while (next < count && ranges[next].first + ranges[next].count <= frame) next++;
        int is_listed = next < count && ranges[next].first <= frame;
        CHECK(is_listed == (memcmp(page, zeros, PAGE) != 0));
        found_count += (uint64_t)is_listed;
    }
    CHECK(found_count == range_page_count);
    varve_free(ranges);
}

static void check_export(varve_repository *repository, const varve_id *id) {
    int file = memfd_create("export", MFD_CLOEXEC);
    OK(varve_checkpoint_export(repository, id, NULL, VARVE_FORMAT_RAW, file, NULL));
    // Up to the end of the last region, with zeros in the holes.
    CHECK(lseek(file, 0, SEEK_END) == (4096 + 32) * (off_t)PAGE);
    varve_reader *reader = NULL;
    OK(varve_reader_open(repository, id, "memory", &reader));
    for (uint64_t frame = 0; frame < 4128; frame++) {
        uint8_t exported[PAGE], read[PAGE];
        CHECK(pread(file, exported, PAGE, (off_t)frame * PAGE) == PAGE);
        OK(varve_reader_read(reader, frame * PAGE, read, PAGE));
        CHECK(memcmp(exported, read, PAGE) == 0);
    }
    // From within a page, over its end.
    uint8_t part[200], whole[2 * PAGE];
    OK(varve_reader_read(reader, 4000, part, sizeof part));
    OK(varve_reader_read(reader, 0, whole, sizeof whole));
    CHECK(memcmp(part, whole + 4000, sizeof part) == 0);
    check_extents(reader, file);
    OK(varve_reader_close(reader));
    close(file);

    int ends[2];
    CHECK(pipe(ends) == 0);
    close(ends[0]);
    // It would end this process by SIGPIPE.
    EXPECT(VARVE_CALL_FAILED,
           varve_checkpoint_export(repository, id, NULL, VARVE_FORMAT_RAW, ends[1], NULL));
    CHECK(varve_error_number() != 0);
    close(ends[1]);
    EXPECT(VARVE_INVALID_STREAM,
           varve_checkpoint_export(repository, id, NULL, VARVE_FORMAT_XL, 1, NULL));
}

void right_calls(const char *directory) {
    CHECK(strcmp(varve_version(), VARVE_VERSION) == 0);
    varve_free(NULL);
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_id id;
    machine_fill(repository, "one", &id, 1);
    check_export(repository, &id);

    int calls = 0;
    SIZED(varve_call, call);
    call.progress = count_progress;
    call.context = &calls;
    SIZED(varve_verify_report, report);
    OK(varve_repository_verify(repository, NULL, &call, &report));
    CHECK(calls > 0);
    call.progress = end_at_once;
    EXPECT(VARVE_CANCELLED, varve_repository_verify(repository, NULL, &call, &report));
    call.progress = NULL;
    OK(varve_cancellation_create(&call.cancellation));
    OK(varve_repository_verify(repository, NULL, &call, &report));
    OK(varve_cancellation_cancel(call.cancellation));
    EXPECT(VARVE_CANCELLED, varve_repository_verify(repository, NULL, &call, &report));
    OK(varve_cancellation_free(call.cancellation));
    EXPECT(VARVE_INVALID_HANDLE, varve_repository_verify(repository, NULL, &call, &report));

    // Waits for a lock that is held: not long.
    SIZED(varve_open_options, options);
    options.access = VARVE_WRITING;
    options.wait_nanoseconds = 50000000;
    varve_repository *second = NULL;
    EXPECT(VARVE_LOCKED, varve_repository_open(directory, &options, &second));
    CHECK(second == NULL);
    OK(varve_repository_close(repository));
    OK(varve_repository_open(directory, &options, &second));
    OK(varve_repository_close(second));
}

struct shared {
    varve_session *session;
    varve_repository *repository;
    varve_id id;
};

static void *capture_often(void *context) {
    struct shared *shared = context;
    for (int round = 0; round < 20; round++) {
        // Nothing is written, so nothing is named.
        SIZED(varve_dirty, none);
        SIZED(varve_capture_input, input);
        input.dirty = &none;
        SIZED(varve_capture_result, result);
        OK(varve_session_capture(shared->session, &input, NULL, &result));
        CHECK(result.changed_page_count == 0);
    }
    return NULL;
}

static void *read_often(void *context) {
    struct shared *shared = context;
    for (int round = 0; round < 20; round++) {
        varve_reader *reader = NULL;
        OK(varve_reader_open(shared->repository, &shared->id, NULL, &reader));
        uint8_t bytes[PAGE];
        OK(varve_reader_read(reader, 0, bytes, PAGE));
        OK(varve_reader_close(reader));
        // An error of this thread is not seen by others.
        EXPECT(VARVE_INVALID_HANDLE, varve_reader_close(reader));
    }
    return NULL;
}

void right_threads(const char *directory) {
    struct machine machine;
    machine_open(&machine);
    struct shared shared;
    OK(varve_repository_create(directory, &shared.repository));
    OK(varve_session_open_regions(shared.repository, "machine", machine.regions, REGION_COUNT,
                                  NULL, &shared.session));
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(shared.session, NULL, NULL, &result));
    shared.id = result.id;
    pthread_t threads[4];
    for (int index = 0; index < 4; index++)
        pthread_create(&threads[index], NULL, index % 2 ? read_often : capture_often, &shared);
    for (int index = 0; index < 4; index++)
        pthread_join(threads[index], NULL);
    CHECK(varve_error_code() != VARVE_IN_CALLBACK);
    OK(varve_session_close(shared.session));
    OK(varve_repository_close(shared.repository));
    machine_close(&machine);
}

// Dirty pages that were passed to a capture that failed are in the next one.
void lost_nothing(const char *directory) {
    struct machine machine;
    machine_open(&machine);
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_session *session = NULL;
    OK(varve_session_open_regions(repository, "machine", machine.regions, REGION_COUNT, NULL,
                                  &session));
    struct varve_capture_input input = machine_input(&machine);
    OK(varve_session_capture(session, &input, NULL, NULL));
    for (int round = 0; round < 3; round++) {
        machine_clean(&machine);
        machine_write(&machine, (size_t)(10 + round));
        SIZED(varve_call, call);
        OK(varve_cancellation_create(&call.cancellation));
        OK(varve_cancellation_cancel(call.cancellation));
        if (round == 0) {
            EXPECT(VARVE_CANCELLED, varve_session_capture(session, &input, &call, NULL));
        } else if (round == 1) {
            input.label = "-bad";
            EXPECT(VARVE_INVALID_NAME, varve_session_capture(session, &input, NULL, NULL));
            input.label = NULL;
        } else {
            varve_id none;
            memset(&none, 0, sizeof none);
            EXPECT(VARVE_NOT_FOUND,
                   varve_session_revert(session, &none, &machine.dirty, NULL, NULL, NULL, NULL));
        }
        OK(varve_cancellation_free(call.cancellation));
        machine_clean(&machine);
        SIZED(varve_capture_result, result);
        OK(varve_session_capture(session, &input, NULL, &result));
        CHECK(result.changed_page_count == 1);
        uint8_t *copy = machine_copy(&machine);
        CHECK(checkpoint_equals(repository, &result.id, &machine, copy));
        free(copy);
    }
    OK(varve_session_close(session));
    OK(varve_repository_close(repository));
    machine_close(&machine);
}

static void note_finding(void *context, const struct varve_corruption *corruption,
                         const varve_id *affected, size_t affected_count) {
    int *count = context;
    CHECK(strcmp(corruption->file, "packs/00000001.pack") == 0 && corruption->offset > 0);
    CHECK(affected_count == 0 || affected != NULL);
    *count += affected_count > 0;
}

void damage(const char *directory) {
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_id id;
    machine_fill(repository, "one", &id, 1);
    OK(varve_repository_close(repository));
    char path[4096];
    snprintf(path, sizeof path, "%s/packs/00000001.pack", directory);
    FILE *pack = fopen(path, "r+");
    CHECK(pack != NULL);
    fseek(pack, 9000, SEEK_SET);
    fwrite("damaged!", 1, 8, pack);
    fclose(pack);

    OK(varve_repository_open(directory, NULL, &repository));
    int count = 0;
    SIZED(varve_verify_options, options);
    options.finding = note_finding;
    options.context = &count;
    SIZED(varve_verify_report, report);
    OK(varve_repository_verify(repository, &options, NULL, &report));
    CHECK(report.finding_count > 0 && report.affected_checkpoint_count == 1 && count > 0);
    struct machine machine;
    machine_open(&machine);
    SIZED(varve_corruption, corruption);
    EXPECT(VARVE_NOT_FOUND, varve_checkpoint_find(repository, "other", &id));
    CHECK(varve_error_corruption(&corruption) == VARVE_NOT_FOUND);
    EXPECT(VARVE_CORRUPTED, varve_restore_regions(repository, &id, machine.regions, REGION_COUNT,
                                                  NULL, NULL, NULL, NULL, NULL));
    CHECK(varve_error_corruption(&corruption) == VARVE_OK);
    CHECK(strcmp(corruption.file, "packs/00000001.pack") == 0 && corruption.has_checkpoint);
    CHECK(same_id(&corruption.checkpoint, &id) && strlen(corruption.reason) > 0);
    machine_close(&machine);
    OK(varve_repository_close(repository));
}
