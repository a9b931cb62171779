// A little toolstack on libxl that takes checkpoints of domains with libvarve.
//
//   cc toolstack.c -o toolstack $(pkg-config --cflags --libs varve xenlight) -lxentoollog
//
//   toolstack checkpoint DOMAIN DIRECTORY COUNT    checkpoints of a running domain
//   toolstack revert DOMAIN DIRECTORY CHECKPOINT   the running domain goes back, in place
//   toolstack restore DIRECTORY CHECKPOINT NAME    a new domain, which waits for 'xl unpause'
//   toolstack guard ID                             started by libvarve: outlives this program
//
// It needs root in dom0, and a PVH domain. DOMAIN is a name, DIRECTORY the repository, which is
// created if it does not exist, CHECKPOINT what varve_checkpoint_find finds, such as DOMAIN~2.
// libxl finds the domain, tells what it does, and waits for its end; libvarve does the rest. Each
// command compares what both say, and ends with 1 if something is not as it should be.

#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include <libxl.h>
#include <libxl_utils.h>
#include <varve_xen.h>

enum { INTERVAL_MS = 200, POLL_MAX = 64 };

// ---- Failures ----

static void fail(const char *what, const char *why) {
    fprintf(stderr, "toolstack: %s: %s\n", what, why);
    exit(1);
}

// Ends the program with libvarve's sentence if a call of it failed.
static void must(int code, const char *what) {
    if (code != VARVE_OK)
        fail(what, varve_error_message());
}

// The same for libxl, which prints its reason to the log.
static void must_xl(int code, const char *what) {
    if (code != 0)
        fail(what, "libxl failed");
}

static void check(int is_right, const char *what) {
    if (!is_right)
        fail("this is not as it should be", what);
}

// ---- The domain, as libxl sees it ----

struct toolstack {
    xentoollog_logger *log;
    libxl_ctx *xl;
    uint32_t domain;
    libxl_evgen_domain_death *end;
};

static void find_domain(struct toolstack *toolstack, const char *name) {
    memset(toolstack, 0, sizeof *toolstack);
    toolstack->log =
        (xentoollog_logger *)xtl_createlogger_stdiostream(stderr, XTL_ERROR, 0);
    must_xl(libxl_ctx_alloc(&toolstack->xl, LIBXL_VERSION, 0, toolstack->log), "opening libxl");
    must_xl(libxl_name_to_domid(toolstack->xl, name, &toolstack->domain), "finding the domain");
    must_xl(libxl_evenable_domain_death(toolstack->xl, toolstack->domain, 0, &toolstack->end),
            "waiting for the domain's end");
}

static void leave_domain(struct toolstack *toolstack) {
    libxl_evdisable_domain_death(toolstack->xl, toolstack->end);
    libxl_ctx_free(toolstack->xl);
    xtl_logger_destroy(toolstack->log);
}

// The domain has the same ID as before, and runs.
static void check_that_it_runs(struct toolstack *toolstack, const char *name) {
    uint32_t domain;
    must_xl(libxl_name_to_domid(toolstack->xl, name, &domain), "finding the domain again");
    check(domain == toolstack->domain, "the domain has another ID");
    libxl_dominfo info;
    libxl_dominfo_init(&info);
    must_xl(libxl_domain_info(toolstack->xl, &info, domain), "asking for the domain");
    check(!info.paused && !info.shutdown && !info.dying, "the domain does not run");
    libxl_dominfo_dispose(&info);
}

// Takes libxl's events. The end of a domain is one, and so is a suspension, which belongs to a
// checkpoint and is none of a toolstack's business.
static void take_events(struct toolstack *toolstack) {
    libxl_event *event;
    while (libxl_event_check(toolstack->xl, &event, LIBXL_EVENTMASK_ALL, NULL, NULL) == 0) {
        int is_suspension =
            event->type == LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN &&
            event->u.domain_shutdown.shutdown_reason == LIBXL_SHUTDOWN_REASON_SUSPEND;
        libxl_event_free(toolstack->xl, event);
        check(is_suspension, "the domain has ended");
    }
}

