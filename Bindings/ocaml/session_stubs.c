// Sessions over regions of memory, their captures, and restores.

#include "stubs.h"

DEFINE_HANDLE(session, varve_session_close)
DEFINE_HANDLE(capture, varve_capture_free)

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
