#include <stdlib.h>

#include <varve_xen.h>

#include "cases.h"

struct scene {
    struct guest guest;
    struct varve_callbacks callbacks;
    varve_id id;
    uint8_t *copy; // of the memory at the checkpoint
};

static void open_scene(struct scene *scene, const char *directory) {
    guest_open(&scene->guest);
    OK(varve_repository_create(directory, &scene->guest.repository));
    scene->callbacks = guest_callbacks();
    SIZED(varve_session_options, options);
    options.worker_count = 1;
    OK(varve_session_open_callbacks(scene->guest.repository, "guest", &scene->callbacks,
                                    &scene->guest, &options, &scene->guest.session));
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(scene->guest.session, NULL, NULL, &result));
    scene->id = result.id;
    scene->copy = machine_copy(&scene->guest.machine);
}

static void close_scene(struct scene *scene) {
    CHECK(!scene->guest.is_paused);
    CHECK(scene->guest.pause_count == scene->guest.resume_count);
    OK(varve_session_close(scene->guest.session));
    OK(varve_repository_close(scene->guest.repository));
    free(scene->copy);
    guest_close(&scene->guest);
}

// The next capture has every page, whatever failed before.
static void check_whole(struct scene *scene) {
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(scene->guest.session, NULL, NULL, &result));
    uint8_t *copy = machine_copy(&scene->guest.machine);
    CHECK(checkpoint_equals(scene->guest.repository, &result.id, &scene->guest.machine, copy));
    free(copy);
    CHECK(!scene->guest.is_paused);
}

static void fail(struct scene *scene, enum callback callback, int times) {
    scene->guest.failing = callback;
    scene->guest.failures_left = times;
}

static void check_failed(struct scene *scene, int code, enum callback callback) {
    if (code != VARVE_CALLBACK_FAILED)
        printf("callback %d: %d: %s\n", callback, code, varve_error_message());
    CHECK(code == VARVE_CALLBACK_FAILED);
    // The callback that counts returns a number of its own.
    CHECK(varve_error_number() == (callback == COUNT ? -7 : 5));
    CHECK(strstr(varve_error_message(), "callback") != NULL);
    scene->guest.failing = CALLBACK_COUNT;
    // A guest that could not be resumed is not resumed a third time.
    if (callback == RESUME && scene->guest.is_paused) {
        scene->guest.is_paused = 0;
        scene->guest.resume_count++;
    }
    CHECK(!scene->guest.is_paused);
}

void failing_callbacks(const char *directory) {
    struct scene scene;
    open_scene(&scene, directory);
    varve_session *session = scene.guest.session;
    const enum callback in_captures[] = {LAYOUT, PAUSE, RESUME, COPY, TAKE, COUNT, SAVE};
    for (size_t index = 0; index < sizeof in_captures / sizeof *in_captures; index++) {
        machine_run(&scene.guest.machine, 5);
        fail(&scene, in_captures[index], 2);
        check_failed(&scene, varve_session_capture(session, NULL, NULL, NULL), in_captures[index]);
        check_whole(&scene);
    }
    // Resume is tried twice.
    fail(&scene, RESUME, 1);
    OK(varve_session_capture(session, NULL, NULL, NULL));
    scene.guest.failing = CALLBACK_COUNT;
    const enum callback in_reverts[] = {PAUSE, RESUME, TAKE, WRITE, RESTORE};
    for (size_t index = 0; index < sizeof in_reverts / sizeof *in_reverts; index++) {
        machine_run(&scene.guest.machine, 5);
        fail(&scene, in_reverts[index], 2);
        check_failed(&scene,
                     varve_session_revert(session, &scene.id, NULL, NULL, NULL, NULL, NULL),
                     in_reverts[index]);
        check_whole(&scene);
        // And again, which completes it.
        OK(varve_session_revert(session, &scene.id, NULL, NULL, NULL, NULL, NULL));
        CHECK(machine_equals(&scene.guest.machine, scene.copy));
    }
    const enum callback in_restores[] = {LAYOUT, WRITE, RESTORE};
    for (size_t index = 0; index < sizeof in_restores / sizeof *in_restores; index++) {
        fail(&scene, in_restores[index], 1);
        check_failed(&scene,
                     varve_restore_callbacks(scene.guest.repository, &scene.id, &scene.callbacks,
                                             &scene.guest, NULL, NULL, NULL),
                     in_restores[index]);
    }
    // The log is begun by the first capture of a session.
    OK(varve_session_close(session));
    OK(varve_session_open_callbacks(scene.guest.repository, "guest", &scene.callbacks,
                                    &scene.guest, NULL, &scene.guest.session));
    fail(&scene, START, 1);
    check_failed(&scene, varve_session_capture(scene.guest.session, NULL, NULL, NULL), START);
    check_whole(&scene);

    // Without a part of the table.
    struct varve_callbacks callbacks = scene.callbacks;
    callbacks.write_pages = NULL;
    EXPECT(VARVE_UNSUPPORTED, varve_restore_callbacks(scene.guest.repository, &scene.id,
                                                      &callbacks, &scene.guest, NULL, NULL, NULL));
    callbacks = scene.callbacks;
    callbacks.restore_state = NULL;
    EXPECT(VARVE_STATE_REJECTED,
           varve_restore_callbacks(scene.guest.repository, &scene.id, &callbacks, &scene.guest,
                                   NULL, NULL, NULL));
    callbacks.pause = NULL;
    varve_session *none = NULL;
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_open_callbacks(scene.guest.repository, "guest", &callbacks, &scene.guest,
                                        NULL, &none));
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_open_callbacks(scene.guest.repository, "guest", NULL, NULL, NULL, &none));
    // Pages and state are the callbacks' to give.
    struct varve_capture_input input = machine_input(&scene.guest.machine);
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_capture(scene.guest.session, &input, NULL, NULL));
    close_scene(&scene);
}

