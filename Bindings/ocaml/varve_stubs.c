// The functions of varve.h for OCaml. Each copies what it needs of OCaml's heap, which may move,
// and releases the runtime's lock while the library works.

#define CAML_NAME_SPACE
#include <stdlib.h>
#include <string.h>

#include <caml/alloc.h>
#include <caml/bigarray.h>
#include <caml/callback.h>
#include <caml/custom.h>
#include <caml/fail.h>
#include <caml/memory.h>
#include <caml/mlvalues.h>
#include <caml/threads.h>
#include <varve.h>

// ---- Failures ----

// What the last call of this thread said. It is copied at once: a finalizer that runs while OCaml
// allocates may call the library too.
struct failure {
    int code;
    int number;
    char *message;
    int is_corruption;
    struct varve_corruption place; // its strings are copies
};

// Not with OCaml's allocator: the thread does not have the runtime's lock.
static char *copy_text(const char *text) {
    size_t byte_count = text ? strlen(text) + 1 : 0;
    char *copy = text ? malloc(byte_count) : NULL;
    return copy ? memcpy(copy, text, byte_count) : NULL;
}

static void note(struct failure *failure, int code) {
    memset(failure, 0, sizeof *failure);
    failure->code = code;
    if (code == VARVE_OK)
        return;
    failure->number = varve_error_number();
    failure->message = copy_text(varve_error_message());
    struct varve_corruption *place = &failure->place;
    place->size = sizeof *place;
    failure->is_corruption =
        code == VARVE_CORRUPTED && varve_error_corruption(place) == VARVE_OK;
    if (!failure->is_corruption)
        return;
    place->file = copy_text(place->file);
    place->object = copy_text(place->object);
    place->reason = copy_text(place->reason);
    place->disk = copy_text(place->disk);
}

// Calls the library without the runtime's lock, and notes how it failed.
#define BLOCKING(failure, call)                                                                    \
    do {                                                                                           \
        caml_release_runtime_system();                                                             \
        note(&(failure), (call));                                                                  \
        caml_acquire_runtime_system();                                                             \
    } while (0)

static value text_value(const char *text) {
    return caml_copy_string(text ? text : "");
}

static value id_value(const varve_id *id) {
    return caml_alloc_initialized_string(sizeof id->bytes, (const char *)id->bytes);
}

// Some value, or None for the absent.
static value option(int is_some, value content) {
    CAMLparam1(content);
    CAMLlocal1(result);
    if (!is_some)
        CAMLreturn(Val_none);
    result = caml_alloc_small(1, Tag_some);
    Field(result, 0) = content;
    CAMLreturn(result);
}

static value corruption_value(const struct varve_corruption *place) {
    CAMLparam0();
    CAMLlocal2(result, content);
    result = caml_alloc_tuple(7);
    Store_field(result, 0, text_value(place->file));
    Store_field(result, 1, Val_long(place->offset));
    Store_field(result, 2, text_value(place->object));
    Store_field(result, 3, text_value(place->reason));
    content = place->disk ? text_value(place->disk) : Val_unit;
    Store_field(result, 4, option(place->disk != NULL, content));
    content = place->has_checkpoint ? id_value(&place->checkpoint) : Val_unit;
    Store_field(result, 5, option(place->has_checkpoint, content));
    Store_field(result, 6, option(place->has_frame, Val_long(place->frame)));
    CAMLreturn(result);
}

// The constructor of a code: those without arguments are numbered in their order in varve.ml.
static value code_value(int code) {
    CAMLparam0();
    CAMLlocal1(result);
    if (code >= VARVE_INVALID_ARGUMENT && code <= VARVE_INVALID_STREAM)
        CAMLreturn(Val_int(code - 1));
    if (code == VARVE_FAILED)
        CAMLreturn(Val_int(VARVE_INVALID_STREAM));
    result = caml_alloc_small(1, 0);
    Field(result, 0) = Val_int(code);
    CAMLreturn(result);
}

