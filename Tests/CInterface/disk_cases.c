#include <stdlib.h>

#include "disks.h"

static void open_limited(struct disks *disks, int64_t cut_nanoseconds) {
    struct varve_callbacks callbacks = disks_callbacks(disks);
    SIZED(varve_session_options, options);
    options.worker_count = 2;
    options.disk_cut_budget_nanoseconds = cut_nanoseconds;
    OK(varve_session_open_callbacks(disks->guest.repository, "guest", &callbacks, disks, &options,
                                    &disks->guest.session));
}

static void open_session(struct disks *disks) {
    open_limited(disks, 0);
}

struct moment {
    varve_id id;
    uint8_t *memory;
    struct image *images;
};

static struct moment capture(struct disks *disks) {
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(disks->guest.session, NULL, NULL, &result));
    CHECK(result.disk_nanoseconds >= 0);
    CHECK(result.disk_nanoseconds <= result.downtime_nanoseconds);
    struct moment moment = {result.id, machine_copy(&disks->guest.machine), disks_copy(disks)};
    return moment;
}

static void check_moment(struct disks *disks, const struct moment *moment) {
    CHECK(checkpoint_equals(disks->guest.repository, &moment->id, &disks->guest.machine,
                            moment->memory));
    CHECK(checkpoint_has_disks(disks->guest.repository, &moment->id, moment->images));
}

static void check_guest(struct disks *disks, const struct moment *moment) {
    CHECK(machine_equals(&disks->guest.machine, moment->memory));
    CHECK(disks_equal(disks, moment->images));
}

static void free_moment(struct moment *moment) {
    free(moment->memory);
    free(moment->images);
}

// The next capture has everything, whatever failed before.
static void check_whole(struct disks *disks) {
    disks_fail(disks, DISK_CALLBACK_COUNT, 0, 0);
    disks->lie = NULL;
    disks_run(disks, 5);
    struct moment moment = capture(disks);
    check_moment(disks, &moment);
    free_moment(&moment);
    CHECK(!disks->guest.is_paused);
}

void right_disks(const char *directory) {
    struct disks *disks = malloc(sizeof *disks);
    disks_open(disks, directory);
    open_session(disks);
    struct moment moments[20];
    for (int index = 0; index < 20; index++) {
        disks_run(disks, 8);
        if (index % 5 == 3)
            disks_resize(disks, 1, (uint64_t)(20 + index) * PAGE + 512);
        if (index % 5 == 4)
            disks_resize(disks, 1, (uint64_t)(5 + index) * PAGE);
        moments[index] = capture(disks);
    }
    CHECK(disks->call_counts[CHANGED] == 19 * DISK_COUNT);
    CHECK(disks->call_counts[STORED] == DISK_COUNT);
    for (int index = 0; index < 20; index++)
        check_moment(disks, &moments[index]);
    for (int index = 19; index >= 0; index -= 3) {
        disks_run(disks, 8);
        SIZED(varve_revert_result, result);
        OK(varve_session_revert(disks->guest.session, &moments[index].id, NULL, NULL, &result,
                                NULL, NULL));
        check_guest(disks, &moments[index]);
        CHECK(result.written_block_count > 0);
    }
    // A capture after a revert is compared with the cut that the revert made.
    check_whole(disks);
    OK(varve_session_disk_failure(disks->guest.session));

    // The next session knows no cut: all that is stored is compared, and nothing else.
    OK(varve_session_close(disks->guest.session));
    CHECK(disks_cut_count(disks) == 0);
    open_session(disks);
    check_whole(disks);
    CHECK(disks->call_counts[STORED] == 2 * DISK_COUNT);
    // No cut is as fast as this; the guest runs, and the next session has lost nothing.
    OK(varve_session_close(disks->guest.session));
    open_limited(disks, 1);
    EXPECT(VARVE_GUEST_FAILED, varve_session_capture(disks->guest.session, NULL, NULL, NULL));
    CHECK(!disks->guest.is_paused);
    // Without what is optional.
    OK(varve_session_close(disks->guest.session));
    disks->callbacks.changed = NULL;
    disks->callbacks.stored = NULL;
    disks->callbacks.write = NULL;
    open_session(disks);
    check_whole(disks);
    check_whole(disks);
    EXPECT(VARVE_UNSUPPORTED, varve_session_revert(disks->guest.session, &moments[3].id, NULL,
                                                   NULL, NULL, NULL, NULL));
    check_whole(disks);
    for (int index = 0; index < 20; index++)
        free_moment(&moments[index]);
    disks_close(disks);
    free(disks);
}

static void check_failed(int code, enum disk_callback callback) {
    if (code != VARVE_CALLBACK_FAILED)
        printf("disks' callback %d: %d: %s\n", callback, code, varve_error_message());
    CHECK(code == VARVE_CALLBACK_FAILED);
    CHECK(varve_error_number() == 9);
}

