// Repositories, their checkpoints, and what reads them.

#include "stubs.h"

DEFINE_HANDLE(repository, varve_repository_close)
DEFINE_HANDLE(reader, varve_reader_close)
DEFINE_HANDLE(cancellation, varve_cancellation_free)

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

value varve_ml_set_label(value repository, value id, value label) {
    CAMLparam3(repository, id, label);
    varve_repository *handle = HANDLE(repository, repository);
    struct failure failure;
    varve_id name = id_argument(id);
    char *text = optional_text(label);
    BLOCKING(failure, varve_checkpoint_set_label(handle, &name, text));
    caml_stat_free(text);
    check(&failure);
    CAMLreturn(Val_unit);
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
    result = caml_alloc_tuple(7);
    Store_field(result, 0, text_value(v.name));
    Store_field(result, 1, Val_bool(v.is_disk));
    Store_field(result, 2, Val_long(v.byte_count));
    Store_field(result, 3, Val_long(v.page_count));
    Store_field(result, 4, Val_long(v.changed_page_count));
    Store_field(result, 5, caml_alloc_initialized_string(sizeof v.root, (const char *)v.root));
    Store_field(result, 6, Val_long(v.extent_byte_count));
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
