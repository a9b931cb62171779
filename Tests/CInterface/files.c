#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disks.h"

// Raw files that are disks. Where files can be cloned is in the environment: Tests/CInterface/check
// mounts such a file system.

enum { FILE_COUNT = 2, FILE_BYTES_MAX = 200 * PAGE };

struct files {
    char directory[2048];
    char paths[FILE_COUNT][2100];
    char state[2100];
    int descriptors[FILE_COUNT];
    struct varve_file list[FILE_COUNT];
    struct varve_files files;
    struct machine machine;
    uint32_t random;
};

struct file_copy {
    uint64_t byte_counts[FILE_COUNT];
    uint8_t bytes[FILE_COUNT][FILE_BYTES_MAX];
    uint8_t *memory;
    varve_id id;
};

// Creates the files, or opens those that are there.
static void open_files(struct files *files, const char *directory) {
    static const char *const names[FILE_COUNT] = {"root", "data"};
    memset(files, 0, sizeof *files);
    snprintf(files->directory, sizeof files->directory, "%s", directory);
    snprintf(files->state, sizeof files->state, "%s/state", directory);
    int is_new = mkdir(directory, 0700) == 0;
    for (size_t index = 0; index < FILE_COUNT; index++) {
        snprintf(files->paths[index], sizeof files->paths[index], "%s/%s.img", directory,
                 names[index]);
        files->descriptors[index] = open(files->paths[index], O_RDWR | O_CREAT, 0600);
        CHECK(files->descriptors[index] >= 0);
        off_t byte_count = 100 * PAGE + (off_t)index * 512;
        CHECK(!is_new || ftruncate(files->descriptors[index], byte_count) == 0);
        files->list[index].size = sizeof files->list[index];
        files->list[index].name = names[index];
        files->list[index].path = files->paths[index];
    }
    files->files.size = sizeof files->files;
    files->files.files = files->list;
    files->files.count = FILE_COUNT;
    files->files.state_directory = files->state;
    machine_open(&files->machine);
}

static void close_files(struct files *files) {
    for (size_t index = 0; index < FILE_COUNT; index++)
        close(files->descriptors[index]);
    machine_close(&files->machine);
}

static uint64_t file_size(const struct files *files, size_t index) {
    struct stat status;
    CHECK(fstat(files->descriptors[index], &status) == 0);
    return (uint64_t)status.st_size;
}

// The guest runs: it writes to its memory and its disks.
static void run(struct files *files, size_t count) {
    machine_run(&files->machine, count);
    for (size_t round = 0; round < count; round++) {
        files->random = files->random * 1664525u + 1013904223u;
        size_t index = files->random >> 31;
        uint64_t sector = (files->random >> 8) % (file_size(files, index) / 512);
        uint32_t words[128];
        for (size_t word = 0; word < 128; word++)
            words[word] = files->random ^ (uint32_t)word;
        CHECK(pwrite(files->descriptors[index], words, 512, (off_t)sector * 512) == 512);
    }
}

static struct file_copy *copy_files(const struct files *files) {
    struct file_copy *copy = calloc(1, sizeof *copy);
    for (size_t index = 0; index < FILE_COUNT; index++) {
        copy->byte_counts[index] = file_size(files, index);
        CHECK(copy->byte_counts[index] <= FILE_BYTES_MAX);
        CHECK(pread(files->descriptors[index], copy->bytes[index], FILE_BYTES_MAX, 0)
              == (ssize_t)copy->byte_counts[index]);
    }
    copy->memory = machine_copy(&files->machine);
    return copy;
}

static void free_copy(struct file_copy *copy) {
    free(copy->memory);
    free(copy);
}

static void check_files(const struct files *files, const struct file_copy *copy) {
    struct file_copy *now = copy_files(files);
    CHECK(memcmp(now->byte_counts, copy->byte_counts, sizeof now->byte_counts) == 0);
    CHECK(memcmp(now->bytes, copy->bytes, sizeof now->bytes) == 0);
    free_copy(now);
}

static void check_checkpoint(varve_repository *repository, const struct files *files,
                             const struct file_copy *copy) {
    CHECK(checkpoint_equals(repository, &copy->id, &files->machine, copy->memory));
    for (size_t index = 0; index < FILE_COUNT; index++)
        CHECK(volume_equals(repository, &copy->id, files->list[index].name, copy->bytes[index],
                            copy->byte_counts[index]));
    SIZED(varve_checkpoint, checkpoint);
    OK(varve_checkpoint_show(repository, &copy->id, &checkpoint));
    CHECK(checkpoint.volume_count == 1 + FILE_COUNT && !checkpoint.omits_disks);
}

// Files in the directory that cuts have left.
static int clone_count(const struct files *files) {
    DIR *directory = opendir(files->directory);
    CHECK(directory != NULL);
    int count = 0;
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        count += strstr(entry->d_name, ".varve-cut-") != NULL;
    closedir(directory);
    return count;
}

