use std::cell::Cell;
use std::fs::File;
use std::marker::PhantomData;
use std::os::raw::{c_int, c_void};
use std::os::unix::io::{AsRawFd, RawFd};
use std::ptr;
use std::time::Duration;

use varve_sys::Structure;

use crate::error::check;
use crate::{c_optional, c_text, pointer, take_array, Code, Id, Repository, Result, Watch};

/// As a compression level: pages are stored as they are.
pub const LEVEL_STORED: i32 = varve_sys::VARVE_LEVEL_STORED;

/// A part of a guest's memory.
///
/// The memory is shared by the session and the program, which runs its guest between the calls:
/// therefore cells. They also keep a session on the thread that may write to them, so no other
/// thread writes during a call.
#[derive(Clone, Copy)]
pub struct Region<'r> {
    place: varve_sys::varve_region,
    memory: PhantomData<&'r [Cell<u8>]>,
}

impl<'r> Region<'r> {
    /// Memory that the guest sees at an address. Its size and the address are multiples of 4096.
    ///
    /// [`Cell::from_mut`] and [`Cell::as_slice_of_cells`] make cells of a `&mut [u8]`.
    pub fn new(guest_address: u64, memory: &'r [Cell<u8>]) -> Region<'r> {
        // SAFETY: the slice is borrowed, and is of this thread as long as the region is.
        unsafe { Region::from_raw(guest_address, memory.as_ptr() as *mut u8, memory.len()) }
    }

    /// Memory by its address, such as that of a guest whose processors are other threads.
    ///
    /// # Safety
    ///
    /// The memory must stay mapped for `'r`, and nothing may write to it during
    /// [`Session::capture`], [`Session::begin`] and [`Session::revert`], nor read or write it
    /// during a revert or a restore.
    pub unsafe fn from_raw(guest_address: u64, address: *mut u8, byte_count: usize) -> Region<'r> {
        let mut place = varve_sys::varve_region::sized();
        place.guest_address = guest_address;
        place.address = address as *mut c_void;
        place.byte_count = byte_count as u64;
        Region { place, memory: PhantomData }
    }

    /// A part of a file or memfd, which the library maps shared.
    pub fn from_file(
        guest_address: u64, file: &'r File, offset: u64, byte_count: u64,
    ) -> Region<'r> {
        let mut place = varve_sys::varve_region::sized();
        place.guest_address = guest_address;
        place.descriptor = file.as_raw_fd();
        place.offset = offset;
        place.byte_count = byte_count;
        Region { place, memory: PhantomData }
    }
}

/// The structures of regions.
pub(crate) fn pack_regions(regions: &[Region<'_>]) -> Vec<varve_sys::varve_region> {
    regions.iter().map(|region| region.place).collect()
}

/// The pages that may have been written since the last capture or revert: all that are in a bitmap
/// or in the list. A page that was written and is not named is missing from the checkpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dirty<'d> {
    /// One for each region, in their order, or none. Bit n of a region is bit n modulo 64 of word
    /// n divided by 64, as in `KVM_GET_DIRTY_LOG`.
    pub bitmaps: &'d [&'d [u64]],
    /// Guest addresses divided by [`PAGE_SIZE`](crate::PAGE_SIZE), in any order.
    pub frames: &'d [u64],
}

impl Dirty<'_> {
    /// Passes the structure to a function; NULL for `None`.
    fn with<T>(
        dirty: Option<&Self>, function: impl FnOnce(*const varve_sys::varve_dirty) -> T,
    ) -> T {
        let dirty = match dirty {
            Some(dirty) => dirty,
            None => return function(ptr::null()),
        };
        let bitmaps: Vec<_> = dirty
            .bitmaps
            .iter()
            .map(|words| varve_sys::varve_bitmap { words: words.as_ptr(), word_count: words.len() })
            .collect();
        let mut place = varve_sys::varve_dirty::sized();
        place.bitmaps = bitmaps.as_ptr();
        place.bitmap_count = bitmaps.len();
        place.frames = dirty.frames.as_ptr();
        place.frame_count = dirty.frames.len();
        function(&place)
    }
}

/// What a capture is given; it is no longer needed when the call returns.
#[derive(Debug, Clone, Copy, Default)]
pub struct CaptureInput<'i> {
    pub label: Option<&'i str>,
    /// `None`: unknown, so every page is compared.
    pub dirty: Option<Dirty<'i>>,
    /// To store with the memory, such as the state of the devices.
    pub state: &'i [u8],
}

impl CaptureInput<'_> {
    fn with<T>(
        &self, function: impl FnOnce(*const varve_sys::varve_capture_input) -> Result<T>,
    ) -> Result<T> {
        let label = c_optional(self.label)?;
        let mut place = varve_sys::varve_capture_input::sized();
        place.label = pointer(&label);
        place.state = self.state.as_ptr() as *const c_void;
        place.state_byte_count = self.state.len();
        Dirty::with(self.dirty.as_ref(), |dirty| {
            place.dirty = dirty;
            function(&place)
        })
    }
}

