// The repository, and the names of exports:
//
//   CHECKPOINT/VOLUME               a volume of a checkpoint
//   CHECKPOINT/VOLUME@since=OTHER   the blocks in which it differs from that of another checkpoint
//
// No name of a checkpoint has a slash. With the setting checkpoint=, "CHECKPOINT/" may be left out.

#define _POSIX_C_SOURCE 200809L
#include "served.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ID_LENGTH = 64, LISTED_CHECKPOINT_COUNT_MAX = 100 };
#define SINCE "@since="

struct settings settings = {.cache_byte_count = 64 << 20, .reader_count_max = 4};
varve_repository *repository;
static varve_id only;                            // of the setting checkpoint=
static char default_export[ID_LENGTH + 1 + 256]; // empty: none

void report_failure(const char *name) {
    if (name == NULL) {
        nbdkit_error("%s", varve_error_message());
        return;
    }
    // The name is a client's.
    char shown[160];
    size_t length = 0;
    for (; name[length] != 0 && length + 1 < sizeof shown; length++)
        shown[length] = name[length] < ' ' || name[length] == 127 ? '?' : name[length];
    shown[length] = 0;
    nbdkit_error("export '%s': %s", shown, varve_error_message());
}

static void format_id(const varve_id *id, char text[ID_LENGTH + 1]) {
    for (size_t i = 0; i < sizeof id->bytes; i++) snprintf(text + 2 * i, 3, "%02x", id->bytes[i]);
}

// The volume of a checkpoint with a number; returns libvarve's code.
static int describe_volume(const varve_id *id, size_t index, struct varve_volume *volume) {
    memset(volume, 0, sizeof *volume);
    volume->size = sizeof *volume;
    return varve_checkpoint_volume(repository, id, index, volume);
}

int store_size(const struct export_name *export, uint64_t *byte_count) {
    struct varve_volume volume;
    for (size_t index = 0;; index++) {
        int code = describe_volume(&export->id, index, &volume);
        if (code != VARVE_OK) return code;
        if (strcmp(volume.name, export->volume) != 0) continue;
        *byte_count = volume.extent_byte_count;
        return VARVE_OK;
    }
}

// The name of the only disk, if there is one and no other.
static int find_default_export(void) {
    struct varve_volume volume;
    size_t disk_count = 0;
    char id[ID_LENGTH + 1];
    format_id(&only, id);
    for (size_t index = 0;; index++) {
        int code = describe_volume(&only, index, &volume);
        if (code == VARVE_NOT_FOUND) break;
        if (code != VARVE_OK) {
            report_failure(NULL);
            return -1;
        }
        if (!volume.is_disk) continue;
        disk_count++;
        snprintf(default_export, sizeof default_export, "%s/%s", id, volume.name);
    }
    if (disk_count != 1) default_export[0] = 0;
    return 0;
}

int store_open(void) {
    if (varve_repository_open(settings.store, NULL, &repository) != VARVE_OK) {
        report_failure(NULL);
        return -1;
    }
    if (settings.checkpoint == NULL) return 0;
    if (varve_checkpoint_find(repository, settings.checkpoint, &only) != VARVE_OK) {
        report_failure(NULL);
        return -1;
    }
    return find_default_export();
}

void store_close(void) {
    if (repository != NULL) varve_repository_close(repository);
    repository = NULL;
}

int store_check(void) {
    pid_t child = fork();
    if (child == 0) _exit(store_open() == 0 ? 0 : 1);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) {
        nbdkit_error("cannot start a process that opens the repository: %m");
        return -1;
    }
    if (WIFSIGNALED(status))
        nbdkit_error("the process that opened the repository ended by signal %d",
                     WTERMSIG(status));
    return status == 0 ? 0 : -1;
}

const char *store_default_export(void) {
    return default_export[0] == 0 ? NULL : default_export;
}

static int find_checkpoint(const char *name, const char *export, varve_id *id) {
    if (varve_checkpoint_find(repository, name, id) == VARVE_OK) return 0;
    report_failure(export);
    return -1;
}

// Takes a name apart. The parts are in `text`; `checkpoint` is NULL if it was left out.
static int split(const char *name, char *text, const char **checkpoint, const char **volume,
                 const char **other) {
    *checkpoint = *other = NULL;
    if (name[0] == 0 && default_export[0] != 0) name = default_export;
    if (strlen(name) > NAME_LENGTH_MAX) {
        nbdkit_error("the name of the export is longer than %d bytes", NAME_LENGTH_MAX);
        return -1;
    }
    strcpy(text, name);
    char *slash = strchr(text, '/');
    if (slash != NULL) {
        *slash = 0;
        *checkpoint = text;
    }
    char *rest = slash == NULL ? text : slash + 1;
    // The last one: a disk may be named so.
    for (char *next = rest; (next = strstr(next, SINCE)) != NULL; next += strlen(SINCE))
        *other = next;
    *volume = rest;
    if (*other != NULL) {
        text[*other - text] = 0;
        *other += strlen(SINCE);
    }
    if (rest[0] != 0 && (slash != NULL || settings.checkpoint != NULL)) return 0;
    nbdkit_error("an export is named CHECKPOINT/VOLUME or CHECKPOINT/VOLUME" SINCE
                 "CHECKPOINT; 'nbdinfo --list' shows those of the newest checkpoints");
    return -1;
}