// Waits until a descriptor is readable (-1: of none), at most so long, while libxl's events are
// dealt with: the loop that a toolstack has anyway. Returns 0 when the time is over.
static int wait_for(struct toolstack *toolstack, int descriptor, int64_t milliseconds) {
    struct timeval now, start;
    gettimeofday(&start, NULL);
    for (;;) {
        gettimeofday(&now, NULL);
        int64_t gone = (now.tv_sec - start.tv_sec) * INT64_C(1000) +
                       (now.tv_usec - start.tv_usec) / 1000;
        if (gone >= milliseconds)
            return 0;
        struct pollfd polled[POLL_MAX];
        int count = POLL_MAX - 1;
        int timeout = (int)(milliseconds - gone);
        must_xl(libxl_osevent_beforepoll(toolstack->xl, &count, polled, &timeout, now),
                "asking libxl what to wait for");
        // poll(2) leaves out a descriptor of -1.
        polled[count] = (struct pollfd){descriptor, POLLIN, 0};
        if (poll(polled, (nfds_t)count + 1, timeout) < 0)
            continue;
        gettimeofday(&now, NULL);
        libxl_osevent_afterpoll(toolstack->xl, count, polled, now);
        take_events(toolstack);
        if (polled[count].revents)
            return 1;
    }
}

// ---- Its checkpoints ----

static varve_repository *open_repository(const char *directory) {
    struct varve_open_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.access = VARVE_WRITING;
    varve_repository *repository;
    int code = varve_repository_open(directory, &options, &repository);
    if (code == VARVE_NOT_FOUND)
        code = varve_repository_create(directory, &repository);
    must(code, "opening the repository");
    return repository;
}

// Begins a session over the domain. Its guard is this program: should it die in a pause, the domain
// runs on.
static varve_session *open_session(varve_repository *repository, const char *lineage,
                                   uint32_t domain) {
    static const char *const guard[] = {"/proc/self/exe", "guard", NULL};
    struct varve_xen_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.guard_command = guard;
    varve_session *session;
    must(varve_session_open_xen(repository, lineage, domain, NULL, &options, &session),
         "beginning a session");
    struct varve_xen_domain described;
    memset(&described, 0, sizeof described);
    described.size = sizeof described;
    must(varve_xen_show(session, &described), "describing the domain");
    check(described.domain_id == domain, "the session is one over another domain");
    if (described.guard_note[0])
        printf("before this: %s\n", described.guard_note);
    return session;
}

// Takes one checkpoint; the domain runs again when this waits for it.
static struct varve_capture_result capture(struct toolstack *toolstack, varve_session *session) {
    varve_capture *capture;
    must(varve_session_begin(session, NULL, NULL, &capture), "beginning a checkpoint");
    int descriptor;
    must(varve_capture_descriptor(capture, &descriptor), "waiting for a checkpoint");
    check(wait_for(toolstack, descriptor, 600000), "a checkpoint takes ten minutes");
    struct varve_capture_result result;
    memset(&result, 0, sizeof result);
    result.size = sizeof result;
    must(varve_capture_wait(capture, 0, &result), "taking a checkpoint");
    must(varve_capture_free(capture), "freeing a capture");
    return result;
}

static void show(const struct varve_capture_result *result) {
    for (size_t index = 0; index < 8; index++)
        printf("%02x", result->id.bytes[index]);
    printf(": %llu pages dirty, %llu changed; paused for %.2f ms\n",
           (unsigned long long)result->dirty_page_count,
           (unsigned long long)result->changed_page_count,
           (double)result->downtime_nanoseconds / 1e6);
}

