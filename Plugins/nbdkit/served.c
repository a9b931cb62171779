// Exports that are open, with their readers. A reader of libvarve does one read at a time, so an
// export opens another one when all are in use, up to a limit: each has the volume's page map in
// memory. Each reader holds the checkpoint against a prune.

#define _POSIX_C_SOURCE 200809L
#include "served.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_BYTE_COUNT = 4096 };
enum served_state { SERVED_OPENING, SERVED_OPEN, SERVED_FAILED };

struct served {
    struct served *next;
    uint64_t number; // never used twice: it names the blocks in the cache
    unsigned reference_count;
    enum served_state state;
    struct export_name export;
    uint64_t byte_count;
    varve_range *data; // what is not a hole: frames
    size_t data_count;

    pthread_mutex_t lock; // of what follows
    pthread_cond_t reader_is_idle;
    varve_reader **idle; // room for all readers
    unsigned idle_count, reader_count;

    char name[]; // as it was asked for
};

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t state_changed = PTHREAD_COND_INITIALIZER;
static struct served *table;
static uint64_t last_number;

static int open_reader(const struct served *served, varve_reader **reader) {
    return varve_reader_open(repository, &served->export.id, served->export.volume, reader);
}

// Reads what an export consists of.
static int prepare(struct served *served) {
    if (store_parse(served->name, &served->export) != 0) return -1;
    varve_reader *reader = NULL;
    if (open_reader(served, &reader) != VARVE_OK) {
        report_failure(served->name);
        return -1;
    }
    served->idle[0] = reader;
    served->idle_count = served->reader_count = 1;
    int code = store_size(&served->export, &served->byte_count);
    if (code == VARVE_OK) {
        code = served->export.is_changes
                   ? varve_checkpoint_diff(repository, &served->export.other, &served->export.id,
                                           served->export.volume, &served->data,
                                           &served->data_count)
                   : varve_reader_extents(reader, &served->data, &served->data_count);
    }
    if (code != VARVE_OK) {
        report_failure(served->name);
        return -1;
    }
    // A volume that became smaller differs past its end.
    uint64_t end = (served->byte_count + PAGE_BYTE_COUNT - 1) / PAGE_BYTE_COUNT;
    while (served->data_count > 0 && served->data[served->data_count - 1].first >= end)
        served->data_count--;
    return 0;
}

static void destroy(struct served *served) {
    for (unsigned i = 0; i < served->idle_count; i++) varve_reader_close(served->idle[i]);
    varve_free(served->data);
    pthread_cond_destroy(&served->reader_is_idle);
    pthread_mutex_destroy(&served->lock);
    free(served->idle);
    free(served);
}

static struct served *create(const char *name) {
    size_t length = strlen(name) + 1;
    struct served *served = calloc(1, sizeof *served + length);
    if (served != NULL) served->idle = calloc(settings.reader_count_max, sizeof *served->idle);
    if (served == NULL || served->idle == NULL) {
        free(served);
        nbdkit_error("there is no memory to open an export");
        return NULL;
    }
    memcpy(served->name, name, length);
    served->reference_count = 1;
    pthread_mutex_init(&served->lock, NULL);
    pthread_cond_init(&served->reader_is_idle, NULL);
    return served;
}

// Takes an export out of the table; the caller has the lock.
static void remove_from_table(struct served *served) {
    struct served **place = &table;
    while (*place != served) place = &(*place)->next;
    *place = served->next;
}

void served_close(struct served *served) {
    pthread_mutex_lock(&table_lock);
    int is_last = --served->reference_count == 0;
    // One that failed is not in the table.
    if (is_last && served->state == SERVED_OPEN) remove_from_table(served);
    pthread_mutex_unlock(&table_lock);
    if (is_last) destroy(served);
}

// Waits until another connection has opened an export to which this one has a reference.
static struct served *join(struct served *served) {
    while (served->state == SERVED_OPENING) pthread_cond_wait(&state_changed, &table_lock);
    int is_open = served->state == SERVED_OPEN;
    pthread_mutex_unlock(&table_lock);
    if (is_open) return served;
    served_close(served);
    nbdkit_error("another connection could not open the same export");
    return NULL;
}

struct served *served_open(const char *name) {
    pthread_mutex_lock(&table_lock);
    for (struct served *served = table; served != NULL; served = served->next) {
        if (strcmp(served->name, name) != 0) continue;
        served->reference_count++;
        return join(served);
    }
    struct served *served = create(name);
    if (served != NULL) {
        served->number = ++last_number;
        served->next = table;
        table = served;
    }
    pthread_mutex_unlock(&table_lock);
    if (served == NULL) return NULL;

    int result = prepare(served);
    pthread_mutex_lock(&table_lock);
    served->state = result == 0 ? SERVED_OPEN : SERVED_FAILED;
    if (result != 0) remove_from_table(served);
    pthread_cond_broadcast(&state_changed);
    pthread_mutex_unlock(&table_lock);
    if (result == 0) return served;
    served_close(served);
    return NULL;
}

