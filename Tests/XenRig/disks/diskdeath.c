/* diskdeath PID DELAY DEVICE...: kills a checkpointer while it has devices suspended.
 *
 * Waits until the first of these devices of device-mapper is suspended, DELAY microseconds
 * more, and kills PID. Then it waits until all of them run. It prints how many were suspended when
 * PID was killed, and for how many microseconds after that one was:
 *
 *   suspended=2 live=1830
 *
 * Status 1: no device was suspended within a minute, or one is not resumed within ten seconds. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static int control;

static int is_suspended(const char *name) {
    struct dm_ioctl call = {
        .version = { DM_VERSION_MAJOR, 0, 0 }, .data_size = sizeof call, .data_start = sizeof call,
    };
    strncpy(call.name, name, sizeof call.name - 1);
    if (ioctl(control, DM_DEV_STATUS, &call)) { perror(name); exit(2); }
    return call.flags & DM_SUSPEND_FLAG ? 1 : 0;
}

static int count_suspended(char **names) {
    int count = 0;
    for (; *names; names++) count += is_suspended(*names);
    return count;
}

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static void nap(long microseconds) {
    struct timespec time = { microseconds / 1000000, microseconds % 1000000 * 1000 };
    nanosleep(&time, NULL);
}

int main(int count, char **words) {
    if (count < 4) { fprintf(stderr, "usage: diskdeath PID DELAY DEVICE...\n"); return 2; }
    control = open("/dev/mapper/control", O_RDWR);
    if (control < 0) { perror("/dev/mapper/control"); return 2; }
    /* There is one processor, and the window is some milliseconds. */
    struct sched_param priority = { .sched_priority = 1 };
    if (sched_setscheduler(0, SCHED_FIFO, &priority)) { perror("sched_setscheduler"); return 2; }
    pid_t checkpointer = atoi(words[1]);
    long start = now();
    while (!count_suspended(words + 3)) {
        if (now() - start > 60000000) { puts("no device was suspended"); return 1; }
        nap(4000);
    }
    nap(atol(words[2]));
    int suspended = count_suspended(words + 3);
    if (kill(checkpointer, SIGKILL)) { perror("kill"); return 2; }
    start = now();
    while (count_suspended(words + 3)) {
        if (now() - start > 10000000) {
            printf("suspended=%d; one is after ten seconds\n", suspended);
            return 1;
        }
        nap(4000);
    }
    printf("suspended=%d live=%ld\n", suspended, now() - start);
    return 0;
}
