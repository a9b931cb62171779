#define _GNU_SOURCE
#include "cvarve.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

// ---- The last failure of each thread ----

// In fixed arrays: a thread that ends has nothing to free.
static _Thread_local struct {
    int code;
    int number;
    int has_corruption;
    struct varve_corruption corruption;
    char message[2048];
    char file[512];
    char object[128];
    char reason[1024];
    char disk[256];
} last;

// Copies a string, and cuts it before the first byte of a character that does not fit.
static void copy(char *to, size_t size, const char *from) {
    size_t length = strlen(from);
    if (length >= size) {
        length = size - 1;
        while (length > 0 && ((unsigned char)from[length] & 0xc0) == 0x80)
            length--;
    }
    memcpy(to, from, length);
    to[length] = 0;
}

void cvarve_set_error(int code, int number, const char *message) {
    last.code = code;
    last.number = number;
    last.has_corruption = 0;
    copy(last.message, sizeof last.message, message);
}

void cvarve_set_corruption(const struct varve_corruption *corruption) {
    last.has_corruption = 1;
    last.corruption = *corruption;
    copy(last.file, sizeof last.file, corruption->file);
    copy(last.object, sizeof last.object, corruption->object);
    copy(last.reason, sizeof last.reason, corruption->reason);
    last.corruption.file = last.file;
    last.corruption.object = last.object;
    last.corruption.reason = last.reason;
    last.corruption.disk = NULL;
    if (corruption->disk) {
        copy(last.disk, sizeof last.disk, corruption->disk);
        last.corruption.disk = last.disk;
    }
}

int varve_error_code(void) {
    return last.code;
}

const char *varve_error_message(void) {
    return last.message;
}

int varve_error_number(void) {
    return last.number;
}

int varve_error_corruption(struct varve_corruption *corruption) {
    if (!corruption || corruption->size < sizeof *corruption)
        return VARVE_INVALID_ARGUMENT;
    if (!last.has_corruption)
        return VARVE_NOT_FOUND;
    size_t size = corruption->size;
    *corruption = last.corruption;
    corruption->size = size;
    return VARVE_OK;
}

const char *varve_version(void) {
    return VARVE_VERSION;
}

// ---- Callbacks ----

static _Thread_local int callback_depth;

void cvarve_enter_callback(void) {
    callback_depth++;
}

void cvarve_leave_callback(void) {
    callback_depth--;
}

int cvarve_is_in_callback(void) {
    return callback_depth > 0;
}

// ---- Descriptors ----

int cvarve_event(void) {
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void cvarve_signal_event(int descriptor) {
    uint64_t one = 1;
    // It fails only if it was signalled 2^64 - 2 times before.
    while (write(descriptor, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

int cvarve_write(int descriptor, const void *bytes, size_t count) {
    sigset_t pipe_signal, before;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    const char *rest = bytes;
    int code = 0;
    while (count > 0 && code == 0) {
        ssize_t written = write(descriptor, rest, count);
        if (written >= 0) {
            rest += written;
            count -= (size_t)written;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            struct pollfd room = {descriptor, POLLOUT, 0};
            if (poll(&room, 1, -1) < 0 && errno != EINTR)
                code = errno;
        } else if (errno != EINTR) {
            code = errno;
        }
    }
    // The signal of this write, unless the program had blocked it and would see it later anyway.
    if (code == EPIPE && !sigismember(&before, SIGPIPE)) {
        struct timespec now = {0, 0};
        sigtimedwait(&pipe_signal, NULL, &now);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}