// Raises Varve.Error, unless the call succeeded.
static void check(struct failure *failure) {
    CAMLparam0();
    CAMLlocal2(error, content);
    if (failure->code == VARVE_OK)
        CAMLreturn0;
    error = caml_alloc_tuple(4);
    Store_field(error, 0, code_value(failure->code));
    Store_field(error, 1, text_value(failure->message));
    Store_field(error, 2, Val_int(failure->number));
    content = failure->is_corruption ? corruption_value(&failure->place) : Val_unit;
    Store_field(error, 3, option(failure->is_corruption, content));
    free(failure->message);
    if (failure->is_corruption) {
        free((char *)failure->place.file);
        free((char *)failure->place.object);
        free((char *)failure->place.reason);
        free((char *)failure->place.disk);
    }
    caml_raise_with_arg(*caml_named_value("varve.error"), error);
    CAMLnoreturn;
}

// ---- Handles ----

#define HANDLE(kind, block) (*(varve_##kind **)Data_custom_val(block))

// A custom block has one handle. Its finalizer frees what was dropped; a handle that was freed is
// known to the library as that, so freeing one twice does no harm.
#define DEFINE_HANDLE(kind, close)                                                                 \
    static void finalize_##kind(value block) {                                                     \
        if (HANDLE(kind, block))                                                                   \
            close(HANDLE(kind, block));                                                            \
    }                                                                                              \
    static struct custom_operations kind##_operations = {                                          \
        "varve." #kind,           finalize_##kind,          custom_compare_default,                \
        custom_hash_default,      custom_serialize_default, custom_deserialize_default,            \
        custom_compare_ext_default, custom_fixed_length_default,                                   \
    };                                                                                             \
    static value kind##_value(void) {                                                              \
        value block = caml_alloc_custom(&kind##_operations, sizeof(void *), 0, 1);                 \
        HANDLE(kind, block) = NULL;                                                                \
        return block;                                                                              \
    }                                                                                              \
    value varve_ml_##kind##_free(value block) {                                                    \
        CAMLparam1(block);                                                                         \
        varve_##kind *handle = HANDLE(kind, block);                                                \
        struct failure failure;                                                                    \
        BLOCKING(failure, close(handle));                                                          \
        check(&failure);                                                                           \
        CAMLreturn(Val_unit);                                                                      \
    }

DEFINE_HANDLE(repository, varve_repository_close)
DEFINE_HANDLE(session, varve_session_close)
DEFINE_HANDLE(capture, varve_capture_free)
DEFINE_HANDLE(reader, varve_reader_close)
DEFINE_HANDLE(cancellation, varve_cancellation_free)

// ---- Arguments ----

static char *text_argument(value text) {
    if (!caml_string_is_c_safe(text))
        caml_invalid_argument("Varve: a name or path contains a zero byte");
    return caml_stat_strdup(String_val(text));
}

// Of an option; NULL for None.
static char *optional_text(value text) {
    return Is_some(text) ? text_argument(Some_val(text)) : NULL;
}

static varve_id id_argument(value text) {
    varve_id id;
    memcpy(id.bytes, String_val(text), sizeof id.bytes);
    return id;
}

// The id of an option in a place; NULL for None.
static const varve_id *optional_id(value text, varve_id *place) {
    if (Is_none(text))
        return NULL;
    *place = id_argument(Some_val(text));
    return place;
}

// A call that has a cancellation, or none.
static struct varve_call call_argument(value cancellation) {
    struct varve_call call;
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    if (Is_some(cancellation))
        call.cancellation = HANDLE(cancellation, Some_val(cancellation));
    return call;
}

// The structures of an array of {guest_address; memory}. The bigarrays do not move.
static struct varve_region *regions_argument(value regions) {
    mlsize_t count = Wosize_val(regions);
    struct varve_region *array = caml_stat_calloc_noexc(count + 1, sizeof *array);
    if (!array)
        caml_raise_out_of_memory();
    for (mlsize_t index = 0; index < count; index++) {
        value region = Field(regions, index);
        array[index].size = sizeof *array;
        array[index].guest_address = Long_val(Field(region, 0));
        array[index].address = Caml_ba_data_val(Field(region, 1));
        array[index].byte_count = caml_ba_byte_size(Caml_ba_array_val(Field(region, 1)));
    }
    return array;
}

