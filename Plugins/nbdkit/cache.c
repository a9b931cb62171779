// A hash table of blocks whose entries are also in a list, the one that was used last first. Memory
// for a block is allocated as the cache fills, and then reused. nbdkit's own filter `cache` has one
// copy of a block for all exports, and would mix them up.

#define _POSIX_C_SOURCE 200809L
#include "served.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    uint64_t owner, block;
    struct entry *next_in_bucket;
    struct entry *newer, *older;
    unsigned char bytes[CACHE_BLOCK_BYTE_COUNT];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry **buckets; // a power of two of them; NULL: nothing is kept
static size_t bucket_count, entry_count, entry_count_max;
static struct entry *newest, *oldest;

// The blocks of which a part was read and not found, each in a place that its hash gives. One that
// another displaces is only forgotten.
#define MISS_COUNT 4096
static struct { uint64_t owner, block; } misses[MISS_COUNT];

int cache_create(size_t byte_count) {
    entry_count_max = byte_count / CACHE_BLOCK_BYTE_COUNT;
    if (entry_count_max == 0) return 0;
    bucket_count = 16;
    while (bucket_count < entry_count_max) bucket_count *= 2;
    buckets = calloc(bucket_count, sizeof *buckets);
    return buckets == NULL ? -1 : 0;
}

void cache_free(void) {
    while (newest != NULL) {
        struct entry *entry = newest;
        newest = entry->older;
        free(entry);
    }
    free(buckets);
    buckets = NULL;
    oldest = NULL;
    entry_count = 0;
}

static uint64_t hash_of(uint64_t owner, uint64_t block) {
    return ((owner * 0x9e3779b97f4a7c15u + block) * 0xff51afd7ed558ccdu) >> 32;
}

static struct entry **bucket_of(uint64_t owner, uint64_t block) {
    return &buckets[hash_of(owner, block) & (bucket_count - 1)];
}

static void leave_list(struct entry *entry) {
    *(entry->newer == NULL ? &newest : &entry->newer->older) = entry->older;
    *(entry->older == NULL ? &oldest : &entry->older->newer) = entry->newer;
}

static void join_list(struct entry *entry) {
    entry->newer = NULL;
    entry->older = newest;
    *(newest == NULL ? &oldest : &newest->newer) = entry;
    newest = entry;
}

static struct entry *find(uint64_t owner, uint64_t block) {
    struct entry *entry = *bucket_of(owner, block);
    while (entry != NULL && (entry->owner != owner || entry->block != block))
        entry = entry->next_in_bucket;
    return entry;
}

int cache_get(uint64_t owner, uint64_t block, size_t offset, void *bytes, size_t byte_count) {
    if (buckets == NULL) return 0;
    pthread_mutex_lock(&lock);
    struct entry *entry = find(owner, block);
    if (entry != NULL) {
        leave_list(entry);
        join_list(entry);
        memcpy(bytes, entry->bytes + offset, byte_count);
    }
    pthread_mutex_unlock(&lock);
    return entry != NULL;
}

int cache_wants(uint64_t owner, uint64_t block, size_t byte_count) {
    if (buckets == NULL) return 0;
    if (byte_count * 4 >= CACHE_BLOCK_BYTE_COUNT) return 1;
    size_t place = hash_of(owner, block) % MISS_COUNT;
    pthread_mutex_lock(&lock);
    int is_second = misses[place].owner == owner && misses[place].block == block;
    misses[place].owner = is_second ? 0 : owner;
    misses[place].block = block;
    pthread_mutex_unlock(&lock);
    return is_second;
}

// An entry that is in no bucket and not in the list; NULL if there is no memory for one.
static struct entry *take(void) {
    if (entry_count < entry_count_max) {
        struct entry *entry = malloc(sizeof *entry);
        if (entry != NULL) {
            entry_count++;
            return entry;
        }
    }
    struct entry *entry = oldest;
    if (entry == NULL) return NULL;
    leave_list(entry);
    struct entry **place = bucket_of(entry->owner, entry->block);
    while (*place != entry) place = &(*place)->next_in_bucket;
    *place = entry->next_in_bucket;
    return entry;
}

void cache_put(uint64_t owner, uint64_t block, const void *bytes) {
    if (buckets == NULL) return;
    pthread_mutex_lock(&lock);
    // Another thread may have read the same block.
    if (find(owner, block) == NULL) {
        struct entry *entry = take();
        if (entry != NULL) {
            entry->owner = owner;
            entry->block = block;
            memcpy(entry->bytes, bytes, CACHE_BLOCK_BYTE_COUNT);
            struct entry **bucket = bucket_of(owner, block);
            entry->next_in_bucket = *bucket;
            *bucket = entry;
            join_list(entry);
        }
    }
    pthread_mutex_unlock(&lock);
}
