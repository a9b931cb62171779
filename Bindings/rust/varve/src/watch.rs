use std::any::Any;
use std::ops::ControlFlow;
use std::os::raw::{c_int, c_void};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::Mutex;

use varve_sys::{Structure, VARVE_BYTES, VARVE_CHECKPOINTS, VARVE_PACKS};

use crate::error::check;
use crate::{text, Result};

/// Ends calls early, from any thread: they fail with [`Code::Cancelled`](crate::Code::Cancelled).
#[derive(Debug)]
pub struct Cancellation {
    handle: *mut varve_sys::varve_cancellation,
}

// SAFETY: every function of the library may be called from any thread.
unsafe impl Send for Cancellation {}
unsafe impl Sync for Cancellation {}

impl Cancellation {
    /// Creates one, which may be passed to any number of calls.
    pub fn new() -> Result<Cancellation> {
        let mut handle = ptr::null_mut();
        // SAFETY: the place is valid.
        check(unsafe { varve_sys::varve_cancellation_create(&mut handle) })?;
        Ok(Cancellation { handle })
    }

    pub(crate) fn handle(&self) -> *mut varve_sys::varve_cancellation {
        self.handle
    }

    /// Ends the calls to which it was passed, and those to which it will be, at their next step.
    /// Does not wait for them.
    pub fn cancel(&self) {
        // SAFETY: a handle is a number; this one is freed by `drop`, so the call cannot fail.
        unsafe { varve_sys::varve_cancellation_cancel(self.handle) };
    }
}

impl Drop for Cancellation {
    fn drop(&mut self) {
        // SAFETY: calls that have it continue.
        unsafe { varve_sys::varve_cancellation_free(self.handle) };
    }
}

/// What a [`Progress`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    Pages,
    Bytes,
    Packs,
    Checkpoints,
}

/// How far a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'p> {
    /// A name, such as "reading".
    pub phase: &'p str,
    /// Of what follows.
    pub unit: Unit,
    pub done: u64,
    pub total: Option<u64>,
}

/// How a call that may take long is watched and ended early.
///
/// The progress function is called from time to time on any thread, also on several at once, and
/// the call waits for it. `Break` ends the call with [`Code::Cancelled`](crate::Code::Cancelled).
/// It must not call the library; a panic of it continues when the call has ended.
#[derive(Clone, Copy, Default)]
pub struct Watch<'w> {
    pub cancellation: Option<&'w Cancellation>,
    pub progress: Option<&'w ProgressFunction<'w>>,
}

/// What a [`Watch`] calls. `Break` ends the call.
pub type ProgressFunction<'w> = dyn Fn(Progress<'_>) -> ControlFlow<()> + Sync + 'w;

impl<'w> Watch<'w> {
    /// Passes the structure of a call to a function that makes the call.
    pub(crate) fn call(
        &self, function: impl FnOnce(*const varve_sys::varve_call) -> c_int,
    ) -> Result<()> {
        let mut call = varve_sys::varve_call::sized();
        if let Some(cancellation) = self.cancellation {
            call.cancellation = cancellation.handle;
        }
        let reporter = self.progress.map(|progress| Reporter { progress, panic: Mutex::new(None) });
        if let Some(reporter) = &reporter {
            call.progress = Some(report);
            call.context = reporter as *const Reporter<'_> as *mut c_void;
        }
        let result = check(function(&call));
        if let Some(payload) = reporter.and_then(|reporter| reporter.panic.into_inner().unwrap()) {
            resume_unwind(payload);
        }
        result
    }
}

struct Reporter<'w> {
    progress: &'w ProgressFunction<'w>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Called by the library. A panic may not pass through it, so it is kept for the caller.
unsafe extern "C" fn report(
    context: *mut c_void, place: *const varve_sys::varve_progress,
) -> c_int {
    // SAFETY: the context is the reporter of a call that has not ended.
    let (reporter, place) = (&*(context as *const Reporter<'_>), &*place);
    let phase = text(place.phase).unwrap_or_default();
    let progress = Progress {
        phase: &phase,
        unit: match place.unit {
            VARVE_BYTES => Unit::Bytes,
            VARVE_PACKS => Unit::Packs,
            VARVE_CHECKPOINTS => Unit::Checkpoints,
            _ => Unit::Pages,
        },
        done: place.done,
        total: (place.has_total != 0).then_some(place.total),
    };
    match catch_unwind(AssertUnwindSafe(|| (reporter.progress)(progress))) {
        Ok(ControlFlow::Continue(())) => 0,
        Ok(ControlFlow::Break(())) => 1,
        Err(payload) => {
            reporter.panic.lock().unwrap().get_or_insert(payload);
            1
        }
    }
}
