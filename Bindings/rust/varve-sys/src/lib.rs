//! Declarations of libvarve, as in `varve.h` and the headers that it includes, whose comments
//! document them.
//!
//! They are written by hand. A test compares the layout of each structure and each constant with
//! the header through a compiler of C, and the list of functions with the header's.

#![allow(non_camel_case_types)]

use std::mem;
use std::os::raw::{c_char, c_int, c_void};

macro_rules! handles {
    ($($name:ident)*) => {$(
        /// A handle: a number in the shape of a pointer, which is never dereferenced.
        #[repr(C)]
        pub struct $name {
            _private: [u8; 0],
        }
    )*};
}

handles! {
    varve_repository varve_session varve_capture varve_reader varve_plan varve_cancellation
}

/// A structure that begins with its size.
pub trait Structure: Copy {
    /// The structure with zeros, but for its size.
    fn sized() -> Self;
}

macro_rules! structures {
    ($($name:ident)*) => {$(
        impl Structure for $name {
            fn sized() -> Self {
                // SAFETY: the fields are numbers, pointers and optional functions: zeros are valid.
                let mut structure: $name = unsafe { mem::zeroed() };
                structure.size = mem::size_of::<$name>();
                structure
            }
        }
    )*};
}

structures! {
    varve_corruption varve_progress varve_call varve_open_options varve_statistics
    varve_verify_options varve_verify_report varve_prune_options varve_prune_info varve_selection
    varve_checkpoint varve_volume varve_region varve_dirty varve_callbacks varve_session_options
    varve_capture_input varve_capture_result varve_revert_result varve_restore_options
    varve_restore_result varve_file varve_files varve_disk varve_disk_callbacks varve_loss
    varve_repair_options varve_repair_info
}