uint64_t served_byte_count(const struct served *served) { return served->byte_count; }

const struct export_name *served_name(const struct served *served) { return &served->export; }

int served_extent(const struct served *served, uint64_t offset, uint64_t *end) {
    uint64_t frame = offset / PAGE_BYTE_COUNT;
    // The first range that ends after the frame.
    size_t low = 0, high = served->data_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const varve_range *range = &served->data[middle];
        if (range->first + range->count <= frame)
            low = middle + 1;
        else
            high = middle;
    }
    *end = served->byte_count;
    if (low == served->data_count) return 0;
    const varve_range *range = &served->data[low];
    int is_data = range->first <= frame;
    uint64_t end_frame = is_data ? range->first + range->count : range->first;
    // The last block of a disk may be shorter than a page.
    if (end_frame < served->byte_count / PAGE_BYTE_COUNT + 1 &&
        end_frame * PAGE_BYTE_COUNT < *end)
        *end = end_frame * PAGE_BYTE_COUNT;
    return is_data;
}

// ---- Reading ----
static varve_reader *take_reader(struct served *served) {
    pthread_mutex_lock(&served->lock);
    if (served->idle_count == 0 && served->reader_count < settings.reader_count_max) {
        served->reader_count++;
        pthread_mutex_unlock(&served->lock);
        varve_reader *reader = NULL;
        if (open_reader(served, &reader) == VARVE_OK) return reader;
        // Such as for a checkpoint that was forgotten meanwhile, which the other readers hold.
        pthread_mutex_lock(&served->lock);
        served->reader_count--;
    }
    while (served->idle_count == 0) pthread_cond_wait(&served->reader_is_idle, &served->lock);
    varve_reader *reader = served->idle[--served->idle_count];
    pthread_mutex_unlock(&served->lock);
    return reader;
}

static void give_reader(struct served *served, varve_reader *reader) {
    pthread_mutex_lock(&served->lock);
    served->idle[served->idle_count++] = reader;
    pthread_cond_signal(&served->reader_is_idle);
    pthread_mutex_unlock(&served->lock);
}

// Reads and verifies; the code is libvarve's.
static int read_verified(struct served *served, uint64_t offset, void *bytes, size_t byte_count) {
    varve_reader *reader = take_reader(served);
    int code = varve_reader_read(reader, offset, bytes, byte_count);
    give_reader(served, reader);
    return code;
}

// Reads a part of a block of the cache.
static int read_part(struct served *served, uint64_t block, size_t offset, unsigned char *bytes,
                     size_t byte_count) {
    if (cache_get(served->number, block, offset, bytes, byte_count)) return VARVE_OK;
    uint64_t start = block * CACHE_BLOCK_BYTE_COUNT;
    unsigned char *whole = cache_wants(served->number, block, byte_count)
                               ? malloc(CACHE_BLOCK_BYTE_COUNT)
                               : NULL;
    // What is past the end of the volume reads as zeros.
    if (whole != NULL &&
        read_verified(served, start, whole, CACHE_BLOCK_BYTE_COUNT) == VARVE_OK) {
        cache_put(served->number, block, whole);
        memcpy(bytes, whole + offset, byte_count);
        free(whole);
        return VARVE_OK;
    }
    free(whole);
    // A damaged page must not make the pages beside it unreadable.
    return read_verified(served, start + offset, bytes, byte_count);
}

// Reads data: what is in whole blocks at once, and the rest by the cache.
static int read_data(struct served *served, uint64_t offset, unsigned char *bytes,
                     size_t byte_count) {
    while (byte_count > 0) {
        size_t skipped = offset % CACHE_BLOCK_BYTE_COUNT;
        size_t count = byte_count / CACHE_BLOCK_BYTE_COUNT * CACHE_BLOCK_BYTE_COUNT;
        int code;
        if (skipped == 0 && count > CACHE_BLOCK_BYTE_COUNT) {
            code = read_verified(served, offset, bytes, count);
        } else {
            count = CACHE_BLOCK_BYTE_COUNT - skipped;
            if (count > byte_count) count = byte_count;
            code = read_part(served, offset / CACHE_BLOCK_BYTE_COUNT, skipped, bytes, count);
        }
        if (code != VARVE_OK) return code;
        offset += count;
        bytes += count;
        byte_count -= count;
    }
    return VARVE_OK;
}

int served_read(struct served *served, void *place, uint64_t offset, size_t byte_count) {
    unsigned char *bytes = place;
    while (byte_count > 0) {
        uint64_t end;
        int is_data = served_extent(served, offset, &end);
        size_t count = end - offset < byte_count ? (size_t)(end - offset) : byte_count;
        if (!is_data) {
            memset(bytes, 0, count);
        } else {
            int code = read_data(served, offset, bytes, count);
            if (code != VARVE_OK) {
                report_failure(served->name);
                nbdkit_set_error(code == VARVE_NO_MEMORY ? ENOMEM : EIO);
                return -1;
            }
        }
        offset += count;
        bytes += count;
        byte_count -= count;
    }
    return 0;
}