static void fail_captures(struct disks *disks) {
    const struct {
        enum disk_callback callback;
        int after;
    } points[] = {{LIST, 0}, {LIST, 1}, {LIST, 2}, {PREPARE, 0}, {CUT, 0}, {CHANGED, 0},
                  {CHANGED, 1}, {READ, 0}, {READ, 1}};
    for (size_t index = 0; index < sizeof points / sizeof *points; index++) {
        disks_run(disks, 20);
        disks_fail(disks, points[index].callback, points[index].after, 1);
        check_failed(varve_session_capture(disks->guest.session, NULL, NULL, NULL),
                     points[index].callback);
        check_whole(disks);
    }
    // In a capture that was begun, it is found when that is waited for.
    disks_run(disks, 20);
    disks_fail(disks, READ, 0, 1);
    varve_capture *begun = NULL;
    OK(varve_session_begin(disks->guest.session, NULL, NULL, &begun));
    check_failed(varve_capture_wait(begun, -1, NULL), READ);
    OK(varve_capture_free(begun));
    check_whole(disks);
}

static void fail_reverts(struct disks *disks, const struct moment *target) {
    const struct {
        enum disk_callback callback;
        int after;
    } points[] = {{LIST, 0}, {LIST, 1}, {LIST, 2}, {PREPARE, 0}, {CUT, 0}, {CHANGED, 0},
                  {READ, 0}, {RESIZE, 0}, {WRITE_DISK, 0}, {WRITE_DISK, 1}};
    for (size_t index = 0; index < sizeof points / sizeof *points; index++) {
        disks_run(disks, 20);
        disks_resize(disks, 1, 30 * PAGE);
        struct moment before = capture(disks);
        disks_fail(disks, points[index].callback, points[index].after, 1);
        check_failed(varve_session_revert(disks->guest.session, &target->id, NULL, NULL, NULL,
                                          NULL, NULL),
                     points[index].callback);
        // Nothing has changed, or what was written was put back.
        check_guest(disks, &before);
        check_whole(disks);
        OK(varve_session_revert(disks->guest.session, &target->id, NULL, NULL, NULL, NULL, NULL));
        check_guest(disks, target);
        free_moment(&before);
    }
    // What was written cannot be put back either: memory and disks are of two instants.
    disks_run(disks, 20);
    disks_fail(disks, WRITE_DISK, 1, 1000);
    check_failed(varve_session_revert(disks->guest.session, &target->id, NULL, NULL, NULL, NULL,
                                      NULL),
                 WRITE_DISK);
    disks_fail(disks, DISK_CALLBACK_COUNT, 0, 0);
    EXPECT(VARVE_STATE_REJECTED, varve_session_capture(disks->guest.session, NULL, NULL, NULL));
    OK(varve_session_revert(disks->guest.session, &target->id, NULL, NULL, NULL, NULL, NULL));
    check_guest(disks, target);
}

void failing_disks(const char *directory) {
    struct disks *disks = malloc(sizeof *disks);
    disks_open(disks, directory);
    open_session(disks);
    disks_run(disks, 20);
    disks_fail(disks, STORED, 0, 1);
    check_failed(varve_session_capture(disks->guest.session, NULL, NULL, NULL), STORED);
    disks_fail(disks, DISK_CALLBACK_COUNT, 0, 0);
    struct moment target = capture(disks);
    fail_captures(disks);
    fail_reverts(disks, &target);

    OK(varve_session_disk_failure(disks->guest.session));
    disks_fail(disks, RELEASE, 0, 1);
    OK(varve_session_capture(disks->guest.session, NULL, NULL, NULL));
    // Cuts are dropped after the call; those of the first, before the second has ended.
    OK(varve_session_capture(disks->guest.session, NULL, NULL, NULL));
    check_failed(varve_session_disk_failure(disks->guest.session), RELEASE);
    check_whole(disks);
    free_moment(&target);
    disks_close(disks);
    free(disks);
}

// ---- Callbacks that return nonsense ----

static enum disk_callback lying;
static int lie_number;
static varve_range lie_ranges[3];
static struct varve_disk lie_disks[DISK_COUNT];

static void set_ranges(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    lie_ranges[0].first = a;
    lie_ranges[0].count = b;
    lie_ranges[1].first = c;
    lie_ranges[1].count = d;
}

enum { RANGE_LIES = 9, DISK_LIES = 13 };

