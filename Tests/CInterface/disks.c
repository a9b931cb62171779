#include <stdlib.h>

#include "disks.h"

const char *const disk_names[DISK_COUNT] = {"root", "data"};

// Counts a call, and returns what it returns.
static int enter(struct disks *disks, enum disk_callback callback) {
    pthread_mutex_lock(&disks->lock);
    disks->call_counts[callback]++;
    int result = 0;
    if (disks->failing == callback) {
        if (disks->calls_left > 0) {
            disks->calls_left--;
        } else if (disks->failures_left > 0) {
            disks->failures_left--;
            result = 9;
        }
    }
    pthread_mutex_unlock(&disks->lock);
    return result;
}

static void lie(struct disks *disks, enum disk_callback callback, const void **array,
                size_t *count) {
    if (disks->lie)
        disks->lie(disks, callback, array, count);
}

static size_t disk_index(const char *name) {
    for (size_t index = 0; index < DISK_COUNT; index++)
        if (strcmp(name, disk_names[index]) == 0)
            return index;
    CHECK(!"a disk of that name");
    return 0;
}

static uint64_t block_count(const struct image *image) {
    return (image->byte_count + PAGE - 1) / PAGE;
}

// The cut with a number, which gets another one: cuts are released on threads of the library.
static struct disk_cut *renumber_cut(struct disks *disks, uint64_t number, uint64_t next) {
    struct disk_cut *found = NULL;
    pthread_mutex_lock(&disks->lock);
    for (size_t index = 0; index < CUT_MAX && !found; index++)
        if (disks->cuts[index].number == number)
            found = &disks->cuts[index];
    if (found)
        found->number = next;
    pthread_mutex_unlock(&disks->lock);
    return found;
}

static struct disk_cut *find_cut(struct disks *disks, uint64_t number) {
    return renumber_cut(disks, number, number);
}

static int list(void *context, const struct varve_disk **found, size_t *count) {
    struct disks *disks = context;
    for (size_t index = 0; index < DISK_COUNT; index++) {
        memset(&disks->list[index], 0, sizeof disks->list[index]);
        disks->list[index].size = sizeof disks->list[index];
        disks->list[index].name = disk_names[index];
        disks->list[index].byte_count = disks->images[index].byte_count;
    }
    const void *array = disks->list;
    *count = DISK_COUNT;
    lie(disks, LIST, &array, count);
    *found = array;
    return enter(disks, LIST);
}

static int prepare(void *context, uint64_t number) {
    struct disks *disks = context;
    int result = enter(disks, PREPARE);
    if (result)
        return result;
    CHECK(number > 0 && find_cut(disks, number) == NULL);
    struct disk_cut *cut = renumber_cut(disks, 0, number);
    CHECK(cut != NULL);
    if (cut)
        cut->is_made = 0;
    return 0;
}

static int cut_disks(void *context, uint64_t number) {
    struct disks *disks = context;
    struct disk_cut *cut = find_cut(disks, number);
    CHECK(cut != NULL && !cut->is_made && disks->guest.is_paused);
    int result = enter(disks, CUT);
    if (result == 0 && cut) {
        memcpy(cut->images, disks->images, sizeof cut->images);
        cut->is_made = 1;
    }
    return result;
}

static int changed(void *context, uint64_t number, uint64_t earlier, const char *name,
                   const varve_range **blocks, size_t *count) {
    struct disks *disks = context;
    struct disk_cut *cut = find_cut(disks, number), *before = find_cut(disks, earlier);
    CHECK(cut && before && cut->is_made && before->is_made && number > earlier);
    size_t index = disk_index(name);
    *count = 0;
    for (uint64_t block = 0; cut && before && block < block_count(&cut->images[index]); block++)
        if (cut->images[index].written[block] != before->images[index].written[block]) {
            disks->ranges[*count].first = block;
            disks->ranges[(*count)++].count = 1;
        }
    const void *array = disks->ranges;
    lie(disks, CHANGED, &array, count);
    *blocks = array;
    return enter(disks, CHANGED);
}