pub const VARVE_OK: c_int = 0;
pub const VARVE_INVALID_ARGUMENT: c_int = 1;
pub const VARVE_INVALID_HANDLE: c_int = 2;
pub const VARVE_IN_CALLBACK: c_int = 3;
pub const VARVE_CALLBACK_FAILED: c_int = 4;
pub const VARVE_CANCELLED: c_int = 5;
pub const VARVE_TIMED_OUT: c_int = 6;
pub const VARVE_CLOSED: c_int = 7;
pub const VARVE_NO_MEMORY: c_int = 8;
pub const VARVE_NOT_FOUND: c_int = 9;
pub const VARVE_EXISTS: c_int = 10;
pub const VARVE_FOREIGN: c_int = 11;
pub const VARVE_VERSION_MISMATCH: c_int = 12;
pub const VARVE_LOCKED: c_int = 13;
pub const VARVE_BUSY: c_int = 14;
pub const VARVE_CORRUPTED: c_int = 15;
pub const VARVE_NO_SPACE: c_int = 16;
pub const VARVE_CALL_FAILED: c_int = 17;
pub const VARVE_READ_ONLY: c_int = 18;
pub const VARVE_INVALID_NAME: c_int = 19;
pub const VARVE_AMBIGUOUS_NAME: c_int = 20;
pub const VARVE_PLAN_STALE: c_int = 21;
pub const VARVE_LIMIT_EXCEEDED: c_int = 22;
pub const VARVE_INDEX_DAMAGED: c_int = 23;
pub const VARVE_MOVED: c_int = 24;
pub const VARVE_UNSUPPORTED: c_int = 25;
pub const VARVE_SIZE_MISMATCH: c_int = 26;
pub const VARVE_STATE_REJECTED: c_int = 27;
pub const VARVE_ANOTHER_GUEST: c_int = 28;
pub const VARVE_GUEST_FAILED: c_int = 29;
pub const VARVE_POOL_TOO_SMALL: c_int = 30;
pub const VARVE_PREDECESSOR_FAILED: c_int = 31;
pub const VARVE_AUDIT_MISSED: c_int = 32;
pub const VARVE_INVALID_STREAM: c_int = 33;
pub const VARVE_FAILED: c_int = 99;
pub const VARVE_PAGES: c_int = 0;
pub const VARVE_BYTES: c_int = 1;
pub const VARVE_PACKS: c_int = 2;
pub const VARVE_CHECKPOINTS: c_int = 3;
pub const VARVE_READING: c_int = 0;
pub const VARVE_WRITING: c_int = 1;
pub const VARVE_DEPTH_FULL: c_int = 0;
pub const VARVE_DEPTH_STRUCTURE: c_int = 1;
pub const VARVE_DEPTH_SAMPLE: c_int = 2;
pub const VARVE_FORMAT_RAW: c_int = 0;
pub const VARVE_FORMAT_ELF: c_int = 1;
pub const VARVE_FORMAT_LIBXC: c_int = 2;
pub const VARVE_FORMAT_XL: c_int = 3;
pub const VARVE_DIRTY_UNKNOWN: c_int = -1;
pub const VARVE_BLOCKS_UNKNOWN: c_int = -1;
pub const VARVE_REMEDY_REWRITTEN: c_int = 0;
pub const VARVE_REMEDY_REMOVED: c_int = 1;
pub const VARVE_REMEDY_MOVED: c_int = 2;
pub const VARVE_REMEDY_RENAMED: c_int = 3;
pub const VARVE_REMEDY_NAMED: c_int = 4;
pub const VARVE_REMEDY_REBUILT: c_int = 5;
pub const VARVE_REMEDY_FORGOTTEN: c_int = 6;
pub const VARVE_LEVEL_STORED: c_int = c_int::MIN;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_id {
    pub bytes: [u8; 32],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_range {
    pub first: u64,
    pub count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_corruption {
    pub size: usize,
    pub file: *const c_char,
    pub offset: u64,
    pub object: *const c_char,
    pub reason: *const c_char,
    pub disk: *const c_char,
    pub checkpoint: varve_id,
    pub frame: u64,
    pub has_checkpoint: c_int,
    pub has_frame: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_progress {
    pub size: usize,
    pub phase: *const c_char,
    pub unit: c_int,
    pub has_total: c_int,
    pub done: u64,
    pub total: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_call {
    pub size: usize,
    pub cancellation: *mut varve_cancellation,
    pub progress: Option<
        unsafe extern "C" fn(context: *mut c_void, progress: *const varve_progress) -> c_int,
    >,
    pub context: *mut c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_open_options {
    pub size: usize,
    pub access: c_int,
    pub wait_nanoseconds: i64,
    pub cancellation: *mut varve_cancellation,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_statistics {
    pub size: usize,
    pub checkpoint_count: u64,
    pub page_count: u64,
    pub zero_page_count: u64,
    pub unique_page_count: u64,
    pub changed_page_count: u64,
    pub logical_byte_count: u64,
    pub byte_count: u64,
    pub metadata_byte_count: u64,
    pub abandoned_byte_count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_verify_options {
    pub size: usize,
    pub depth: c_int,
    pub share: f64,
    pub seed: u64,
    pub finding: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            corruption: *const varve_corruption,
            affected: *const varve_id,
            affected_count: usize,
        ),
    >,
    pub context: *mut c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_verify_report {
    pub size: usize,
    pub checkpoint_count: u64,
    pub pack_count: u64,
    pub byte_count: u64,
    pub page_count: u64,
    pub abandoned_byte_count: u64,
    pub finding_count: u64,
    pub affected_checkpoint_count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_prune_options {
    pub size: usize,
    pub unused_percent_max: f64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_prune_info {
    pub size: usize,
    pub byte_count: u64,
    pub freed_byte_count: u64,
    pub copied_byte_count: u64,
    pub unused_byte_count: u64,
    pub leased_byte_count: u64,
    pub dead_page_count: u64,
    pub removed_pack_count: u64,
    pub rewritten_pack_count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_selection {
    pub size: usize,
    pub lineage: *const c_char,
    pub newest: u64,
    pub before: *const varve_id,
    pub since: *const i64,
    pub until: *const i64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_checkpoint {
    pub size: usize,
    pub id: varve_id,
    pub parent: varve_id,
    pub has_parent: c_int,
    pub omits_disks: c_int,
    pub time_nanoseconds: i64,
    pub pause_nanoseconds: i64,
    pub page_count: u64,
    pub zero_page_count: u64,
    pub changed_page_count: u64,
    pub stored_page_count: u64,
    pub added_byte_count: u64,
    pub volume_count: u64,
    pub lineage: [c_char; 256],
    pub label: [c_char; 256],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_volume {
    pub size: usize,
    pub name: [c_char; 256],
    pub is_disk: c_int,
    pub block_byte_count: c_int,
    pub byte_count: u64,
    pub page_count: u64,
    pub zero_page_count: u64,
    pub changed_page_count: u64,
    pub root: [u8; 32],
    pub extent_byte_count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_region {
    pub size: usize,
    pub guest_address: u64,
    pub address: *mut c_void,
    pub descriptor: c_int,
    pub offset: u64,
    pub byte_count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_bitmap {
    pub words: *const u64,
    pub word_count: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_dirty {
    pub size: usize,
    pub bitmaps: *const varve_bitmap,
    pub bitmap_count: usize,
    pub frames: *const u64,
    pub frame_count: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_callbacks {
    pub size: usize,
    pub layout: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            ranges: *mut *const varve_range,
            count: *mut usize,
        ) -> c_int,
    >,
    pub pause: Option<unsafe extern "C" fn(context: *mut c_void) -> c_int>,
    pub resume: Option<unsafe extern "C" fn(context: *mut c_void) -> c_int>,
    pub copy_pages: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            ranges: *const varve_range,
            count: usize,
            pages: *mut c_void,
        ) -> c_int,
    >,
    pub start_dirty: Option<unsafe extern "C" fn(context: *mut c_void) -> c_int>,
    pub take_dirty: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            words: *mut u64,
            word_count: usize,
            is_final: c_int,
        ) -> c_int,
    >,
    pub count_dirty: Option<unsafe extern "C" fn(context: *mut c_void) -> i64>,
    pub stop_dirty: Option<unsafe extern "C" fn(context: *mut c_void) -> c_int>,
    pub save_state: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            state: *mut *const c_void,
            byte_count: *mut usize,
        ) -> c_int,
    >,
    pub write_pages: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            ranges: *const varve_range,
            count: usize,
            pages: *const c_void,
        ) -> c_int,
    >,
    pub restore_state: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            state: *const c_void,
            byte_count: usize,
        ) -> c_int,
    >,
    pub map_pages: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            first: u64,
            count: u64,
            pages: *mut *mut c_void,
        ) -> c_int,
    >,
    pub disks: *const varve_disk_callbacks,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_file {
    pub size: usize,
    pub name: *const c_char,
    pub path: *const c_char,
    pub block_byte_count: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_files {
    pub size: usize,
    pub files: *const varve_file,
    pub count: usize,
    pub state_directory: *const c_char,
    pub clone_directory: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_disk {
    pub size: usize,
    pub name: *const c_char,
    pub byte_count: u64,
    pub block_byte_count: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_disk_callbacks {
    pub size: usize,
    pub list: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            disks: *mut *const varve_disk,
            count: *mut usize,
        ) -> c_int,
    >,
    pub prepare: Option<unsafe extern "C" fn(context: *mut c_void, cut: u64) -> c_int>,
    pub cut: Option<unsafe extern "C" fn(context: *mut c_void, cut: u64) -> c_int>,
    pub changed: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            cut: u64,
            earlier: u64,
            disk: *const c_char,
            blocks: *mut *const varve_range,
            count: *mut usize,
        ) -> c_int,
    >,
    pub stored: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            cut: u64,
            disk: *const c_char,
            blocks: *mut *const varve_range,
            count: *mut usize,
        ) -> c_int,
    >,
    pub read: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            cut: u64,
            disk: *const c_char,
            first: u64,
            count: u64,
            bytes: *mut c_void,
        ) -> c_int,
    >,
    pub release: Option<unsafe extern "C" fn(context: *mut c_void, cut: u64) -> c_int>,
    pub write: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            disk: *const c_char,
            first: u64,
            count: u64,
            bytes: *const c_void,
        ) -> c_int,
    >,
    pub resize: Option<
        unsafe extern "C" fn(context: *mut c_void, disk: *const c_char, byte_count: u64) -> c_int,
    >,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_lost {
    pub disk: *const c_char,
    pub pages: varve_range,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_loss {
    pub size: usize,
    pub id: varve_id,
    pub lineage: *const c_char,
    pub label: *const c_char,
    pub reason: *const varve_corruption,
    pub lost: *const varve_lost,
    pub lost_count: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_repair_options {
    pub size: usize,
    pub wait_nanoseconds: i64,
    pub finding: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            corruption: *const varve_corruption,
            remedy: c_int,
            affected: *const varve_id,
            affected_count: usize,
        ),
    >,
    pub loss: Option<unsafe extern "C" fn(context: *mut c_void, loss: *const varve_loss)>,
    pub context: *mut c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_repair_info {
    pub size: usize,
    pub finding_count: u64,
    pub whole_checkpoint_count: u64,
    pub lost_checkpoint_count: u64,
    pub rewritten_pack_count: u64,
    pub removed_pack_count: u64,
    pub missing_pack_count: u64,
    pub moved_file_count: u64,
    pub saved_page_count: u64,
    pub copied_byte_count: u64,
    pub kept_byte_count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_session_options {
    pub size: usize,
    pub parent: *const varve_id,
    pub pool_byte_count: u64,
    pub pause_budget_nanoseconds: i64,
    pub precopy_rounds_max: c_int,
    pub overlapping_captures_max: c_int,
    pub worker_count: c_int,
    pub compression_level: c_int,
    pub audit_page_count: c_int,
    pub accepts_guest_change: c_int,
    pub omits_disks: c_int,
    pub files: *const varve_files,
    pub disk_cut_budget_nanoseconds: i64,
    pub keeps_disk_cut: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_capture_input {
    pub size: usize,
    pub label: *const c_char,
    pub dirty: *const varve_dirty,
    pub state: *const c_void,
    pub state_byte_count: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_capture_result {
    pub size: usize,
    pub id: varve_id,
    pub dirty_page_count: u64,
    pub copied_page_count: u64,
    pub paused_page_count: u64,
    pub changed_page_count: u64,
    pub stored_page_count: u64,
    pub added_byte_count: u64,
    pub request_nanoseconds: i64,
    pub downtime_nanoseconds: i64,
    pub missed_page_count: u64,
    pub disk_nanoseconds: i64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_revert_result {
    pub size: usize,
    pub written_page_count: u64,
    pub compared_page_count: u64,
    pub request_nanoseconds: i64,
    pub downtime_nanoseconds: i64,
    pub written_block_count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_restore_options {
    pub size: usize,
    pub volume: *const c_char,
    pub starts_zeroed: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct varve_restore_result {
    pub size: usize,
    pub written_page_count: u64,
    pub read_byte_count: u64,
}

extern "C" {
    pub fn varve_error_code() -> c_int;
    pub fn varve_error_message() -> *const c_char;
    pub fn varve_error_number() -> c_int;
    pub fn varve_error_corruption(corruption: *mut varve_corruption) -> c_int;
    pub fn varve_version() -> *const c_char;
    pub fn varve_free(memory: *mut c_void);
    pub fn varve_cancellation_create(cancellation: *mut *mut varve_cancellation) -> c_int;
    pub fn varve_cancellation_cancel(cancellation: *mut varve_cancellation) -> c_int;
    pub fn varve_cancellation_free(cancellation: *mut varve_cancellation) -> c_int;
    pub fn varve_repository_create(
        path: *const c_char, repository: *mut *mut varve_repository,
    ) -> c_int;
    pub fn varve_repository_create_volatile(
        parent: *const c_char, repository: *mut *mut varve_repository,
    ) -> c_int;
    pub fn varve_repository_open(
        path: *const c_char, options: *const varve_open_options,
        repository: *mut *mut varve_repository,
    ) -> c_int;
    pub fn varve_repository_close(repository: *mut varve_repository) -> c_int;
    pub fn varve_repository_statistics(
        repository: *mut varve_repository, statistics: *mut varve_statistics,
    ) -> c_int;
    pub fn varve_repository_verify(
        repository: *mut varve_repository, options: *const varve_verify_options,
        call: *const varve_call, report: *mut varve_verify_report,
    ) -> c_int;
    pub fn varve_repository_forget(
        repository: *mut varve_repository, ids: *const varve_id, count: usize,
    ) -> c_int;
    pub fn varve_prune_plan(
        repository: *mut varve_repository, options: *const varve_prune_options,
        call: *const varve_call, plan: *mut *mut varve_plan,
    ) -> c_int;
    pub fn varve_plan_show(plan: *mut varve_plan, info: *mut varve_prune_info) -> c_int;
    pub fn varve_plan_execute(
        plan: *mut varve_plan, call: *const varve_call, done: *mut varve_prune_info,
    ) -> c_int;
    pub fn varve_plan_free(plan: *mut varve_plan) -> c_int;
    pub fn varve_repair_plan(
        path: *const c_char, options: *const varve_repair_options, call: *const varve_call,
        info: *mut varve_repair_info,
    ) -> c_int;
    pub fn varve_checkpoint_list(
        repository: *mut varve_repository, selection: *const varve_selection,
        ids: *mut *mut varve_id, count: *mut usize,
    ) -> c_int;
    pub fn varve_checkpoint_find(
        repository: *mut varve_repository, name: *const c_char, id: *mut varve_id,
    ) -> c_int;
    pub fn varve_checkpoint_show(
        repository: *mut varve_repository, id: *const varve_id, checkpoint: *mut varve_checkpoint,
    ) -> c_int;
    pub fn varve_checkpoint_set_label(
        repository: *mut varve_repository, id: *const varve_id, label: *const c_char,
    ) -> c_int;
    pub fn varve_checkpoint_volume(
        repository: *mut varve_repository, id: *const varve_id, index: usize,
        volume: *mut varve_volume,
    ) -> c_int;
    pub fn varve_checkpoint_state(
        repository: *mut varve_repository, id: *const varve_id, state: *mut *mut c_void,
        byte_count: *mut usize,
    ) -> c_int;
    pub fn varve_checkpoint_diff(
        repository: *mut varve_repository, from: *const varve_id, to: *const varve_id,
        volume: *const c_char, ranges: *mut *mut varve_range, count: *mut usize,
    ) -> c_int;
    pub fn varve_checkpoint_export(
        repository: *mut varve_repository, id: *const varve_id, volume: *const c_char,
        format: c_int, descriptor: c_int, call: *const varve_call,
    ) -> c_int;
    pub fn varve_reader_open(
        repository: *mut varve_repository, id: *const varve_id, volume: *const c_char,
        reader: *mut *mut varve_reader,
    ) -> c_int;
    pub fn varve_reader_read(
        reader: *mut varve_reader, offset: u64, bytes: *mut c_void, byte_count: usize,
    ) -> c_int;
    pub fn varve_reader_extents(
        reader: *mut varve_reader, ranges: *mut *mut varve_range, count: *mut usize,
    ) -> c_int;
    pub fn varve_reader_close(reader: *mut varve_reader) -> c_int;
    pub fn varve_session_open_regions(
        repository: *mut varve_repository, lineage: *const c_char, regions: *const varve_region,
        region_count: usize, options: *const varve_session_options,
        session: *mut *mut varve_session,
    ) -> c_int;
    pub fn varve_session_open_callbacks(
        repository: *mut varve_repository, lineage: *const c_char,
        callbacks: *const varve_callbacks, context: *mut c_void,
        options: *const varve_session_options, session: *mut *mut varve_session,
    ) -> c_int;
    pub fn varve_session_capture(
        session: *mut varve_session, input: *const varve_capture_input, call: *const varve_call,
        result: *mut varve_capture_result,
    ) -> c_int;
    pub fn varve_session_begin(
        session: *mut varve_session, input: *const varve_capture_input, call: *const varve_call,
        capture: *mut *mut varve_capture,
    ) -> c_int;
    pub fn varve_session_revert(
        session: *mut varve_session, id: *const varve_id, dirty: *const varve_dirty,
        call: *const varve_call, result: *mut varve_revert_result, state: *mut *mut c_void,
        state_byte_count: *mut usize,
    ) -> c_int;
    pub fn varve_session_parent(session: *mut varve_session, id: *mut varve_id) -> c_int;
    pub fn varve_session_disk_failure(session: *mut varve_session) -> c_int;
    pub fn varve_session_cancel(session: *mut varve_session) -> c_int;
    pub fn varve_session_close(session: *mut varve_session) -> c_int;
    pub fn varve_capture_descriptor(capture: *mut varve_capture, descriptor: *mut c_int) -> c_int;
    pub fn varve_capture_wait(
        capture: *mut varve_capture, timeout_nanoseconds: i64, result: *mut varve_capture_result,
    ) -> c_int;
    pub fn varve_capture_cancel(capture: *mut varve_capture) -> c_int;
    pub fn varve_capture_free(capture: *mut varve_capture) -> c_int;
    pub fn varve_restore_regions(
        repository: *mut varve_repository, id: *const varve_id, regions: *const varve_region,
        region_count: usize, options: *const varve_restore_options, call: *const varve_call,
        result: *mut varve_restore_result, state: *mut *mut c_void, state_byte_count: *mut usize,
    ) -> c_int;
    pub fn varve_restore_callbacks(
        repository: *mut varve_repository, id: *const varve_id, callbacks: *const varve_callbacks,
        context: *mut c_void, options: *const varve_restore_options, call: *const varve_call,
        result: *mut varve_restore_result,
    ) -> c_int;
}