// The pages of {bitmaps; frames}.
struct dirty {
    struct varve_dirty place;
    struct varve_bitmap *bitmaps;
    uint64_t *frames;
};

static const struct varve_dirty *dirty_argument(value option, struct dirty *dirty) {
    memset(dirty, 0, sizeof *dirty);
    if (Is_none(option))
        return NULL;
    value bitmaps = Field(Some_val(option), 0), frames = Field(Some_val(option), 1);
    mlsize_t bitmap_count = Wosize_val(bitmaps), frame_count = Wosize_val(frames);
    dirty->bitmaps = caml_stat_calloc_noexc(bitmap_count + 1, sizeof *dirty->bitmaps);
    dirty->frames = caml_stat_calloc_noexc(frame_count + 1, sizeof *dirty->frames);
    if (!dirty->bitmaps || !dirty->frames)
        caml_raise_out_of_memory();
    for (mlsize_t index = 0; index < bitmap_count; index++) {
        value words = Field(bitmaps, index);
        dirty->bitmaps[index].words = Caml_ba_data_val(words);
        dirty->bitmaps[index].word_count = Caml_ba_array_val(words)->dim[0];
    }
    for (mlsize_t index = 0; index < frame_count; index++)
        dirty->frames[index] = Long_val(Field(frames, index));
    dirty->place.size = sizeof dirty->place;
    dirty->place.bitmaps = dirty->bitmaps;
    dirty->place.bitmap_count = bitmap_count;
    dirty->place.frames = dirty->frames;
    dirty->place.frame_count = frame_count;
    return &dirty->place;
}

static void free_dirty(struct dirty *dirty) {
    caml_stat_free(dirty->bitmaps);
    caml_stat_free(dirty->frames);
}

// Bytes that the library allocated, as a string; frees them.
static value take_bytes(void *bytes, size_t count) {
    value result = caml_alloc_initialized_string(count, bytes ? bytes : "");
    varve_free(bytes);
    return result;
}

static value counts_value(const uint64_t *counts, mlsize_t count) {
    value result = caml_alloc_tuple(count);
    for (mlsize_t index = 0; index < count; index++)
        Field(result, index) = Val_long(counts[index]);
    return result;
}

// ---- Repositories ----

value varve_ml_version(value unit) {
    (void)unit;
    return caml_copy_string(varve_version());
}

value varve_ml_cancellation_create(value unit) {
    CAMLparam1(unit);
    CAMLlocal1(result);
    struct failure failure;
    result = cancellation_value();
    note(&failure, varve_cancellation_create(&HANDLE(cancellation, result)));
    check(&failure);
    CAMLreturn(result);
}

value varve_ml_cancellation_cancel(value cancellation) {
    CAMLparam1(cancellation);
    struct failure failure;
    note(&failure, varve_cancellation_cancel(HANDLE(cancellation, cancellation)));
    check(&failure);
    CAMLreturn(Val_unit);
}

value varve_ml_repository_create(value path, value is_volatile) {
    CAMLparam2(path, is_volatile);
    CAMLlocal1(result);
    struct failure failure;
    varve_repository *handle;
    result = repository_value();
    int in_memory = Bool_val(is_volatile);
    char *text = text_argument(path);
    BLOCKING(failure, in_memory ? varve_repository_create_volatile(text, &handle)
                                : varve_repository_create(text, &handle));
    caml_stat_free(text);
    check(&failure);
    HANDLE(repository, result) = handle;
    CAMLreturn(result);
}