static varve_session *open_session(varve_repository *repository, struct files *files,
                                   int keeps_cut) {
    SIZED(varve_session_options, options);
    options.files = &files->files;
    options.keeps_disk_cut = keeps_cut;
    options.worker_count = 2;
    varve_session *session = NULL;
    OK(varve_session_open_regions(repository, "machine", files->machine.regions, REGION_COUNT,
                                  &options, &session));
    return session;
}

static struct file_copy *take(varve_session *session, struct files *files) {
    struct file_copy *copy = copy_files(files);
    struct varve_capture_input input = machine_input(&files->machine);
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(session, &input, NULL, &result));
    CHECK(result.disk_nanoseconds > 0);
    machine_clean(&files->machine);
    copy->id = result.id;
    return copy;
}

static void take_twenty(const char *directory, struct files *files) {
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_session *session = open_session(repository, files, 1);
    struct file_copy *copies[20];
    for (int index = 0; index < 20; index++) {
        run(files, 10);
        if (index % 6 == 5)
            CHECK(ftruncate(files->descriptors[1], (off_t)(80 + index * 3) * PAGE + 512) == 0);
        copies[index] = take(session, files);
    }
    for (int index = 0; index < 20; index++)
        check_checkpoint(repository, files, copies[index]);
    for (int index = 19; index >= 0; index -= 3) {
        run(files, 10);
        SIZED(varve_revert_result, result);
        OK(varve_session_revert(session, &copies[index]->id, &files->machine.dirty, NULL, &result,
                                NULL, NULL));
        machine_clean(&files->machine);
        check_files(files, copies[index]);
        CHECK(machine_equals(&files->machine, copies[index]->memory));
        CHECK(result.written_block_count > 0 && result.written_page_count > 0);
    }
    run(files, 10);
    struct file_copy *last = take(session, files);
    check_checkpoint(repository, files, last);
    OK(varve_session_disk_failure(session));
    OK(varve_session_close(session));
    // The last cut was kept, and the next session takes it over.
    CHECK(clone_count(files) == FILE_COUNT);
    free_copy(last);
    session = open_session(repository, files, 0);
    run(files, 10);
    last = take(session, files);
    check_checkpoint(repository, files, last);
    OK(varve_session_disk_failure(session));
    OK(varve_session_close(session));
    CHECK(clone_count(files) == 0);
    free_copy(last);

    // A session that would drop the disks of its lineage.
    session = NULL;
    EXPECT(VARVE_INVALID_ARGUMENT,
           varve_session_open_regions(repository, "machine", files->machine.regions, REGION_COUNT,
                                      NULL, &session));
    OK(varve_repository_close(repository));
    for (int index = 0; index < 20; index++)
        free_copy(copies[index]);
}

// With a guest of callbacks, whose memory is another one.
static void take_with_callbacks(const char *directory, struct files *files) {
    char place[2048];
    snprintf(place, sizeof place, "%s-callbacks", directory);
    struct guest *guest = malloc(sizeof *guest);
    guest_open(guest);
    OK(varve_repository_create(place, &guest->repository));
    struct varve_callbacks callbacks = guest_callbacks();
    SIZED(varve_session_options, options);
    options.files = &files->files;
    OK(varve_session_open_callbacks(guest->repository, "guest", &callbacks, guest, &options,
                                    &guest->session));
    struct file_copy *copy = copy_files(files);
    uint8_t *memory = machine_copy(&guest->machine);
    SIZED(varve_capture_result, result);
    OK(varve_session_capture(guest->session, NULL, NULL, &result));
    run(files, 10);
    machine_run(&guest->machine, 10);
    OK(varve_session_revert(guest->session, &result.id, NULL, NULL, NULL, NULL, NULL));
    check_files(files, copy);
    CHECK(machine_equals(&guest->machine, memory));
    OK(varve_session_close(guest->session));
    CHECK(clone_count(files) == 0);
    OK(varve_repository_close(guest->repository));
    free(memory);
    free_copy(copy);
    guest_close(guest);
    free(guest);
}

// Takes a checkpoint, and ends without closing anything.
static void die(const char *directory, const char *place) {
    struct files *files = malloc(sizeof *files);
    open_files(files, place);
    char store[2048];
    snprintf(store, sizeof store, "%s-dies", directory);
    varve_repository *repository = NULL;
    OK(varve_repository_create(store, &repository));
    free_copy(take(open_session(repository, files, 1), files));
    _exit(failure_count == 0 ? 7 : 1);
}