int store_parse(const char *name, struct export_name *export) {
    char text[NAME_LENGTH_MAX + 1];
    const char *checkpoint, *volume, *other;
    if (split(name, text, &checkpoint, &volume, &other) != 0) return -1;
    memset(export, 0, sizeof *export);
    export->id = only;
    if (checkpoint != NULL && find_checkpoint(checkpoint, name, &export->id) != 0) return -1;
    if (settings.checkpoint != NULL && memcmp(&export->id, &only, sizeof only) != 0) {
        nbdkit_error("only checkpoint '%s' is served, as checkpoint= says", settings.checkpoint);
        return -1;
    }
    if (strlen(volume) >= sizeof export->volume) {
        nbdkit_error("the name of the volume is longer than %zu bytes",
                     sizeof export->volume - 1);
        return -1;
    }
    strcpy(export->volume, volume);
    if (other == NULL) return 0;
    export->is_changes = 1;
    return find_checkpoint(other, name, &export->other);
}

void store_describe(const varve_id *id, const struct varve_volume *volume, char *text,
                    size_t byte_count) {
    struct varve_checkpoint checkpoint = {.size = sizeof checkpoint};
    if (varve_checkpoint_show(repository, id, &checkpoint) != VARVE_OK) {
        snprintf(text, byte_count, "%s", volume->name);
        return;
    }
    time_t seconds = (time_t)(checkpoint.time_nanoseconds / 1000000000);
    struct tm parts;
    char time[32] = "";
    if (gmtime_r(&seconds, &parts) != NULL) strftime(time, sizeof time, "%FT%TZ", &parts);
    snprintf(text, byte_count, "%s of %s%s%s, paused %s", volume->name, checkpoint.lineage,
             checkpoint.label[0] == 0 ? "" : ", label ", checkpoint.label, time);
}

void store_describe_export(const struct export_name *export, uint64_t byte_count, char *text,
                           size_t text_byte_count) {
    struct varve_volume volume = {.size = sizeof volume};
    snprintf(volume.name, sizeof volume.name, "%s", export->volume);
    char image[TEXT_BYTE_COUNT], other[ID_LENGTH + 1];
    store_describe(&export->id, &volume, image, sizeof image);
    if (!export->is_changes) {
        snprintf(text, text_byte_count, "%s, %" PRIu64 " bytes", image, byte_count);
        return;
    }
    format_id(&export->other, other);
    snprintf(text, text_byte_count,
             "changes since %.12s, NOT an image (what did not change reads as zeros): %s", other,
             image);
}

static int list_checkpoint(const varve_id *id,
                           int (*add)(void *context, const char *name, const char *description),
                           void *context) {
    char id_text[ID_LENGTH + 1], name[ID_LENGTH + 1 + 256], description[TEXT_BYTE_COUNT];
    format_id(id, id_text);
    struct varve_volume volume;
    for (size_t index = 0;; index++) {
        int code = describe_volume(id, index, &volume);
        // Past the last volume, or the checkpoint was forgotten meanwhile.
        if (code == VARVE_NOT_FOUND) return 0;
        if (code != VARVE_OK) {
            report_failure(NULL);
            return -1;
        }
        // A checkpoint of disks alone has a memory without pages.
        if (!volume.is_disk && volume.page_count == 0) continue;
        snprintf(name, sizeof name, "%s/%s", id_text, volume.name);
        store_describe(id, &volume, description, sizeof description);
        if (add(context, name, description) != 0) return -1;
    }
}

int store_list(int (*add)(void *context, const char *name, const char *description),
               void *context) {
    if (settings.checkpoint != NULL) return list_checkpoint(&only, add, context);
    struct varve_selection selection = {.size = sizeof selection,
                                        .newest = LISTED_CHECKPOINT_COUNT_MAX};
    varve_id *ids = NULL;
    size_t count = 0;
    if (varve_checkpoint_list(repository, &selection, &ids, &count) != VARVE_OK) {
        report_failure(NULL);
        return -1;
    }
    int result = 0;
    while (count > 0 && result == 0) result = list_checkpoint(&ids[--count], add, context);
    varve_free(ids);
    return result;
}