static int stored(void *context, uint64_t number, const char *name, const varve_range **blocks,
                  size_t *count) {
    struct disks *disks = context;
    struct disk_cut *cut = find_cut(disks, number);
    CHECK(cut && cut->is_made);
    const struct image *image = &cut->images[disk_index(name)];
    *count = 0;
    for (uint64_t block = 0; block < block_count(image); block++)
        if (image->written[block] != 0) {
            disks->ranges[*count].first = block;
            disks->ranges[(*count)++].count = 1;
        }
    const void *array = disks->ranges;
    lie(disks, STORED, &array, count);
    *blocks = array;
    return enter(disks, STORED);
}

static int read_blocks(void *context, uint64_t number, const char *name, uint64_t first,
                       uint64_t count, void *bytes) {
    struct disks *disks = context;
    struct disk_cut *cut = find_cut(disks, number);
    CHECK(cut && cut->is_made);
    const struct image *image = &cut->images[disk_index(name)];
    CHECK(count > 0 && first + count <= block_count(image));
    memcpy(bytes, image->bytes + first * PAGE, count * PAGE);
    // What is past the end is the library's to clear.
    if ((first + count) * PAGE > image->byte_count)
        memset((uint8_t *)bytes + (image->byte_count - first * PAGE), 0xee,
               (first + count) * PAGE - image->byte_count);
    return enter(disks, READ);
}

static int release(void *context, uint64_t number) {
    struct disks *disks = context;
    CHECK(number > 0 && renumber_cut(disks, number, 0) != NULL);
    return enter(disks, RELEASE);
}

static int write_blocks(void *context, const char *name, uint64_t first, uint64_t count,
                        const void *bytes) {
    struct disks *disks = context;
    struct image *image = &disks->images[disk_index(name)];
    int result = enter(disks, WRITE_DISK);
    CHECK(disks->guest.is_paused && first + count <= block_count(image));
    // One that fails has done a part of its work.
    uint64_t done = result ? count / 2 : count;
    for (uint64_t block = first; block < first + done; block++) {
        uint64_t rest = image->byte_count - block * PAGE;
        memcpy(image->bytes + block * PAGE, (const uint8_t *)bytes + (block - first) * PAGE,
               rest < PAGE ? rest : PAGE);
        image->written[block] = ++disks->write_count;
    }
    return result;
}

static int resize(void *context, const char *name, uint64_t byte_count) {
    struct disks *disks = context;
    CHECK(disks->guest.is_paused);
    int result = enter(disks, RESIZE);
    if (result == 0)
        disks_resize(disks, disk_index(name), byte_count);
    return result;
}

void disks_resize(struct disks *disks, size_t index, uint64_t byte_count) {
    struct image *image = &disks->images[index];
    uint64_t before = block_count(image);
    if (byte_count < image->byte_count)
        memset(image->bytes + byte_count, 0, image->byte_count - byte_count);
    image->byte_count = byte_count;
    uint64_t after = block_count(image);
    // The last block that stays has been cut or made longer, and those after it are new or gone.
    uint64_t first = before < after ? before : after;
    for (uint64_t block = first ? first - 1 : 0; block < BLOCK_MAX; block++)
        image->written[block] = block < after ? ++disks->write_count : 0;
}

void disks_open(struct disks *disks, const char *directory) {
    memset(disks, 0, sizeof *disks);
    guest_open(&disks->guest);
    OK(varve_repository_create(directory, &disks->guest.repository));
    pthread_mutex_init(&disks->lock, NULL);
    disks->failing = DISK_CALLBACK_COUNT;
    disks_resize(disks, 0, 50 * PAGE);
    disks_resize(disks, 1, 20 * PAGE + 3 * 512);
    memset(disks->images[0].written, 0, sizeof disks->images[0].written);
    disks->callbacks.size = sizeof disks->callbacks;
    disks->callbacks.list = list;
    disks->callbacks.prepare = prepare;
    disks->callbacks.cut = cut_disks;
    disks->callbacks.changed = changed;
    disks->callbacks.stored = stored;
    disks->callbacks.read = read_blocks;
    disks->callbacks.release = release;
    disks->callbacks.write = write_blocks;
    disks->callbacks.resize = resize;
}

