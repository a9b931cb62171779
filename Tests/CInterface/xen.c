// The functions of varve_xen.h, used wrongly, and where there is no Xen. The case `wrong_xen` also
// runs in dom0 of Xen's rig (Tests/XenRig/live.sh), where a domain that does not exist is looked
// for and not found.

#define _GNU_SOURCE
#include <unistd.h>

#include <varve_xen.h>

#include "cases.h"

enum { NO_DOMAIN = 32000 };

// Whether this is dom0.
static int runs_xen(void) {
    return access("/proc/xen/capabilities", F_OK) == 0;
}

// Each of the options that no session can have.
static void wrong_xen_options(varve_repository *repository) {
    varve_session *session = NULL;
    SIZED(varve_session_options, options);
    WRONG_SIZES(options, varve_session_open_xen(repository, "web", NO_DOMAIN, &options, NULL,
                                                &session));
    SIZED(varve_xen_options, xen);
#define REFUSED()                                                                                 \
    EXPECT(VARVE_INVALID_ARGUMENT,                                                                \
           varve_session_open_xen(repository, "web", NO_DOMAIN, NULL, &xen, &session))
#define WRONG(field, value)                                                                       \
    do {                                                                                          \
        memset(&xen, 0, sizeof xen);                                                              \
        xen.size = sizeof xen;                                                                    \
        xen.field = value;                                                                        \
        REFUSED();                                                                                \
    } while (0)
    WRONG_SIZES(xen, varve_session_open_xen(repository, "web", NO_DOMAIN, NULL, &xen, &session));
    static const char *const no_words[] = {NULL};
    static const char *const no_text[] = {"guard", "\xff\xfe", NULL};
    WRONG(pause, 2);
    WRONG(pause, -1);
    WRONG(suspend_timeout_nanoseconds, -1);
    WRONG(revert_suspend_timeout_nanoseconds, -1);
    WRONG(device_timeout_nanoseconds, INT64_MIN);
    WRONG(disk_settle_nanoseconds, -1);
    WRONG(guard_command, no_words);
    WRONG(guard_command, no_text);
    WRONG(finish_command, no_words);
    WRONG(monitor_command, no_words);
    WRONG(disk_command, no_words);
    WRONG(disk_guard_command, no_text);
    WRONG(disk_state_directory, "");
    WRONG(lock_directory, "\xff\xfe");
    SIZED(varve_files, files);
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.files = &files;
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_open_xen(repository, "web", NO_DOMAIN, &options, NULL, &session));
    CHECK(session == NULL);
#undef WRONG
#undef REFUSED
}

static void wrong_xen_restores(varve_repository *repository, const varve_id *id) {
    uint32_t domain = 7;
    SIZED(varve_xen_restore_options, options);
    WRONG_SIZES(options, varve_xen_restore(repository, id, &options, NULL, &domain));
    options.disks = 5;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_restore(repository, id, &options, NULL, &domain));
    for (int disks = VARVE_XEN_DISKS_FILES; disks <= VARVE_XEN_DISKS_SNAPSHOTS; disks++) {
        options.disks = disks;
        options.disks_place = NULL;
        EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_restore(repository, id, &options, NULL, &domain));
        options.disks_place = "";
        EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_restore(repository, id, &options, NULL, &domain));
    }
    // Its state is not that of a domain, so there is no cut.
    options.disks_place = "/dev/mapper/pool";
    EXPECT(VARVE_STATE_REJECTED, varve_xen_restore(repository, id, &options, NULL, &domain));
    options.disks = VARVE_XEN_DISKS_NONE;
    options.configuration = "";
    EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_restore(repository, id, &options, NULL, &domain));
    options.configuration = NULL;
    options.name = "\xff\xfe";
    EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_restore(repository, id, &options, NULL, &domain));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_restore(repository, NULL, NULL, NULL, &domain));
    varve_id unknown;
    memset(&unknown, 7, sizeof unknown);
    EXPECT(VARVE_NOT_FOUND, varve_xen_restore(repository, &unknown, NULL, NULL, &domain));
    CHECK(domain == 7);
}

// Where no Xen runs, one sentence says so; in dom0 the domain is not found.
static void no_domain(varve_repository *repository, const varve_id *id) {
    int code = runs_xen() ? VARVE_NOT_FOUND : VARVE_UNSUPPORTED;
    printf("wrong_xen: %s\n", runs_xen() ? "in dom0" : "without Xen");
    varve_session *session = NULL;
    uint32_t domain = 7;
    EXPECT(code, varve_xen_find("no such domain", &domain));
    if (runs_xen())
        CHECK(strstr(varve_error_message(), "there is no domain 'no such domain'"));
    else
        CHECK(strstr(varve_error_message(), "Xen"));
    EXPECT(code, varve_session_open_xen(repository, "web", NO_DOMAIN, NULL, NULL, &session));
    EXPECT(code, varve_session_open_xen(repository, "web", 0, NULL, NULL, &session));
    CHECK(session == NULL && domain == 7);
    if (runs_xen())
        return;
    char *sentence = (char *)repository;
    EXPECT(VARVE_UNSUPPORTED, varve_xen_run_guard(NO_DOMAIN, &sentence));
    CHECK(sentence == NULL);
    EXPECT(VARVE_UNSUPPORTED, varve_xen_run_guard(NO_DOMAIN, NULL));
    EXPECT(VARVE_UNSUPPORTED, varve_xen_restore(repository, id, NULL, NULL, &domain));
    CHECK(domain == 7);
}

void wrong_xen(const char *directory) {
    struct machine machine;
    machine_open(&machine);
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_session *regions = NULL, *session = NULL;
    OK(varve_session_open_regions(repository, "machine", machine.regions, REGION_COUNT, NULL,
                                  &regions));
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(regions, NULL, NULL, &result));
    uint32_t domain = 7;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_find(NULL, &domain));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_find("web", NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_find("\xff\xfe", &domain));
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_open_xen(repository, NULL, NO_DOMAIN, NULL, NULL, &session));
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_open_xen(repository, "web", NO_DOMAIN, NULL, NULL, NULL));
    EXPECT(VARVE_INVALID_NAME,
           varve_session_open_xen(repository, "-", NO_DOMAIN, NULL, NULL, &session));
    SIZED(varve_xen_domain, described);
    WRONG_SIZES(described, varve_xen_show(regions, &described));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_show(regions, NULL));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_xen_show(regions, &described));
    CHECK(strstr(varve_error_message(), "not one over a Xen domain"));
    wrong_xen_options(repository);
    wrong_xen_restores(repository, &result.id);
    no_domain(repository, &result.id);
    // No session that failed is counted as open.
    OK(varve_session_close(regions));
    OK(varve_repository_close(repository));
    machine_close(&machine);
}
