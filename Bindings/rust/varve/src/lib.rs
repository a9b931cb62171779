#![doc = include_str!("../../README.md")]

mod error;
mod id;
mod reader;
mod repository;
mod session;
mod watch;

pub use error::{Code, Corruption, Error, Result};
pub use id::{Id, ParseIdError};
pub use reader::Reader;
pub use repository::{
    Checkpoint, OpenOptions, Prune, Range, Repository, Restore, RestoreOptions, Selection,
    Statistics, VerifyReport, Volume,
};
pub use session::{
    Capture, CaptureInput, CaptureResult, Dirty, Region, Revert, Session, SessionOptions,
    LEVEL_STORED,
};
pub use watch::{Cancellation, Progress, ProgressFunction, Unit, Watch};

use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_void};
use std::ptr;

/// The size of a page in bytes. A frame is an address in the guest divided by it.
pub const PAGE_SIZE: usize = 4096;

/// The version of libvarve at run time.
pub fn version() -> String {
    // SAFETY: the string is the library's, and constant.
    unsafe { text(varve_sys::varve_version()) }.unwrap_or_default()
}

/// A string of the library's; nothing for NULL.
///
/// # Safety
///
/// The pointer is NULL or a string of C.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    (!pointer.is_null()).then(|| CStr::from_ptr(pointer).to_string_lossy().into_owned())
}

/// A string in an array, which the library ended with a zero byte.
fn array_text(array: &[c_char]) -> String {
    let bytes: Vec<u8> = array.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A string for the library.
fn c_text(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("a name or path contains a zero byte"))
}

/// A string for the library that may be missing; the pointer is valid while the string is.
fn c_optional(text: Option<&str>) -> Result<Option<CString>> {
    text.map(c_text).transpose()
}

fn pointer(text: &Option<CString>) -> *const c_char {
    text.as_ref().map_or(ptr::null(), |text| text.as_ptr())
}

/// Copies an array that the library allocated, and frees it.
///
/// # Safety
///
/// The pointer is NULL with the count 0, or an array of so many that the library returned.
unsafe fn take_array<T: Copy>(array: *mut T, count: usize) -> Vec<T> {
    let result = match count {
        0 => Vec::new(),
        _ => std::slice::from_raw_parts(array, count).to_vec(),
    };
    varve_sys::varve_free(array as *mut c_void);
    result
}
