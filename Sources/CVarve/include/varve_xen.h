// libvarve: checkpoints of running Xen domains, for toolstacks. Part of libvarve, beside varve.h,
// whose conventions hold here too.
//
// A session over a domain is opened here; captures, reverts and the rest are the functions
// varve_session_* and varve_capture_* of varve.h.
//
// Domains    A session is over a PVH domain. PV domains, and HVM domains with a device model, are
//            refused with VARVE_UNSUPPORTED; the tool `varve` takes checkpoints of PV domains.
// Host       x86-64, root in dom0, Xen 4.17 to 4.22. Xen's libraries are loaded when a function of
//            this header is first called: a program needs none to start. Where there are none, or
//            no Xen runs, each function returns VARVE_UNSUPPORTED, and the message says what is
//            missing. Xen's libraries report their failures on standard error, too.
// Ownership  A session owns its domain until it is closed: another one, in this process or in
//            another, is refused with VARVE_BUSY. The domain may be used meanwhile, also through
//            libxl; but do not save or migrate it, and leave its log-dirty mode alone.
// Suspension A capture by suspension (the default) asks the guest to suspend itself, as xl save
//            does, and lets it continue. A toolstack that waits for the domain's end is told of a
//            shutdown with the reason `suspend`, and must ignore it. xl's own process for a
//            domain's end ends then: see monitor_command.
// Failures   Whatever fails in a capture, the domain runs when the call returns. A domain that was
//            destroyed, has crashed or has shut down makes captures fail with VARVE_GUEST_FAILED.
// Death      If the program dies, even by SIGKILL, a guard resumes the domain within a second and
//            turns its log off; a suspension that the guest has begun is awaited, 60 s at most.
//            The guard is a process that the session starts. Without `guard_command` there is none,
//            and a domain that was paused stays so until it is unpaused or resumed by hand.
//            Checkpoints that existed are whole, and the next session continues after them.
// Processes  The library starts processes (guards, monitors, xl), and waits for each by its ID: a
//            program must not wait for children that are not its own, as wait(2) does.

#ifndef VARVE_XEN_H
#define VARVE_XEN_H

#include "varve.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- Sessions ----
enum varve_xen_pause {
    // The guest suspends itself. Its checkpoints can be restored as new domains and with disks.
    VARVE_XEN_SUSPEND = 0,
    // The hypervisor pauses it, whatever the guest supports. Its checkpoints can only be reverted
    // to in place and read; a domain with disks is refused, unless they are omitted.
    VARVE_XEN_PAUSE = 1
};

// A command is an array of words that ends with NULL, the first of which is a path, or a name that
// is looked up in PATH; "/proc/self/exe" is the program itself.
struct varve_xen_options {
    size_t size;
    int pause; // enum varve_xen_pause
    // How long the guest may take to suspend itself, at a capture; 0: 60 s.
    int64_t suspend_timeout_nanoseconds;
    // The same at a revert, after which it is stopped by force; 0: 10 s.
    int64_t revert_suspend_timeout_nanoseconds;
    // How long back ends may take in a revert to let go of the domain, and the guest to connect
    // them again; 0: 10 s.
    int64_t device_timeout_nanoseconds;
    // Works without the hypervisor's log: each capture compares every page in the pause.
    int compares_all;
    // Log-dirty mode may be on already, because the tool that turned it on is dead. Fatal to a
    // migration that is under way.
    int takes_log_over;
    // The domain was left standing still by a revert that failed or whose program died: the session
    // is for the revert that completes it.
    int finishes_revert;

    // A program that calls varve_xen_run_guard, such as {"/proc/self/exe", "guard", NULL}, or
    // {"/usr/bin/varve", "xen", "guard", NULL}; the domain's ID is added. NULL: no guard.
    const char *const *guard_command;
    // What the guard runs if the program dies in a revert when there is no way back; the id of the
    // checkpoint in hexadecimal is added. Such as {"/usr/bin/varve", "xen", "revert", "--finish",
    // "--wait", "10", DOMAIN, REPOSITORY, NULL}. NULL: the domain stands still then.
    const char *const *finish_command;
    // What takes the place of xl's process for the domain's end, if there is one as the session is
    // opened; the domain's ID is added. Such as {"/usr/bin/varve", "xen", "monitor",
    // "--background", NULL}. NULL: none, for toolstacks that wait for the end themselves.
    const char *const *monitor_command;

    // The disks that the domain can write to are captured with its memory, unless the session's
    // options have omits_disks. Thin volumes of device-mapper and raw files on XFS or btrfs can be
    // cut, served by blkback, and what disk_command cuts; a domain with another one is refused with
    // VARVE_UNSUPPORTED.
    const char *const *disk_command; // as Disks.md describes it; or NULL
    // A program that calls varve_xen_run_disk_guard: it resumes thin volumes if the program dies
    // while they are suspended. NULL: the next session of the domain does.
    const char *const *disk_guard_command;
    // Where cuts are noted, so that what a crash leaves is found; NULL: /var/lib/varve/disks.
    const char *disk_state_directory;
    // How long the suspended domain waits until no request to its disks is under way. 0: not.
    int64_t disk_settle_nanoseconds;
    // Where locks of domains are; all programs of a host must name the same. NULL: /run/varve.
    const char *lock_directory;