static void tell_ranges(const void **array, size_t *count) {
    *array = lie_ranges;
    *count = 2;
    switch (lie_number) {
    case 0: *count = (size_t)-1; break;
    case 1: *count = 1 << 20; break;
    case 2: *array = NULL; break;
    case 3: set_ranges(1, 1, BLOCK_MAX, 1); break;        // beyond the disk
    case 4: set_ranges(3, 1, 1, 1); break;                // descending
    case 5: set_ranges(1, 3, 2, 1); break;                // overlapping
    case 6: set_ranges(1, 0, 3, 1); break;                // empty
    case 7: set_ranges(1, UINT64_MAX, 3, 1); break;       // past 2^64
    default: set_ranges(1, 1, 2, (uint64_t)1 << 60); break;
    }
}

static void tell_disks(struct disks *disks, const void **array, size_t *count) {
    memcpy(lie_disks, *array, sizeof lie_disks);
    *array = lie_disks;
    switch (lie_number) {
    case 0: *count = (size_t)-1; break;
    case 1: *count = 5000; break;
    case 2: *array = NULL; break;
    case 3: lie_disks[0].name = NULL; break;
    case 4: lie_disks[0].name = "\xff\xfe"; break;
    case 5: lie_disks[1].name = lie_disks[0].name; break;
    case 6: lie_disks[0].byte_count = 0; break;
    case 7: lie_disks[0].byte_count = 1000; break;
    case 8: lie_disks[0].byte_count = ((uint64_t)1 << 44) + 512; break;
    case 9: lie_disks[0].block_byte_count = 1024; break;
    case 10: lie_disks[0].block_byte_count = -512; break;
    case 11: lie_disks[1].size = 0; break;
    default: // other disks in the pause
        if (disks->guest.is_paused)
            *count = 1;
    }
}

static void tell(struct disks *disks, enum disk_callback callback, const void **array,
                 size_t *count) {
    if (callback != lying)
        return;
    if (callback == LIST)
        tell_disks(disks, array, count);
    else
        tell_ranges(array, count);
}

static void check_lie(struct disks *disks, const struct moment *target) {
    disks_run(disks, 10);
    disks->lie = tell;
    EXPECT(VARVE_GUEST_FAILED, varve_session_capture(disks->guest.session, NULL, NULL, NULL));
    CHECK(strstr(varve_error_message(), "callback") != NULL);
    if (lying != STORED) {
        uint8_t *memory = machine_copy(&disks->guest.machine);
        struct image *images = disks_copy(disks);
        EXPECT(VARVE_GUEST_FAILED, varve_session_revert(disks->guest.session, &target->id, NULL,
                                                        NULL, NULL, NULL, NULL));
        CHECK(machine_equals(&disks->guest.machine, memory) && disks_equal(disks, images));
        free(memory);
        free(images);
    }
    if (lying != STORED)
        check_whole(disks);
    disks->lie = NULL;
}

void lying_disks(const char *directory) {
    struct disks *disks = malloc(sizeof *disks);
    disks_open(disks, directory);
    open_session(disks);
    // Before the first checkpoint, so that what is stored is asked.
    lying = STORED;
    for (lie_number = 0; lie_number < RANGE_LIES; lie_number++)
        check_lie(disks, NULL);
    struct moment target = capture(disks);
    check_moment(disks, &target);
    lying = CHANGED;
    for (lie_number = 0; lie_number < RANGE_LIES; lie_number++)
        check_lie(disks, &target);
    lying = LIST;
    for (lie_number = 0; lie_number < DISK_LIES; lie_number++)
        check_lie(disks, &target);

    // A table without what is needed, or with files beside it.
    struct varve_callbacks callbacks = disks_callbacks(disks);
    struct varve_disk_callbacks table = disks->callbacks;
    callbacks.disks = &table;
    varve_session *none = NULL;
#define REFUSED()                                                                                 \
    EXPECT(VARVE_INVALID_ARGUMENT,                                                                \
           varve_session_open_callbacks(disks->guest.repository, "other", &callbacks, disks,      \
                                        &options, &none))
    SIZED(varve_session_options, options);
    table.list = NULL;
    REFUSED();
    table = disks->callbacks;
    table.read = NULL;
    REFUSED();
    table = disks->callbacks;
    table.size = 8;
    REFUSED();
    table = disks->callbacks;
    options.disk_cut_budget_nanoseconds = -1;
    REFUSED();
#undef REFUSED
    check_whole(disks);
    free_moment(&target);
    disks_close(disks);
    free(disks);
}

// ---- Pages that are mapped ----

static int mapped_count, unmapped_page, map_fails;

static int map_pages(void *context, uint64_t first, uint64_t count, void **pages) {
    struct guest *guest = context;
    CHECK(*pages == NULL && count > 0);
    __atomic_fetch_add(&mapped_count, 1, __ATOMIC_RELAXED);
    if (map_fails)
        return 11;
    size_t page = machine_number(&guest->machine, first);
    size_t last = machine_number(&guest->machine, first + count - 1);
    CHECK(page < PAGE_COUNT && last == page + count - 1);
    if (unmapped_page < (int)page || unmapped_page > (int)last)
        *pages = machine_page(&guest->machine, page);
    return 0;
}