value varve_ml_repository_open(value path, value writing, value wait, value cancellation) {
    CAMLparam4(path, writing, wait, cancellation);
    CAMLlocal1(result);
    struct failure failure;
    struct varve_open_options options;
    varve_repository *handle;
    result = repository_value();
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.access = Bool_val(writing) ? VARVE_WRITING : VARVE_READING;
    options.wait_nanoseconds = Long_val(wait);
    options.cancellation = call_argument(cancellation).cancellation;
    char *text = text_argument(path);
    BLOCKING(failure, varve_repository_open(text, &options, &handle));
    caml_stat_free(text);
    check(&failure);
    HANDLE(repository, result) = handle;
    CAMLreturn(result);
}

value varve_ml_statistics(value repository) {
    CAMLparam1(repository);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    struct varve_statistics s;
    memset(&s, 0, sizeof s);
    s.size = sizeof s;
    BLOCKING(failure, varve_repository_statistics(handle, &s));
    check(&failure);
    uint64_t counts[] = {
        s.checkpoint_count, s.page_count, s.unique_page_count, s.logical_byte_count, s.byte_count,
    };
    CAMLreturn(counts_value(counts, sizeof counts / sizeof *counts));
}

value varve_ml_verify(value repository, value cancellation) {
    CAMLparam2(repository, cancellation);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    struct varve_call call = call_argument(cancellation);
    struct varve_verify_report r;
    memset(&r, 0, sizeof r);
    r.size = sizeof r;
    BLOCKING(failure, varve_repository_verify(handle, NULL, &call, &r));
    check(&failure);
    uint64_t counts[] = {
        r.checkpoint_count, r.pack_count,    r.byte_count,
        r.page_count,       r.finding_count, r.affected_checkpoint_count,
    };
    CAMLreturn(counts_value(counts, sizeof counts / sizeof *counts));
}

value varve_ml_forget(value repository, value ids) {
    CAMLparam2(repository, ids);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    mlsize_t count = Wosize_val(ids);
    varve_id *array = caml_stat_alloc((count + 1) * sizeof *array);
    for (mlsize_t index = 0; index < count; index++)
        array[index] = id_argument(Field(ids, index));
    BLOCKING(failure, varve_repository_forget(handle, array, count));
    caml_stat_free(array);
    check(&failure);
    CAMLreturn(Val_unit);
}

static int prune(varve_repository *repository, const struct varve_prune_options *options,
                 const struct varve_call *call, struct varve_prune_info *done,
                 struct failure *failure) {
    varve_plan *plan;
    note(failure, varve_prune_plan(repository, options, call, &plan));
    if (failure->code != VARVE_OK)
        return failure->code;
    note(failure, varve_plan_execute(plan, call, done));
    varve_plan_free(plan);
    return failure->code;
}

value varve_ml_prune(value repository, value unused_percent_max, value cancellation) {
    CAMLparam3(repository, unused_percent_max, cancellation);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    struct varve_call call = call_argument(cancellation);
    struct varve_prune_options options = {sizeof options, Double_val(unused_percent_max)};
    struct varve_prune_info done;
    memset(&done, 0, sizeof done);
    done.size = sizeof done;
    caml_release_runtime_system();
    prune(handle, &options, &call, &done, &failure);
    caml_acquire_runtime_system();
    check(&failure);
    uint64_t counts[] = {done.byte_count, done.freed_byte_count, done.copied_byte_count};
    CAMLreturn(counts_value(counts, sizeof counts / sizeof *counts));
}

// ---- Checkpoints ----

value varve_ml_checkpoints(value repository, value lineage, value newest, value before) {
    CAMLparam4(repository, lineage, newest, before);
    CAMLlocal2(result, id);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id first, *ids;
    size_t count;
    struct varve_selection selection;
    memset(&selection, 0, sizeof selection);
    selection.size = sizeof selection;
    selection.newest = Long_val(newest);
    selection.before = optional_id(before, &first);
    char *text = optional_text(lineage);
    selection.lineage = text;
    BLOCKING(failure, varve_checkpoint_list(handle, &selection, &ids, &count));
    caml_stat_free(text);
    check(&failure);
    result = caml_alloc(count, 0);
    for (size_t index = 0; index < count; index++) {
        id = id_value(&ids[index]);
        Store_field(result, index, id);
    }
    varve_free(ids);
    CAMLreturn(result);
}