/// A checkpoint that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CaptureResult {
    pub id: Id,
    pub dirty_page_count: u64,
    pub copied_page_count: u64,
    pub changed_page_count: u64,
    pub stored_page_count: u64,
    pub added_byte_count: u64,
    /// For which the call needed the guest paused.
    pub downtime: Duration,
    /// That an audit found missing in the dirty pages.
    pub missed_page_count: u64,
}

impl CaptureResult {
    fn new(place: &varve_sys::varve_capture_result) -> CaptureResult {
        CaptureResult {
            id: Id::unpacked(place.id),
            dirty_page_count: place.dirty_page_count,
            copied_page_count: place.copied_page_count,
            changed_page_count: place.changed_page_count,
            stored_page_count: place.stored_page_count,
            added_byte_count: place.added_byte_count,
            downtime: Duration::from_nanos(place.downtime_nanoseconds.max(0) as u64),
            missed_page_count: place.missed_page_count,
        }
    }
}

/// What a revert did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revert {
    /// That the capture was given.
    pub state: Vec<u8>,
    pub written_page_count: u64,
    pub compared_page_count: u64,
}

/// The options of a session; zeros and `None` are the defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct SessionOptions {
    /// The first checkpoint follows this one, which begins a branch; `None`: the lineage's newest.
    pub parent: Option<Id>,
    /// Most memory for pages that are not stored yet; 0: 256 MiB.
    pub pool_byte_count: u64,
    /// 0: 4.
    pub overlapping_captures_max: i32,
    /// Threads that compress and write; 0: processors and one more.
    pub worker_count: i32,
    /// Of zstd, -7 to 19, or [`LEVEL_STORED`]; 0: level 1.
    pub compression_level: i32,
    /// Pages that were not named dirty and that each capture compares. 0: none.
    pub audit_page_count: i32,
    /// The lineage may be another guest's.
    pub accepts_guest_change: bool,
    /// The guest has disks, which its checkpoints leave out.
    pub omits_disks: bool,
}

/// Captures one guest into one lineage, again and again. It borrows its repository and its regions.
///
/// Dropping it waits for captures under way, which are completed; [`Session::close`] also says
/// whether that failed.
///
/// ```compile_fail
/// # use {std::cell::Cell, varve::{Region, Repository, SessionOptions}};
/// let mut memory = vec![0; 4096];
/// let repository = Repository::create_volatile().unwrap();
/// let regions = [Region::new(0, Cell::from_mut(&mut memory[..]).as_slice_of_cells())];
/// let session = repository.session("machine", &regions, &SessionOptions::default()).unwrap();
/// drop(memory); // The session has it.
/// session.close().unwrap();
/// ```
///
/// ```compile_fail
/// # use {std::cell::Cell, varve::{Region, Repository, SessionOptions}};
/// let mut memory = vec![0; 4096];
/// let repository = Repository::create_volatile().unwrap();
/// let regions = [Region::new(0, Cell::from_mut(&mut memory[..]).as_slice_of_cells())];
/// let session = repository.session("machine", &regions, &SessionOptions::default()).unwrap();
/// repository.close().unwrap(); // It has a session.
/// session.close().unwrap();
/// ```
pub struct Session<'s> {
    handle: *mut varve_sys::varve_session,
    borrowed: PhantomData<(&'s Repository, Region<'s>)>,
}

