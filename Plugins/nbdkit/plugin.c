// nbdkit-varve-plugin: serves checkpoints of a repository as block devices. See README.md.

#define _POSIX_C_SOURCE 200809L
#include "served.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <stdlib.h>
#include <string.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static int set_path(const char *value) {
    free(settings.store);
    // nbdkit changes its directory when it becomes a daemon.
    settings.store = nbdkit_absolute_path(value);
    return settings.store == NULL ? -1 : 0;
}

static int set_checkpoint(const char *value) {
    free(settings.checkpoint);
    settings.checkpoint = strdup(value);
    if (settings.checkpoint == NULL) nbdkit_error("there is no memory for the settings");
    return settings.checkpoint == NULL ? -1 : 0;
}

static int config(const char *key, const char *value) {
    if (strcmp(key, "store") == 0) return set_path(value);
    if (strcmp(key, "checkpoint") == 0) return set_checkpoint(value);
    if (strcmp(key, "cache") == 0) {
        int64_t byte_count = nbdkit_parse_size(value);
        if (byte_count < 0) return -1;
        settings.cache_byte_count = (size_t)byte_count;
        return 0;
    }
    if (strcmp(key, "readers") == 0) {
        if (nbdkit_parse_unsigned("readers", value, &settings.reader_count_max) != 0) return -1;
        if (settings.reader_count_max >= 1 && settings.reader_count_max <= 64) return 0;
        nbdkit_error("readers=%s: an export has 1 to 64 readers", value);
        return -1;
    }
    nbdkit_error("'%s' is no parameter of this plugin; it has store, checkpoint, cache and "
                 "readers", key);
    return -1;
}

static int config_complete(void) {
    if (settings.store != NULL) return 0;
    nbdkit_error("name the repository: nbdkit varve store=PATH [checkpoint=NAME]");
    return -1;
}

static void unload(void) {
    store_close();
    cache_free();
    free(settings.store);
    free(settings.checkpoint);
}

static int get_ready(void) {
    if (cache_create(settings.cache_byte_count) == 0) return store_check();
    nbdkit_error("there is no memory for a cache of %zu bytes", settings.cache_byte_count);
    return -1;
}

static int after_fork(void) { return store_open(); }

static int add_export(void *context, const char *name, const char *description) {
    return nbdkit_add_export(context, name, description);
}

static int list_exports(int readonly, int is_tls, struct nbdkit_exports *exports) {
    (void)readonly;
    (void)is_tls;
    return store_list(add_export, exports);
}

static const char *find_default_export(int readonly, int is_tls) {
    (void)readonly;
    (void)is_tls;
    const char *name = store_default_export();
    // The name "" is then refused as any other that does not exist, with a sentence.
    return name == NULL ? "" : name;
}

static void *open_export(int readonly) {
    (void)readonly;
    return served_open(nbdkit_export_name());
}

static void close_export(void *handle) { served_close(handle); }

static const char *describe_export(void *handle) {
    char text[TEXT_BYTE_COUNT];
    store_describe_export(served_name(handle), served_byte_count(handle), text, sizeof text);
    return nbdkit_strdup_intern(text);
}

static int64_t get_size(void *handle) {
    uint64_t byte_count = served_byte_count(handle);
    if (byte_count <= INT64_MAX) return (int64_t)byte_count;
    nbdkit_error("the volume is larger than 2^63 bytes");
    return -1;
}

// All connections to a name see the same checkpoint, which never changes.
static int can_multi_conn(void *handle) {
    (void)handle;
    return 1;
}

static int get_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
                          uint32_t *maximum) {
    (void)handle;
    *minimum = 1;
    *preferred = CACHE_BLOCK_BYTE_COUNT;
    *maximum = 32 << 20;
    return 0;
}

static int read_export(void *handle, void *bytes, uint32_t count, uint64_t offset,
                       uint32_t flags) {
    (void)flags;
    return served_read(handle, bytes, offset, count);
}

static int find_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                        struct nbdkit_extents *extents) {
    uint64_t end = offset + count;
    while (offset < end) {
        uint64_t next;
        int is_data = served_extent(handle, offset, &next);
        uint32_t type = is_data ? 0 : NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;
        if (nbdkit_add_extent(extents, offset, next - offset, type) != 0) return -1;
        if ((flags & NBDKIT_FLAG_REQ_ONE) != 0) break;
        offset = next;
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "varve",
    .version = VARVE_VERSION,
    .longname = "checkpoints of a Varve repository",
    .description = "Serves volumes of checkpoints, and what changed between two, read-only.",
    .config = config,
    .config_complete = config_complete,
    .config_help =
        "[store=]PATH          the repository\n"
        "checkpoint=NAME       serve this checkpoint alone\n"
        "cache=SIZE            memory for blocks that were read, 64M by default; 0: none\n"
        "readers=COUNT         reads of one export at the same time, 4 by default; each takes\n"
        "                      memory for 0.8 % of what the volume holds",
    .magic_config_key = "store",
    .unload = unload,
    .get_ready = get_ready,
    .after_fork = after_fork,
    .list_exports = list_exports,
    .default_export = find_default_export,
    .open = open_export,
    .close = close_export,
    .export_description = describe_export,
    .get_size = get_size,
    .can_multi_conn = can_multi_conn,
    .block_size = get_block_size,
    .pread = read_export,
    .extents = find_extents,
};

NBDKIT_REGISTER_PLUGIN(plugin)
