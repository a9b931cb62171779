// What the plugin serves: a volume of a checkpoint, or the blocks in which it differs from another
// one. The functions report failures by nbdkit_error, in one sentence.

#ifndef SERVED_H
#define SERVED_H

#include <stddef.h>
#include <stdint.h>
#include <varve.h>

// ---- store.c: the repository, and names in it ----
enum { NAME_LENGTH_MAX = 4096, TEXT_BYTE_COUNT = 1024 };

struct settings {
    char *store;      // the path of the repository
    char *checkpoint; // the only one that is served; or NULL
    size_t cache_byte_count;
    unsigned reader_count_max; // of one export
};
extern struct settings settings;
extern varve_repository *repository;

// Opens the repository, and finds the checkpoint of the settings in it.
int store_open(void);
void store_close(void);
// The same in another process, which reports what is wrong by this one: what nbdkit prints once it
// is a daemon is not seen, and libvarve must not be called before nbdkit becomes one.
int store_check(void);
// The export that "" means; NULL if there is none.
const char *store_default_export(void);

// What the name of an export means.
struct export_name {
    varve_id id;
    char volume[256];
    int is_changes; // since `other`
    varve_id other;
};
int store_parse(const char *name, struct export_name *export);
// Where an export ends; returns libvarve's code.
int store_size(const struct export_name *export, uint64_t *byte_count);
// Describes a volume of a checkpoint in one line.
void store_describe(const varve_id *id, const struct varve_volume *volume, char *text,
                    size_t byte_count);
// Describes what an export is in one line.
void store_describe_export(const struct export_name *export, uint64_t byte_count, char *text,
                           size_t text_byte_count);
// Calls `add` for each export to list: of the newest checkpoints, the newest first.
int store_list(int (*add)(void *context, const char *name, const char *description),
               void *context);
// Reports the last failure of libvarve, for an export or for the repository (NULL).
void report_failure(const char *name);

// ---- served.c: exports that are open ----
// One that is open. All connections that ask for the same name share it, and so see the same
// checkpoint: a name such as "web" means another one after the next capture.
struct served;

struct served *served_open(const char *name);
void served_close(struct served *served);
uint64_t served_byte_count(const struct served *served);
const struct export_name *served_name(const struct served *served);
int served_read(struct served *served, void *bytes, uint64_t offset, size_t byte_count);
// The extent that an offset is in: returns 1 if it is data and 0 for a hole, and where it ends.
int served_extent(const struct served *served, uint64_t offset, uint64_t *end);

// ---- cache.c: a bounded cache of blocks, shared by all exports ----
enum { CACHE_BLOCK_BYTE_COUNT = 65536 };

int cache_create(size_t byte_count);
void cache_free(void);
// Copies bytes out of a block; returns 0 if it is not there.
int cache_get(uint64_t owner, uint64_t block, size_t offset, void *bytes, size_t byte_count);
// True if a block of which a part is to be read, and which is not there, should be read as a whole:
// if it is a large part, or the second one. Verifying all of it for one page takes twice as long.
int cache_wants(uint64_t owner, uint64_t block, size_t byte_count);
// Keeps a copy of a whole block, in place of the one that was used least recently.
void cache_put(uint64_t owner, uint64_t block, const void *bytes);

#endif