impl<'s> Session<'s> {
    /// Begins a session over regions, which must not overlap. The first capture copies every page.
    /// Blocks.
    pub fn open(
        repository: &'s Repository, lineage: &str, regions: &[Region<'s>], options: &SessionOptions,
    ) -> Result<Session<'s>> {
        let lineage = c_text(lineage)?;
        let regions = pack_regions(regions);
        let parent = options.parent.map(Id::packed);
        let mut place = varve_sys::varve_session_options::sized();
        place.parent = parent.as_ref().map_or(ptr::null(), |id| id);
        place.pool_byte_count = options.pool_byte_count;
        place.overlapping_captures_max = options.overlapping_captures_max;
        place.worker_count = options.worker_count;
        place.compression_level = options.compression_level;
        place.audit_page_count = options.audit_page_count;
        place.accepts_guest_change = c_int::from(options.accepts_guest_change);
        place.omits_disks = c_int::from(options.omits_disks);
        let mut handle = ptr::null_mut();
        // SAFETY: the arguments are valid for the call, and the regions for the session. A session
        // that is leaked does nothing any more, so it does not look at regions that are gone.
        check(unsafe {
            varve_sys::varve_session_open_regions(
                repository.handle(),
                lineage.as_ptr(),
                regions.as_ptr(),
                regions.len(),
                &place,
                &mut handle,
            )
        })?;
        Ok(Session { handle, borrowed: PhantomData })
    }

    /// Takes a checkpoint, and returns when it is durable. If it fails, also because it is
    /// cancelled, there is no checkpoint, and the next capture takes the pages of this one too. The
    /// dirty pages are taken over unless the code is `InvalidArgument`. Blocks.
    pub fn capture(&self, input: &CaptureInput<'_>, watch: Watch<'_>) -> Result<CaptureResult> {
        let mut result = varve_sys::varve_capture_result::sized();
        input.with(|input| {
            watch.call(|call| {
                // SAFETY: the arguments are valid for the call.
                unsafe { varve_sys::varve_session_capture(self.handle, input, call, &mut result) }
            })
        })?;
        Ok(CaptureResult::new(&result))
    }

    /// Begins a checkpoint, and returns when the guest may run again; the checkpoint exists once
    /// [`Capture::wait`] has succeeded. Otherwise as [`Session::capture`]. Blocks until the pages
    /// are copied; before that it waits while `overlapping_captures_max` are under way.
    pub fn begin(
        &self, input: &CaptureInput<'_>, cancellation: Option<&crate::Cancellation>,
    ) -> Result<Capture> {
        // A progress function would have to outlive this call.
        let watch = Watch { cancellation, progress: None };
        let mut handle = ptr::null_mut();
        input.with(|input| {
            watch.call(|call| {
                // SAFETY: the arguments are valid for the call.
                unsafe { varve_sys::varve_session_begin(self.handle, input, call, &mut handle) }
            })
        })?;
        Ok(Capture { handle })
    }

    /// Reverts the guest to a checkpoint, in place: only pages that differ are written, and all are
    /// verified before the first is. The next capture follows that checkpoint. If it fails before a
    /// page was written the guest is unchanged; otherwise the message says so, and reverting again
    /// completes it. `None` as the dirty pages: unknown. Waits for captures under way. Blocks.
    pub fn revert(&self, id: Id, dirty: Option<Dirty<'_>>, watch: Watch<'_>) -> Result<Revert> {
        let mut result = varve_sys::varve_revert_result::sized();
        let (mut state, mut count) = (ptr::null_mut(), 0);
        Dirty::with(dirty.as_ref(), |dirty| {
            watch.call(|call| {
                // SAFETY: the arguments are valid for the call.
                unsafe {
                    varve_sys::varve_session_revert(
                        self.handle,
                        &id.packed(),
                        dirty,
                        call,
                        &mut result,
                        &mut state,
                        &mut count,
                    )
                }
            })
        })?;
        Ok(Revert {
            // SAFETY: the library returned the array.
            state: unsafe { take_array(state as *mut u8, count) },
            written_page_count: result.written_page_count,
            compared_page_count: result.compared_page_count,
        })
    }

    /// The checkpoint that the next one will follow.
    pub fn parent(&self) -> Result<Option<Id>> {
        let mut id = varve_sys::varve_id { bytes: [0; 32] };
        // SAFETY: the place is valid.
        match check(unsafe { varve_sys::varve_session_parent(self.handle, &mut id) }) {
            Ok(()) => Ok(Some(Id::unpacked(id))),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Cancels all captures that have begun; does not wait for them.
    pub fn cancel(&self) -> Result<()> {
        // SAFETY: the handle is this session's.
        check(unsafe { varve_sys::varve_session_cancel(self.handle) })
    }

    /// Waits for captures under way, which are completed, and closes the session. Blocks.
    pub fn close(mut self) -> Result<()> {
        let handle = std::mem::replace(&mut self.handle, ptr::null_mut());
        // SAFETY: the handle is this session's.
        check(unsafe { varve_sys::varve_session_close(handle) })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the handle is this session's.
            unsafe { varve_sys::varve_session_close(self.handle) };
        }
    }
}

/// A capture that has begun. Dropping it frees the handle; the capture continues.
#[derive(Debug)]
pub struct Capture {
    handle: *mut varve_sys::varve_capture,
}

// SAFETY: every function of the library may be called from any thread.
unsafe impl Send for Capture {}
unsafe impl Sync for Capture {}

impl Capture {
    /// Waits until the capture has ended, and returns its result, the same each time. Blocks.
    pub fn wait(&self) -> Result<CaptureResult> {
        self.wait_nanoseconds(-1)
    }

    /// The same, at most so long; then the code is [`Code::TimedOut`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<CaptureResult> {
        self.wait_nanoseconds(i64::try_from(timeout.as_nanos()).unwrap_or(-1))
    }

    fn wait_nanoseconds(&self, timeout: i64) -> Result<CaptureResult> {
        let mut result = varve_sys::varve_capture_result::sized();
        // SAFETY: the place is valid.
        check(unsafe { varve_sys::varve_capture_wait(self.handle, timeout, &mut result) })?;
        Ok(CaptureResult::new(&result))
    }

    /// Cancels the capture; does not wait. No effect once the checkpoint is being published.
    pub fn cancel(&self) -> Result<()> {
        // SAFETY: the handle is this capture's.
        check(unsafe { varve_sys::varve_capture_cancel(self.handle) })
    }
}

/// A descriptor that `poll` finds readable once the capture has ended. Only for polling.
impl AsRawFd for Capture {
    fn as_raw_fd(&self) -> RawFd {
        let mut descriptor = -1;
        // SAFETY: the place is valid. A handle that was not freed has a descriptor.
        unsafe { varve_sys::varve_capture_descriptor(self.handle, &mut descriptor) };
        descriptor
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // SAFETY: the handle is this capture's.
        unsafe { varve_sys::varve_capture_free(self.handle) };
    }
}