static int visited[CALLBACK_COUNT];

// Calls of all sorts, each of which would wait for the call that this callback is part of.
static void call_back_in(struct guest *guest, enum callback callback) {
    visited[callback]++;
    varve_id id;
    SIZED(varve_statistics, statistics);
    EXPECT(VARVE_IN_CALLBACK, varve_session_capture(guest->session, NULL, NULL, NULL));
    EXPECT(VARVE_IN_CALLBACK, varve_session_close(guest->session));
    EXPECT(VARVE_IN_CALLBACK, varve_session_parent(guest->session, &id));
    EXPECT(VARVE_IN_CALLBACK, varve_repository_statistics(guest->repository, &statistics));
    EXPECT(VARVE_IN_CALLBACK, varve_repository_close(guest->repository));
    uint32_t domain;
    EXPECT(VARVE_IN_CALLBACK, varve_xen_find("web", &domain));
    varve_session *session = NULL;
    EXPECT(VARVE_IN_CALLBACK,
           varve_session_open_xen(guest->repository, "web", 1, NULL, NULL, &session));
}

static void cancel_session(struct guest *guest, enum callback callback) {
    if (callback == LAYOUT)
        OK(varve_session_cancel(guest->session));
}

static int call_back_in_progress(void *context, const struct varve_progress *progress) {
    (void)progress;
    varve_id id;
    EXPECT(VARVE_IN_CALLBACK, varve_checkpoint_find(context, "guest", &id));
    return 0;
}

static void call_back_in_finding(void *context, const struct varve_corruption *corruption,
                                 const varve_id *affected, size_t affected_count) {
    (void)context;
    (void)corruption;
    (void)affected;
    (void)affected_count;
}

void calling_back_in(const char *directory) {
    struct scene scene;
    open_scene(&scene, directory);
    scene.guest.visit = call_back_in;
    machine_run(&scene.guest.machine, 5);
    OK(varve_session_capture(scene.guest.session, NULL, NULL, NULL));
    OK(varve_session_revert(scene.guest.session, &scene.id, NULL, NULL, NULL, NULL, NULL));
    OK(varve_restore_callbacks(scene.guest.repository, &scene.id, &scene.callbacks, &scene.guest,
                               NULL, NULL, NULL));
    for (int callback = 0; callback < CALLBACK_COUNT; callback++)
        CHECK(visited[callback] > 0 || callback == START);
    scene.guest.visit = NULL;
    check_whole(&scene);

    // What a callback may do: cancel.
    scene.guest.visit = cancel_session;
    machine_run(&scene.guest.machine, 5);
    EXPECT(VARVE_CANCELLED, varve_session_capture(scene.guest.session, NULL, NULL, NULL));
    scene.guest.visit = NULL;
    check_whole(&scene);

    SIZED(varve_call, call);
    call.progress = call_back_in_progress;
    call.context = scene.guest.repository;
    SIZED(varve_verify_options, options);
    options.finding = call_back_in_finding;
    SIZED(varve_verify_report, report);
    OK(varve_repository_verify(scene.guest.repository, &options, &call, &report));
    close_scene(&scene);
}