value varve_ml_find(value repository, value name) {
    CAMLparam2(repository, name);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id id;
    char *text = text_argument(name);
    BLOCKING(failure, varve_checkpoint_find(handle, text, &id));
    caml_stat_free(text);
    check(&failure);
    CAMLreturn(id_value(&id));
}

value varve_ml_checkpoint(value repository, value id) {
    CAMLparam2(repository, id);
    CAMLlocal2(result, content);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id name = id_argument(id);
    struct varve_checkpoint c;
    memset(&c, 0, sizeof c);
    c.size = sizeof c;
    BLOCKING(failure, varve_checkpoint_show(handle, &name, &c));
    check(&failure);
    result = caml_alloc_tuple(11);
    Store_field(result, 0, id_value(&c.id));
    content = c.has_parent ? id_value(&c.parent) : Val_unit;
    Store_field(result, 1, option(c.has_parent, content));
    Store_field(result, 2, text_value(c.lineage));
    content = text_value(c.label);
    Store_field(result, 3, option(c.label[0] != 0, content));
    Store_field(result, 4, Val_long(c.time_nanoseconds));
    Store_field(result, 5, Val_long(c.pause_nanoseconds));
    Store_field(result, 6, Val_long(c.page_count));
    Store_field(result, 7, Val_long(c.changed_page_count));
    Store_field(result, 8, Val_long(c.stored_page_count));
    Store_field(result, 9, Val_long(c.added_byte_count));
    Store_field(result, 10, Val_long(c.volume_count));
    CAMLreturn(result);
}

value varve_ml_volume(value repository, value id, value index) {
    CAMLparam3(repository, id, index);
    CAMLlocal1(result);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id name = id_argument(id);
    size_t number = Long_val(index);
    struct varve_volume v;
    memset(&v, 0, sizeof v);
    v.size = sizeof v;
    BLOCKING(failure, varve_checkpoint_volume(handle, &name, number, &v));
    check(&failure);
    result = caml_alloc_tuple(6);
    Store_field(result, 0, text_value(v.name));
    Store_field(result, 1, Val_bool(v.is_disk));
    Store_field(result, 2, Val_long(v.byte_count));
    Store_field(result, 3, Val_long(v.page_count));
    Store_field(result, 4, Val_long(v.changed_page_count));
    Store_field(result, 5, caml_alloc_initialized_string(sizeof v.root, (const char *)v.root));
    CAMLreturn(result);
}

value varve_ml_state(value repository, value id) {
    CAMLparam2(repository, id);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id name = id_argument(id);
    void *state;
    size_t count;
    BLOCKING(failure, varve_checkpoint_state(handle, &name, &state, &count));
    check(&failure);
    CAMLreturn(take_bytes(state, count));
}

value varve_ml_difference(value repository, value from, value to, value volume) {
    CAMLparam4(repository, from, to, volume);
    CAMLlocal2(result, range);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id first = id_argument(from), second = id_argument(to);
    varve_range *ranges;
    size_t count;
    char *text = optional_text(volume);
    BLOCKING(failure, varve_checkpoint_diff(handle, &first, &second, text, &ranges, &count));
    caml_stat_free(text);
    check(&failure);
    result = caml_alloc(count, 0);
    for (size_t index = 0; index < count; index++) {
        range = counts_value((uint64_t[]){ranges[index].first, ranges[index].count}, 2);
        Store_field(result, index, range);
    }
    varve_free(ranges);
    CAMLreturn(result);
}

value varve_ml_export(value repository, value id, value volume, value file, value cancellation) {
    CAMLparam5(repository, id, volume, file, cancellation);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id name = id_argument(id);
    struct varve_call call = call_argument(cancellation);
    int descriptor = Int_val(file);
    char *text = optional_text(volume);
    BLOCKING(failure, varve_checkpoint_export(handle, &name, text, VARVE_FORMAT_RAW, descriptor,
                                              &call));
    caml_stat_free(text);
    check(&failure);
    CAMLreturn(Val_unit);
}