static void checkpoint(const char *name, const char *directory, int count) {
    struct toolstack toolstack;
    find_domain(&toolstack, name);
    varve_repository *repository = open_repository(directory);
    varve_session *session = open_session(repository, name, toolstack.domain);
    for (int number = 0; number < count; number++) {
        if (number > 0)
            wait_for(&toolstack, -1, INTERVAL_MS);
        struct varve_capture_result result = capture(&toolstack, session);
        show(&result);
        varve_id newest;
        must(varve_session_parent(session, &newest), "asking for the newest checkpoint");
        check(memcmp(&newest, &result.id, sizeof newest) == 0, "another checkpoint is the newest");
        check_that_it_runs(&toolstack, name);
    }
    must(varve_session_close(session), "closing the session");
    must(varve_repository_close(repository), "closing the repository");
    check_that_it_runs(&toolstack, name);
    leave_domain(&toolstack);
}

static void revert(const char *name, const char *directory, const char *point) {
    struct toolstack toolstack;
    find_domain(&toolstack, name);
    varve_repository *repository = open_repository(directory);
    varve_id id;
    must(varve_checkpoint_find(repository, point, &id), "finding the checkpoint");
    varve_session *session = open_session(repository, name, toolstack.domain);
    struct varve_revert_result result;
    memset(&result, 0, sizeof result);
    result.size = sizeof result;
    must(varve_session_revert(session, &id, NULL, NULL, &result, NULL, NULL), "reverting");
    printf("reverted: %llu pages written; paused for %.2f ms\n",
           (unsigned long long)result.written_page_count,
           (double)result.downtime_nanoseconds / 1e6);
    check(result.written_page_count > 0, "nothing was written");
    check_that_it_runs(&toolstack, name);
    // The next checkpoint follows the one that the domain went back to.
    struct varve_capture_result next = capture(&toolstack, session);
    show(&next);
    struct varve_checkpoint described;
    memset(&described, 0, sizeof described);
    described.size = sizeof described;
    must(varve_checkpoint_show(repository, &next.id, &described), "describing a checkpoint");
    check(described.has_parent && memcmp(&described.parent, &id, sizeof id) == 0,
          "the checkpoint after a revert follows another one");
    must(varve_session_close(session), "closing the session");
    must(varve_repository_close(repository), "closing the repository");
    check_that_it_runs(&toolstack, name);
    leave_domain(&toolstack);
}

static void restore(const char *directory, const char *point, const char *name) {
    varve_repository *repository = open_repository(directory);
    varve_id id;
    must(varve_checkpoint_find(repository, point, &id), "finding the checkpoint");
    struct varve_xen_restore_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.name = name;
    options.is_paused = 1;
    uint32_t domain;
    must(varve_xen_restore(repository, &id, &options, NULL, &domain), "restoring");
    must(varve_repository_close(repository), "closing the repository");
    struct toolstack toolstack;
    find_domain(&toolstack, name);
    check(toolstack.domain == domain, "another domain has that name");
    leave_domain(&toolstack);
    printf("restored: domain %u\n", (unsigned)domain);
}

static void run_guard(const char *domain) {
    char *sentence;
    must(varve_xen_run_guard((uint32_t)strtoul(domain, NULL, 10), &sentence), "guarding");
    if (sentence)
        fprintf(stderr, "toolstack: %s\n", sentence);
    varve_free(sentence);
}

int main(int count, char **words) {
    const char *command = count > 1 ? words[1] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count == 5 && strcmp(command, "checkpoint") == 0 && atoi(words[4]) > 0) {
        checkpoint(words[2], words[3], atoi(words[4]));
    } else if (count == 5 && strcmp(command, "revert") == 0) {
        revert(words[2], words[3], words[4]);
    } else if (count == 5 && strcmp(command, "restore") == 0) {
        restore(words[2], words[3], words[4]);
    } else if (count == 3 && strcmp(command, "guard") == 0) {
        run_guard(words[2]);
    } else {
        fprintf(stderr, "usage: toolstack checkpoint DOMAIN DIRECTORY COUNT\n"
                        "       toolstack revert DOMAIN DIRECTORY CHECKPOINT\n"
                        "       toolstack restore DIRECTORY CHECKPOINT NAME\n");
        return 2;
    }
    return 0;
}