static void take_and_revert(struct guest *guest) {
    varve_id ids[20];
    uint8_t *copies[20];
    for (int index = 0; index < 20; index++) {
        machine_run(&guest->machine, 10);
        SIZED(varve_capture_result, result);
        OK(varve_session_capture(guest->session, NULL, NULL, &result));
        ids[index] = result.id;
        copies[index] = machine_copy(&guest->machine);
    }
    for (int index = 0; index < 20; index++)
        CHECK(checkpoint_equals(guest->repository, &ids[index], &guest->machine, copies[index]));
    for (int index = 19; index >= 0; index -= 4) {
        machine_run(&guest->machine, 10);
        OK(varve_session_revert(guest->session, &ids[index], NULL, NULL, NULL, NULL, NULL));
        CHECK(machine_equals(&guest->machine, copies[index]));
    }
    for (int index = 0; index < 20; index++)
        free(copies[index]);
}

static void open_mapped(struct guest *guest, struct varve_callbacks *callbacks) {
    OK(varve_session_open_callbacks(guest->repository, "guest", callbacks, guest, NULL,
                                    &guest->session));
}

void mapped_pages(const char *directory) {
    struct guest guest;
    guest_open(&guest);
    OK(varve_repository_create(directory, &guest.repository));
    struct varve_callbacks callbacks = guest_callbacks();
    callbacks.map_pages = map_pages;
    callbacks.copy_pages = NULL;
    callbacks.write_pages = NULL;
    unmapped_page = PAGE_COUNT;
    open_mapped(&guest, &callbacks);
    take_and_revert(&guest);
    CHECK(mapped_count > 20);

    // A failure, and a page that has no memory and cannot be copied.
    map_fails = 1;
    machine_run(&guest.machine, 10);
    EXPECT(VARVE_CALLBACK_FAILED, varve_session_capture(guest.session, NULL, NULL, NULL));
    CHECK(varve_error_number() == 11);
    varve_id first;
    OK(varve_checkpoint_find(guest.repository, "guest~19", &first));
    EXPECT(VARVE_CALLBACK_FAILED,
           varve_session_revert(guest.session, &first, NULL, NULL, NULL, NULL, NULL));
    map_fails = 0;
    OK(varve_session_revert(guest.session, &first, NULL, NULL, NULL, NULL, NULL));
    unmapped_page = 100;
    machine_write(&guest.machine, 100);
    EXPECT(VARVE_GUEST_FAILED, varve_session_capture(guest.session, NULL, NULL, NULL));
    unmapped_page = PAGE_COUNT;
    OK(varve_session_capture(guest.session, NULL, NULL, NULL));
    OK(varve_session_close(guest.session));

    // Beside copy_pages and write_pages, which get what is not mapped.
    callbacks.copy_pages = guest_callbacks().copy_pages;
    callbacks.write_pages = guest_callbacks().write_pages;
    unmapped_page = 100;
    open_mapped(&guest, &callbacks);
    take_and_revert(&guest);
    OK(varve_session_close(guest.session));

    // A restore writes to the memory.
    callbacks.write_pages = NULL;
    unmapped_page = PAGE_COUNT;
    SIZED(varve_restore_result, result);
    uint8_t *copy = machine_copy(&guest.machine);
    open_mapped(&guest, &callbacks);
    SIZED(varve_capture_result, taken);
    OK(varve_session_capture(guest.session, NULL, NULL, &taken));
    OK(varve_session_close(guest.session));
    machine_run(&guest.machine, 200);
    OK(varve_restore_callbacks(guest.repository, &taken.id, &callbacks, &guest, NULL, NULL,
                               &result));
    CHECK(machine_equals(&guest.machine, copy) && result.written_page_count == PAGE_COUNT);
    map_fails = 1;
    EXPECT(VARVE_CALLBACK_FAILED, varve_restore_callbacks(guest.repository, &taken.id, &callbacks,
                                                          &guest, NULL, NULL, NULL));
    map_fails = 0;
    callbacks.map_pages = NULL;
    EXPECT(VARVE_UNSUPPORTED, varve_restore_callbacks(guest.repository, &taken.id, &callbacks,
                                                      &guest, NULL, NULL, NULL));
    callbacks.copy_pages = NULL;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_restore_callbacks(guest.repository, &taken.id, &callbacks,
                                                           &guest, NULL, NULL, NULL));
    free(copy);
    OK(varve_repository_close(guest.repository));
    guest_close(&guest);
}