value varve_ml_reader_open(value repository, value id, value volume) {
    CAMLparam3(repository, id, volume);
    CAMLlocal1(result);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id name = id_argument(id);
    varve_reader *reader;
    result = reader_value();
    char *text = optional_text(volume);
    BLOCKING(failure, varve_reader_open(handle, &name, text, &reader));
    caml_stat_free(text);
    check(&failure);
    HANDLE(reader, result) = reader;
    CAMLreturn(result);
}

value varve_ml_reader_read(value reader, value offset, value memory) {
    CAMLparam3(reader, offset, memory);
    varve_reader *handle = HANDLE(reader, reader);
    struct failure failure;
    uint64_t first = Long_val(offset);
    void *bytes = Caml_ba_data_val(memory);
    size_t count = caml_ba_byte_size(Caml_ba_array_val(memory));
    BLOCKING(failure, varve_reader_read(handle, first, bytes, count));
    check(&failure);
    CAMLreturn(Val_unit);
}

// ---- Sessions ----

value varve_ml_session_open(value repository, value lineage, value regions, value options) {
    CAMLparam4(repository, lineage, regions, options);
    CAMLlocal1(result);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_session *session;
    varve_id parent;
    struct varve_session_options o;
    memset(&o, 0, sizeof o);
    o.size = sizeof o;
    o.parent = optional_id(Field(options, 0), &parent);
    o.pool_byte_count = Long_val(Field(options, 1));
    o.overlapping_captures_max = Int_val(Field(options, 2));
    o.worker_count = Int_val(Field(options, 3));
    o.compression_level = Int_val(Field(options, 4));
    o.audit_page_count = Int_val(Field(options, 5));
    o.accepts_guest_change = Bool_val(Field(options, 6));
    o.omits_disks = Bool_val(Field(options, 7));
    result = session_value();
    char *name = text_argument(lineage);
    size_t count = Wosize_val(regions);
    struct varve_region *array = regions_argument(regions);
    BLOCKING(failure, varve_session_open_regions(handle, name, array, count, &o, &session));
    caml_stat_free(array);
    caml_stat_free(name);
    check(&failure);
    HANDLE(session, result) = session;
    CAMLreturn(result);
}

// What a capture is given, in memory of C.
struct input {
    struct varve_capture_input place;
    struct dirty dirty;
    char *label;
    char *state;
};

static void input_argument(value input, struct input *result) {
    memset(result, 0, sizeof *result);
    struct varve_capture_input *place = &result->place;
    place->size = sizeof *place;
    place->label = result->label = optional_text(Field(input, 0));
    place->dirty = dirty_argument(Field(input, 1), &result->dirty);
    value state = Field(input, 2);
    place->state_byte_count = caml_string_length(state);
    place->state = result->state = caml_stat_alloc(place->state_byte_count + 1);
    memcpy(result->state, String_val(state), place->state_byte_count);
}

static void free_input(struct input *input) {
    free_dirty(&input->dirty);
    caml_stat_free(input->label);
    caml_stat_free(input->state);
}

static value result_value(const struct varve_capture_result *r) {
    CAMLparam0();
    CAMLlocal1(result);
    result = caml_alloc_tuple(6);
    Store_field(result, 0, id_value(&r->id));
    Store_field(result, 1, Val_long(r->dirty_page_count));
    Store_field(result, 2, Val_long(r->changed_page_count));
    Store_field(result, 3, Val_long(r->stored_page_count));
    Store_field(result, 4, Val_long(r->added_byte_count));
    Store_field(result, 5, Val_long(r->downtime_nanoseconds));
    CAMLreturn(result);
}

value varve_ml_session_capture(value session, value input, value cancellation) {
    CAMLparam3(session, input, cancellation);
    varve_session *handle = HANDLE(session, session);
    struct failure failure;
    struct varve_call call = call_argument(cancellation);
    struct varve_capture_result result;
    memset(&result, 0, sizeof result);
    result.size = sizeof result;
    struct input in;
    input_argument(input, &in);
    BLOCKING(failure, varve_session_capture(handle, &in.place, &call, &result));
    free_input(&in);
    check(&failure);
    CAMLreturn(result_value(&result));
}

