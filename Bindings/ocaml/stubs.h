// What the functions of varve.h need to be called from OCaml. Each copies what it needs of OCaml's
// heap, which may move, and releases the runtime's lock while the library works.

#ifndef STUBS_H
#define STUBS_H

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
static inline char *copy_text(const char *text) {
    size_t byte_count = text ? strlen(text) + 1 : 0;
    char *copy = text ? malloc(byte_count) : NULL;
    return copy ? memcpy(copy, text, byte_count) : NULL;
}

static inline void note(struct failure *failure, int code) {
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

static inline value text_value(const char *text) {
    return caml_copy_string(text ? text : "");
}

static inline value id_value(const varve_id *id) {
    return caml_alloc_initialized_string(sizeof id->bytes, (const char *)id->bytes);
}

// Some value, or None for the absent.
static inline value option(int is_some, value content) {
    CAMLparam1(content);
    CAMLlocal1(result);
    if (!is_some)
        CAMLreturn(Val_none);
    result = caml_alloc_small(1, Tag_some);
    Field(result, 0) = content;
    CAMLreturn(result);
}

static inline value corruption_value(const struct varve_corruption *place) {
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
static inline value code_value(int code) {
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
static inline void check(struct failure *failure) {
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

// ---- Arguments ----

static inline char *text_argument(value text) {
    if (!caml_string_is_c_safe(text))
        caml_invalid_argument("Varve: a name or path contains a zero byte");
    return caml_stat_strdup(String_val(text));
}

// Of an option; NULL for None.
static inline char *optional_text(value text) {
    return Is_some(text) ? text_argument(Some_val(text)) : NULL;
}

static inline varve_id id_argument(value text) {
    varve_id id;
    memcpy(id.bytes, String_val(text), sizeof id.bytes);
    return id;
}

// The id of an option in a place; NULL for None.
static inline const varve_id *optional_id(value text, varve_id *place) {
    if (Is_none(text))
        return NULL;
    *place = id_argument(Some_val(text));
    return place;
}

// A call that has a cancellation, or none.
static inline struct varve_call call_argument(value cancellation) {
    struct varve_call call;
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    if (Is_some(cancellation))
        call.cancellation = HANDLE(cancellation, Some_val(cancellation));
    return call;
}

// Bytes that the library allocated, as a string; frees them.
static inline value take_bytes(void *bytes, size_t count) {
    value result = caml_alloc_initialized_string(count, bytes ? bytes : "");
    varve_free(bytes);
    return result;
}

static inline value counts_value(const uint64_t *counts, mlsize_t count) {
    value result = caml_alloc_tuple(count);
    for (mlsize_t index = 0; index < count; index++)
        Field(result, index) = Val_long(counts[index]);
    return result;
}

#endif
