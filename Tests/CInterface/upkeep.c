#include <stdlib.h>

#include "cases.h"

// Labels that are given later, where volumes end, and plans of repairs.

static int has_label(varve_repository *repository, const varve_id *id, const char *label) {
    SIZED(varve_checkpoint, checkpoint);
    OK(varve_checkpoint_show(repository, id, &checkpoint));
    return strcmp(checkpoint.label, label) == 0;
}

void labels(const char *directory) {
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_id ids[3], found;
    machine_fill(repository, "one", ids, 3);
    OK(varve_checkpoint_set_label(repository, &ids[0], "before-update"));
    OK(varve_checkpoint_find(repository, "before-update", &found));
    CHECK(memcmp(&found, &ids[0], sizeof found) == 0);
    CHECK(has_label(repository, &ids[0], "before-update") && has_label(repository, &ids[1], ""));
    // It changes, moves, and is removed.
    OK(varve_checkpoint_set_label(repository, &ids[0], "other"));
    EXPECT(VARVE_NOT_FOUND, varve_checkpoint_find(repository, "before-update", &found));
    OK(varve_checkpoint_set_label(repository, &ids[1], "other"));
    OK(varve_checkpoint_find(repository, "other", &found));
    CHECK(memcmp(&found, &ids[1], sizeof found) == 0);
    OK(varve_checkpoint_set_label(repository, &ids[1], NULL));
    OK(varve_checkpoint_set_label(repository, &ids[0], NULL));
    EXPECT(VARVE_NOT_FOUND, varve_checkpoint_find(repository, "other", &found));
    CHECK(has_label(repository, &ids[0], "") && has_label(repository, &ids[1], ""));
    OK(varve_checkpoint_set_label(repository, &ids[2], "last"));

    EXPECT(VARVE_INVALID_NAME, varve_checkpoint_set_label(repository, &ids[2], "-x"));
    EXPECT(VARVE_INVALID_NAME, varve_checkpoint_set_label(repository, &ids[2], ""));
    EXPECT(VARVE_INVALID_NAME, varve_checkpoint_set_label(repository, &ids[2], "one"));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_checkpoint_set_label(repository, &ids[2], "\xff"));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_checkpoint_set_label(repository, NULL, "x"));
    memset(&found, 7, sizeof found);
    EXPECT(VARVE_NOT_FOUND, varve_checkpoint_set_label(repository, &found, "x"));
    OK(varve_repository_close(repository));
    OK(varve_repository_open(directory, NULL, &repository));
    CHECK(has_label(repository, &ids[2], "last"));
    EXPECT(VARVE_READ_ONLY, varve_checkpoint_set_label(repository, &ids[2], "x"));

    SIZED(varve_volume, volume);
    OK(varve_checkpoint_volume(repository, &ids[0], 0, &volume));
    CHECK(volume.byte_count == (uint64_t)PAGE_COUNT * PAGE);
    CHECK(volume.extent_byte_count == (uint64_t)(4096 + 32) * PAGE);
    OK(varve_repository_close(repository));
}

struct plan {
    int finding_count, affected_count, loss_count;
    uint64_t lost_page_count;
    varve_id lost;
    const char *directory;
};

static void note_finding(void *context, const struct varve_corruption *corruption, int remedy,
                         const varve_id *affected, size_t affected_count) {
    struct plan *plan = context;
    plan->finding_count++;
    plan->affected_count += (int)affected_count;
    CHECK(corruption->size >= sizeof *corruption);
    CHECK(strcmp(corruption->file, "packs/00000001.pack") == 0 && corruption->offset > 0);
    CHECK(strlen(corruption->object) > 0 && strlen(corruption->reason) > 0);
    CHECK(remedy == VARVE_REMEDY_REWRITTEN || remedy == VARVE_REMEDY_REMOVED);
    CHECK(affected_count == 0 || affected != NULL);
    varve_repository *none = NULL;
    EXPECT(VARVE_IN_CALLBACK, varve_repository_open(plan->directory, NULL, &none));
}