value varve_ml_session_begin(value session, value input, value cancellation) {
    CAMLparam3(session, input, cancellation);
    CAMLlocal1(result);
    varve_session *handle = HANDLE(session, session);
    struct failure failure;
    struct varve_call call = call_argument(cancellation);
    varve_capture *capture;
    struct input in;
    result = capture_value();
    input_argument(input, &in);
    BLOCKING(failure, varve_session_begin(handle, &in.place, &call, &capture));
    free_input(&in);
    check(&failure);
    HANDLE(capture, result) = capture;
    CAMLreturn(result);
}

value varve_ml_session_revert(value session, value id, value dirty, value cancellation) {
    CAMLparam4(session, id, dirty, cancellation);
    CAMLlocal2(result, content);
    varve_session *handle = HANDLE(session, session);
    struct failure failure;
    struct varve_call call = call_argument(cancellation);
    varve_id name = id_argument(id);
    struct varve_revert_result done;
    memset(&done, 0, sizeof done);
    done.size = sizeof done;
    void *state;
    size_t count;
    struct dirty pages;
    const struct varve_dirty *place = dirty_argument(dirty, &pages);
    BLOCKING(failure, varve_session_revert(handle, &name, place, &call, &done, &state, &count));
    free_dirty(&pages);
    check(&failure);
    content = take_bytes(state, count);
    result = caml_alloc_tuple(3);
    Store_field(result, 0, content);
    Store_field(result, 1, Val_long(done.written_page_count));
    Store_field(result, 2, Val_long(done.compared_page_count));
    CAMLreturn(result);
}

value varve_ml_session_parent(value session) {
    CAMLparam1(session);
    struct failure failure;
    varve_id id;
    note(&failure, varve_session_parent(HANDLE(session, session), &id));
    check(&failure);
    CAMLreturn(id_value(&id));
}

value varve_ml_session_cancel(value session) {
    CAMLparam1(session);
    struct failure failure;
    note(&failure, varve_session_cancel(HANDLE(session, session)));
    check(&failure);
    CAMLreturn(Val_unit);
}

value varve_ml_capture_wait(value capture, value timeout) {
    CAMLparam2(capture, timeout);
    varve_capture *handle = HANDLE(capture, capture);
    struct failure failure;
    int64_t nanoseconds = Long_val(timeout);
    struct varve_capture_result result;
    memset(&result, 0, sizeof result);
    result.size = sizeof result;
    BLOCKING(failure, varve_capture_wait(handle, nanoseconds, &result));
    check(&failure);
    CAMLreturn(result_value(&result));
}

value varve_ml_capture_descriptor(value capture) {
    CAMLparam1(capture);
    struct failure failure;
    int descriptor;
    note(&failure, varve_capture_descriptor(HANDLE(capture, capture), &descriptor));
    check(&failure);
    CAMLreturn(Val_int(descriptor));
}

value varve_ml_capture_cancel(value capture) {
    CAMLparam1(capture);
    struct failure failure;
    note(&failure, varve_capture_cancel(HANDLE(capture, capture)));
    check(&failure);
    CAMLreturn(Val_unit);
}

value varve_ml_restore(value repository, value id, value regions, value volume,
                       value starts_zeroed) {
    CAMLparam5(repository, id, regions, volume, starts_zeroed);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id name = id_argument(id);
    struct varve_restore_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.starts_zeroed = Bool_val(starts_zeroed);
    char *text = optional_text(volume);
    options.volume = text;
    void *state;
    size_t byte_count, count = Wosize_val(regions);
    struct varve_region *array = regions_argument(regions);
    BLOCKING(failure, varve_restore_regions(handle, &name, array, count, &options, NULL, NULL,
                                            &state, &byte_count));
    caml_stat_free(array);
    caml_stat_free(text);
    check(&failure);
    CAMLreturn(take_bytes(state, byte_count));
}