    // Called with a sentence when something costs more than it should, such as a thin pool that
    // becomes full; on any thread. Or NULL. The context must be valid until the session is closed.
    void (*notice)(void *context, const char *sentence);
    void *context;
};

// Finds the ID of a domain by its name, or by its ID in decimal. VARVE_NOT_FOUND if there is none.
int varve_xen_find(const char *name, uint32_t *domain_id);

// Begins a session over a running domain, which is not affected before the first capture. Both
// options may be NULL. Of the session's options, omits_disks leaves the domain's disks out, and
// keeps_disk_cut keeps the last cut of them; `files` must be NULL.
//
// VARVE_NOT_FOUND if there is no such domain; VARVE_BUSY if it has another owner;
// VARVE_ANOTHER_GUEST if the lineage is that of a domain with another UUID; VARVE_UNSUPPORTED if it
// cannot be checkpointed. Starts the guard. Drops what cuts of dead programs have left of the
// domain's disks. Blocks.
//
// In the functions of varve.h such a session is one over callbacks: `dirty`, `state` and the places
// for a state must be NULL. varve_session_revert reverts the domain in place, with its disks: it
// keeps its ID, and connects its devices again. If that fails after the first page was written the
// domain stands still (varve_xen_show): revert it once more, in this session or, with
// finishes_revert, in another. varve_session_close gives the domain back, which runs on.
int varve_session_open_xen(varve_repository *repository, const char *lineage, uint32_t domain_id,
                           const struct varve_session_options *options,
                           const struct varve_xen_options *xen_options, varve_session **session);

struct varve_xen_domain {
    size_t size;
    uint32_t domain_id;
    // A revert has failed and left the domain standing still, because it can neither go on as it
    // was nor as the checkpoint.
    int stands_still;
    // Why each capture compares every page; empty if the hypervisor's log is used.
    char compares_all_because[512];
    // What a guard has done to the domain after the death of a program before this one; empty if
    // nothing, or if an earlier session told.
    char guard_note[512];
};

// Describes the domain of a session; VARVE_INVALID_ARGUMENT for a session over something else.
int varve_xen_show(varve_session *session, struct varve_xen_domain *domain);

// ---- New domains ----
// Where the disks of a new domain come from.
enum varve_xen_disks {
    // There are none: a checkpoint that has disks is refused with VARVE_STATE_REJECTED.
    VARVE_XEN_DISKS_NONE = 0,
    // New sparse raw files in the directory `disks_place`: NAME-DISK.img, which must not exist yet.
    VARVE_XEN_DISKS_FILES = 1,
    // New thin volumes in the pool `disks_place` of device-mapper: NAME-DISK.
    VARVE_XEN_DISKS_VOLUMES = 2,
    // Snapshots, in the pool `disks_place`, of the cut from which the checkpoint's disks were read.
    // Made in milliseconds, while that cut stands: of the newest checkpoint of an open session, or
    // kept by keeps_disk_cut.
    VARVE_XEN_DISKS_SNAPSHOTS = 3,
    // The disks of the configuration as they are now. Right only if they hold what the checkpoint's
    // do, which is not checked: another state of its disks destroys a guest's file systems.
    VARVE_XEN_DISKS_UNCHECKED = 4
};

struct varve_xen_restore_options {
    size_t size;
    // Of the new domain, which then has a new UUID; NULL: the checkpoint's name and UUID. Required
    // while a domain has that name.
    const char *name;
    int is_paused; // the domain waits for an unpause
    // A configuration that replaces the checkpoint's: JSON as in the file of xl save, or an xl.cfg,
    // which excludes `name` and disks that are made. NULL: the checkpoint's.
    const void *configuration;
    size_t configuration_byte_count;
    int disks; // enum varve_xen_disks
    const char *disks_place;
    const char *disk_state_directory; // the session's, for snapshots; NULL: /var/lib/varve/disks
    // A checkpoint that omits its guest's disks may be started, over those of the configuration.
    int accepts_omitted_disks;
    const char *xl; // the program; NULL: xl, looked up in PATH
};

// Starts a checkpoint as a new domain, each page verified before it is passed on. It is built by
// `xl restore`, whose process stays for the domain's reboots and end. A toolstack that builds
// domains itself gives libxl_domain_create_restore a pipe instead, into which it exports the
// checkpoint (VARVE_FORMAT_XL, after whose header and configuration libxl's stream begins).
//
// VARVE_BUSY if a domain has the name; VARVE_STATE_REJECTED for a checkpoint by VARVE_XEN_PAUSE, of
// a later version of Xen, or whose disks the options do not provide. After a failure there is no
// new domain and no new disk. `options`, `call` and `domain_id` may be NULL. Blocks.
int varve_xen_restore(varve_repository *repository, const varve_id *id,
                      const struct varve_xen_restore_options *options,
                      const struct varve_call *call, uint32_t *domain_id);

// ---- Guards ----
// Runs as the guard of a session: for the program that guard_command names, which calls nothing of
// the library before, and ends after. Writes one byte to standard output when it is ready, where
// the program must write nothing itself. Reads standard input until the session is closed or its
// program dies, and then does what is left to do. `sentence` tells what that was, as a string that
// varve_free frees, or NULL if it was nothing; it may be NULL. Blocks until then.
int varve_xen_run_guard(uint32_t domain_id, char **sentence);
// The same for the program that disk_guard_command names.
int varve_xen_run_disk_guard(char **sentence);

#ifdef __cplusplus
}
#endif

#endif