void disks_close(struct disks *disks) {
    OK(varve_session_close(disks->guest.session));
    OK(varve_repository_close(disks->guest.repository));
    CHECK(disks_cut_count(disks) == 0);
    CHECK(disks->guest.pause_count == disks->guest.resume_count);
    pthread_mutex_destroy(&disks->lock);
    guest_close(&disks->guest);
}

struct varve_callbacks disks_callbacks(struct disks *disks) {
    struct varve_callbacks callbacks = guest_callbacks();
    callbacks.disks = &disks->callbacks;
    return callbacks;
}

void disks_fail(struct disks *disks, enum disk_callback callback, int after, int times) {
    pthread_mutex_lock(&disks->lock);
    disks->failing = callback;
    disks->calls_left = after;
    disks->failures_left = times;
    pthread_mutex_unlock(&disks->lock);
}

void disks_run(struct disks *disks, size_t count) {
    machine_run(&disks->guest.machine, count);
    for (size_t round = 0; round < count; round++) {
        disks->write_count++;
        uint32_t random = disks->write_count * 2654435761u;
        struct image *image = &disks->images[random >> 8 & 1];
        uint64_t block = (random >> 9) % block_count(image);
        uint64_t rest = image->byte_count - block * PAGE;
        for (uint64_t offset = 0; offset < (rest < PAGE ? rest : PAGE); offset++)
            image->bytes[block * PAGE + offset] = (uint8_t)(random >> (offset % 24));
        image->written[block] = disks->write_count;
    }
}

int disks_cut_count(const struct disks *disks) {
    int count = 0;
    for (size_t index = 0; index < CUT_MAX; index++)
        count += disks->cuts[index].number != 0;
    return count;
}

struct image *disks_copy(const struct disks *disks) {
    struct image *copy = malloc(sizeof disks->images);
    memcpy(copy, disks->images, sizeof disks->images);
    return copy;
}

int disks_equal(const struct disks *disks, const struct image *copy) {
    for (size_t index = 0; index < DISK_COUNT; index++)
        if (disks->images[index].byte_count != copy[index].byte_count
            || memcmp(disks->images[index].bytes, copy[index].bytes, BLOCK_MAX * PAGE) != 0)
            return 0;
    return 1;
}

int checkpoint_has_disks(varve_repository *repository, const varve_id *id,
                         const struct image *copy) {
    for (size_t index = 0; index < DISK_COUNT; index++)
        if (!volume_equals(repository, id, disk_names[index], copy[index].bytes,
                           copy[index].byte_count))
            return 0;
    return 1;
}

int volume_equals(varve_repository *repository, const varve_id *id, const char *name,
                  const uint8_t *bytes, uint64_t byte_count) {
    SIZED(varve_volume, volume);
    int code = VARVE_OK;
    for (size_t index = 0; code == VARVE_OK && strcmp(volume.name, name) != 0; index++)
        code = varve_checkpoint_volume(repository, id, index, &volume);
    OK(code);
    CHECK(volume.extent_byte_count == byte_count);
    varve_reader *reader = NULL;
    OK(varve_reader_open(repository, id, name, &reader));
    if (code != VARVE_OK || reader == NULL || volume.extent_byte_count != byte_count)
        return 0;
    // One block more than there is.
    uint8_t *read = malloc(byte_count + PAGE);
    memset(read, 0xaa, byte_count + PAGE);
    OK(varve_reader_read(reader, 0, read, byte_count + PAGE));
    int is_equal = memcmp(read, bytes, byte_count) == 0;
    for (uint64_t offset = byte_count; offset < byte_count + PAGE; offset++)
        is_equal = is_equal && read[offset] == 0;
    free(read);
    OK(varve_reader_close(reader));
    return is_equal;
}