static void note_loss(void *context, const struct varve_loss *loss) {
    struct plan *plan = context;
    plan->loss_count++;
    plan->lost = loss->id;
    CHECK(loss->size >= sizeof *loss && strcmp(loss->lineage, "one") == 0);
    CHECK(loss->label && strcmp(loss->label, "damaged") == 0);
    CHECK(loss->reason && strcmp(loss->reason->file, "packs/00000001.pack") == 0);
    for (size_t index = 0; index < loss->lost_count; index++) {
        CHECK(loss->lost[index].disk == NULL && loss->lost[index].pages.count > 0);
        plan->lost_page_count += loss->lost[index].pages.count;
    }
}

// Reads or writes bytes in the middle of the first pack.
static void pack_bytes(const char *directory, char *bytes, size_t size, int writes) {
    char path[4096];
    snprintf(path, sizeof path, "%s/packs/00000001.pack", directory);
    FILE *pack = fopen(path, "r+");
    CHECK(pack != NULL);
    if (!pack)
        return;
    fseek(pack, 9000, SEEK_SET);
    if (writes)
        CHECK(fwrite(bytes, 1, size, pack) == size);
    else
        CHECK(fread(bytes, 1, size, pack) == size);
    fclose(pack);
}

void repair_plans(const char *directory) {
    varve_repository *repository = NULL;
    OK(varve_repository_create(directory, &repository));
    varve_id id;
    machine_fill(repository, "one", &id, 1);
    OK(varve_checkpoint_set_label(repository, &id, "damaged"));
    SIZED(varve_repair_info, info);
    EXPECT(VARVE_LOCKED, varve_repair_plan(directory, NULL, NULL, &info));
    OK(varve_repository_close(repository));
    OK(varve_repair_plan(directory, NULL, NULL, &info));
    CHECK(info.finding_count == 0 && info.lost_checkpoint_count == 0);
    CHECK(info.whole_checkpoint_count == 1 && info.copied_byte_count == 0);

    char bad[] = "damaged!", whole[sizeof bad], now[sizeof bad];
    pack_bytes(directory, whole, sizeof whole, 0);
    pack_bytes(directory, bad, sizeof bad, 1);
    struct plan plan;
    memset(&plan, 0, sizeof plan);
    plan.directory = directory;
    SIZED(varve_repair_options, options);
    options.finding = note_finding;
    options.loss = note_loss;
    options.context = &plan;
    OK(varve_repair_plan(directory, &options, NULL, &info));
    CHECK(info.finding_count == (uint64_t)plan.finding_count && plan.finding_count > 0);
    CHECK(info.lost_checkpoint_count == 1 && plan.loss_count == 1 && plan.affected_count > 0);
    CHECK(info.whole_checkpoint_count == 0);
    CHECK(info.rewritten_pack_count + info.removed_pack_count == 1);
    CHECK(memcmp(&plan.lost, &id, sizeof id) == 0);
    CHECK(plan.lost_page_count > 0 && plan.lost_page_count <= PAGE_COUNT);
    // Nothing was changed.
    pack_bytes(directory, now, sizeof now, 0);
    CHECK(memcmp(now, bad, sizeof now) == 0);
    OK(varve_repair_plan(directory, NULL, NULL, &info));
    CHECK(info.finding_count == (uint64_t)plan.finding_count);

    EXPECT(VARVE_INVALID_ARGUMENT, varve_repair_plan(NULL, NULL, NULL, &info));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repair_plan("", NULL, NULL, &info));
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repair_plan(directory, NULL, NULL, NULL));
    EXPECT(VARVE_NOT_FOUND, varve_repair_plan("/nowhere", NULL, NULL, &info));
    options.wait_nanoseconds = -2;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repair_plan(directory, &options, NULL, &info));
    options.wait_nanoseconds = 0;
    options.size = 8;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repair_plan(directory, &options, NULL, &info));
    info.size = 0;
    EXPECT(VARVE_INVALID_ARGUMENT, varve_repair_plan(directory, NULL, NULL, &info));
    info.size = sizeof info;
    SIZED(varve_call, call);
    OK(varve_cancellation_create(&call.cancellation));
    OK(varve_cancellation_cancel(call.cancellation));
    EXPECT(VARVE_CANCELLED, varve_repair_plan(directory, NULL, &call, &info));
    OK(varve_cancellation_free(call.cancellation));
    // The lock is free.
    pack_bytes(directory, whole, sizeof whole, 1);
    SIZED(varve_open_options, writing);
    writing.access = VARVE_WRITING;
    OK(varve_repository_open(directory, &writing, &repository));
    OK(varve_repository_close(repository));
}