// What a process that died has left is removed by the next session, of another lineage here.
static void remove_leftovers(const char *directory, const char *mounted) {
    char parent[2048], program[4096] = "", place[2048], store[2048];
    snprintf(parent, sizeof parent, "%.*s", (int)(strrchr(directory, '/') - directory), directory);
    CHECK(readlink("/proc/self/exe", program, sizeof program - 1) > 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        setenv("VARVE_DIES", "1", 1);
        execl(program, "cases", parent, "right_files", (char *)NULL);
        _exit(1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    snprintf(place, sizeof place, "%s/%d", mounted, (int)child);
    snprintf(store, sizeof store, "%s-dies", directory);
    struct files *files = malloc(sizeof *files);
    open_files(files, place);
    CHECK(clone_count(files) == FILE_COUNT);
    varve_repository *repository = NULL;
    SIZED(varve_open_options, writing);
    writing.access = VARVE_WRITING;
    OK(varve_repository_open(store, &writing, &repository));
    SIZED(varve_session_options, options);
    options.files = &files->files;
    varve_session *session = NULL;
    OK(varve_session_open_regions(repository, "other", files->machine.regions, REGION_COUNT,
                                  &options, &session));
    CHECK(clone_count(files) == 0);
    OK(varve_session_disk_failure(session));
    OK(varve_session_close(session));
    OK(varve_repository_close(repository));
    close_files(files);
    free(files);
}

void right_files(const char *directory) {
    const char *mounted = getenv("VARVE_REFLINKS");
    if (!mounted) {
        printf("skipped, files as disks of libvarve: a file system with reflinks "
               "cannot be made or mounted here\n");
        return;
    }
    char place[1024];
    snprintf(place, sizeof place, "%s/%d", mounted, (int)getpid());
    if (getenv("VARVE_DIES"))
        die(directory, place);
    struct files *files = malloc(sizeof *files);
    open_files(files, place);
    take_twenty(directory, files);
    machine_clean(&files->machine);
    take_with_callbacks(directory, files);
    remove_leftovers(directory, mounted);
    close_files(files);
    free(files);
}

static void refuse(varve_repository *repository, struct files *files, int code) {
    SIZED(varve_session_options, options);
    options.files = &files->files;
    varve_session *session = NULL;
    EXPECT(code, varve_session_open_regions(repository, "other", files->machine.regions,
                                            REGION_COUNT, &options, &session));
    CHECK(session == NULL);
}

void wrong_files(const char *directory) {
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    char place[2048];
    snprintf(place, sizeof place, "%s-files", directory);
    struct files *files = malloc(sizeof *files);
    open_files(files, place);
    const struct varve_files right = files->files;
    const struct varve_file first = files->list[0];
#define WITH(code, change)                                                                        \
    do {                                                                                          \
        change;                                                                                   \
        refuse(repository, files, code);                                                          \
        files->files = right;                                                                     \
        files->list[0] = first;                                                                   \
    } while (0)
    WITH(VARVE_INVALID_ARGUMENT, files->files.size = 8);
    WITH(VARVE_INVALID_ARGUMENT, files->files.files = NULL);
    WITH(VARVE_INVALID_ARGUMENT, files->files.count = 0);
    WITH(VARVE_INVALID_ARGUMENT, files->files.count = (size_t)-1);
    WITH(VARVE_INVALID_ARGUMENT, files->files.count = 100000);
    WITH(VARVE_INVALID_ARGUMENT, files->files.state_directory = NULL);
    WITH(VARVE_INVALID_ARGUMENT, files->files.state_directory = "");
    WITH(VARVE_CALL_FAILED, files->files.state_directory = "/nowhere/state");
    WITH(VARVE_INVALID_ARGUMENT, files->list[0].size = 8);
    WITH(VARVE_INVALID_ARGUMENT, files->list[0].size = sizeof first + 8);
    WITH(VARVE_INVALID_ARGUMENT, files->list[0].name = NULL);
    WITH(VARVE_INVALID_ARGUMENT, files->list[0].name = "");
    WITH(VARVE_INVALID_ARGUMENT, files->list[0].name = files->list[1].name);
    WITH(VARVE_INVALID_ARGUMENT, files->list[0].path = NULL);
    WITH(VARVE_INVALID_ARGUMENT, files->list[0].block_byte_count = 1000);
    WITH(VARVE_CALL_FAILED, files->list[0].path = "/nowhere");
    WITH(VARVE_UNSUPPORTED, files->list[0].path = "/dev/null");
    CHECK(ftruncate(files->descriptors[0], 1000) == 0);
    WITH(VARVE_SIZE_MISMATCH, );
    CHECK(ftruncate(files->descriptors[0], PAGE) == 0);
#undef WITH
    // A name that no disk can have is refused by a capture; so is a file system without reflinks.
    files->list[0].name = "memory";
    SIZED(varve_session_options, options);
    options.files = &files->files;
    varve_session *session = NULL;
    OK(varve_session_open_regions(repository, "other", files->machine.regions, REGION_COUNT,
                                  &options, &session));
    EXPECT(VARVE_INVALID_NAME, varve_session_capture(session, NULL, NULL, NULL));
    OK(varve_session_close(session));
    CHECK(clone_count(files) == 0);
    OK(varve_repository_close(repository));
    close_files(files);
    free(files);
}
