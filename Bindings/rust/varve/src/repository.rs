use std::os::raw::{c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::io::AsRawFd;
use std::path::Path;
use std::ptr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use varve_sys::Structure;

use crate::error::check;
use crate::session::pack_regions;
use crate::{
    array_text, c_optional, c_text, pointer, take_array, Cancellation, Code, Id, Reader, Region,
    Result, Session, SessionOptions, Watch,
};

/// A repository: a directory of checkpoints. Dropping it closes it.
#[derive(Debug)]
pub struct Repository {
    handle: *mut varve_sys::varve_repository,
}

// SAFETY: every function of the library may be called from any thread.
unsafe impl Send for Repository {}
unsafe impl Sync for Repository {}

/// How to open a repository; the default is for reading, which changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions<'o> {
    pub writing: bool,
    /// How long to wait while another process is writing; `Duration::MAX`: without limit.
    pub wait: Duration,
    /// Ends that wait.
    pub cancellation: Option<&'o Cancellation>,
}

impl OpenOptions<'_> {
    /// Opens a repository. Blocks.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Repository> {
        let path = c_text(path.as_ref().as_os_str().as_bytes())?;
        let mut options = varve_sys::varve_open_options::sized();
        options.access =
            if self.writing { varve_sys::VARVE_WRITING } else { varve_sys::VARVE_READING };
        options.wait_nanoseconds = i64::try_from(self.wait.as_nanos()).unwrap_or(-1);
        if let Some(cancellation) = self.cancellation {
            options.cancellation = cancellation.handle();
        }
        Repository::new(|place| {
            // SAFETY: the arguments are valid for the call.
            unsafe { varve_sys::varve_repository_open(path.as_ptr(), &options, place) }
        })
    }
}

/// What a repository holds, and what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    pub checkpoint_count: u64,
    /// Of all checkpoints.
    pub page_count: u64,
    pub zero_page_count: u64,
    /// Stored.
    pub unique_page_count: u64,
    pub changed_page_count: u64,
    /// As full copies.
    pub logical_byte_count: u64,
    /// Of all packs.
    pub byte_count: u64,
    pub metadata_byte_count: u64,
    /// Of captures that were never published.
    pub abandoned_byte_count: u64,
}

/// The result of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// That are whole, as far as they were read.
    pub checkpoint_count: u64,
    pub pack_count: u64,
    pub byte_count: u64,
    /// Decompressed and hashed.
    pub page_count: u64,
    pub abandoned_byte_count: u64,
    /// Damaged places.
    pub finding_count: u64,
    /// That cannot be restored bit for bit.
    pub affected_checkpoint_count: u64,
}

/// What a prune did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prune {
    /// Of all packs, before.
    pub byte_count: u64,
    /// By which they shrank.
    pub freed_byte_count: u64,
    /// That were written.
    pub copied_byte_count: u64,
    pub removed_pack_count: u64,
    pub rewritten_pack_count: u64,
}

/// Which checkpoints to list; the default is all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'s> {
    /// `None`: of all lineages.
    pub lineage: Option<&'s str>,
    /// At most this many, the newest; 0: all.
    pub newest: u64,
    /// Published before this one.
    pub before: Option<Id>,
    /// Paused at this time or later.
    pub since: Option<SystemTime>,
    /// Paused at this time or earlier.
    pub until: Option<SystemTime>,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoint {
    pub id: Id,
    /// It may have been forgotten.
    pub parent: Option<Id>,
    pub omits_disks: bool,
    pub lineage: String,
    pub label: Option<String>,
    /// When the guest was paused.
    pub time: SystemTime,
    /// For how long.
    pub pause: Duration,
    pub page_count: u64,
    pub zero_page_count: u64,
    /// Since the parent.
    pub changed_page_count: u64,
    pub stored_page_count: u64,
    pub added_byte_count: u64,
    /// The memory and the disks.
    pub volume_count: u64,
}

/// The memory of a checkpoint, or one of its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Volume {
    /// "memory", or the disk's.
    pub name: String,
    pub is_disk: bool,
    /// Logical block size of a disk; 4096 for the memory.
    pub block_byte_count: u32,
    pub byte_count: u64,
    /// That exist; of a disk, blocks that are not zero.
    pub page_count: u64,
    pub zero_page_count: u64,
    pub changed_page_count: u64,
    /// Merkle root: equal for equal contents.
    pub root: [u8; 32],
    /// Where it ends: what is read past that is zeros.
    pub extent_byte_count: u64,
}

/// Consecutive frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub first: u64,
    pub count: u64,
}

/// How to restore.
#[derive(Debug, Clone, Copy, Default)]
pub struct RestoreOptions<'o> {
    /// `None`: the memory; of a disk, blocks are frames.
    pub volume: Option<&'o str>,
    /// The memory is zero where it is not written: zero pages are skipped.
    pub starts_zeroed: bool,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restore {
    /// That the capture was given.
    pub state: Vec<u8>,
    pub written_page_count: u64,
    /// From packs.
    pub read_byte_count: u64,
}

impl Repository {
    fn new(
        function: impl FnOnce(*mut *mut varve_sys::varve_repository) -> c_int,
    ) -> Result<Repository> {
        let mut handle = ptr::null_mut();
        check(function(&mut handle))?;
        Ok(Repository { handle })
    }

    pub(crate) fn handle(&self) -> *mut varve_sys::varve_repository {
        self.handle
    }

    /// Creates a repository in a directory that is empty or does not exist, and opens it for
    /// writing. Blocks for the disk.
    pub fn create(path: impl AsRef<Path>) -> Result<Repository> {
        let path = c_text(path.as_ref().as_os_str().as_bytes())?;
        // SAFETY: the arguments are valid for the call.
        Repository::new(|place| unsafe { varve_sys::varve_repository_create(path.as_ptr(), place) })
    }

    /// Creates a repository in a new directory in `/dev/shm` that is removed when it is closed, and
    /// in which nothing is synced: for fuzzers and tests.
    pub fn create_volatile() -> Result<Repository> {
        // SAFETY: the arguments are valid for the call.
        Repository::new(|place| unsafe {
            varve_sys::varve_repository_create_volatile(ptr::null::<c_char>(), place)
        })
    }

    /// Opens a repository for reading; [`OpenOptions`] opens it for writing. Blocks.
    pub fn open(path: impl AsRef<Path>) -> Result<Repository> {
        OpenOptions::default().open(path)
    }

    /// Begins a session; see [`Session::open`].
    pub fn session<'s>(
        &'s self, lineage: &str, regions: &[Region<'s>], options: &SessionOptions,
    ) -> Result<Session<'s>> {
        Session::open(self, lineage, regions, options)
    }

    /// Opens a reader of a volume; `None`: the memory. Blocks.
    pub fn reader(&self, id: Id, volume: Option<&str>) -> Result<Reader> {
        Reader::open(self, id, volume)
    }

    /// Closes the repository, as dropping it does, and says whether that failed. Blocks.
    pub fn close(mut self) -> Result<()> {
        let handle = std::mem::replace(&mut self.handle, ptr::null_mut());
        // SAFETY: the handle is this repository's; sessions borrow it, so there are none.
        check(unsafe { varve_sys::varve_repository_close(handle) })
    }

    /// Computes statistics, all of one moment. Blocks.
    pub fn statistics(&self) -> Result<Statistics> {
        let mut place = varve_sys::varve_statistics::sized();
        // SAFETY: the place is valid.
        check(unsafe { varve_sys::varve_repository_statistics(self.handle, &mut place) })?;
        Ok(Statistics {
            checkpoint_count: place.checkpoint_count,
            page_count: place.page_count,
            zero_page_count: place.zero_page_count,
            unique_page_count: place.unique_page_count,
            changed_page_count: place.changed_page_count,
            logical_byte_count: place.logical_byte_count,
            byte_count: place.byte_count,
            metadata_byte_count: place.metadata_byte_count,
            abandoned_byte_count: place.abandoned_byte_count,
        })
    }

    /// Reads and verifies every byte, on all processors. Damage is counted, and is no error.
    /// Blocks.
    pub fn verify(&self, watch: Watch<'_>) -> Result<VerifyReport> {
        let mut place = varve_sys::varve_verify_report::sized();
        watch.call(|call| {
            // SAFETY: the arguments are valid for the call.
            unsafe {
                varve_sys::varve_repository_verify(self.handle, ptr::null(), call, &mut place)
            }
        })?;
        Ok(VerifyReport {
            checkpoint_count: place.checkpoint_count,
            pack_count: place.pack_count,
            byte_count: place.byte_count,
            page_count: place.page_count,
            abandoned_byte_count: place.abandoned_byte_count,
            finding_count: place.finding_count,
            affected_checkpoint_count: place.affected_checkpoint_count,
        })
    }

    /// Forgets checkpoints: all of them or, if it fails, none. A prune reclaims their space. Blocks
    /// for one sync.
    pub fn forget(&self, ids: &[Id]) -> Result<()> {
        // SAFETY: an id has the layout of the library's.
        check(unsafe {
            varve_sys::varve_repository_forget(self.handle, ids.as_ptr().cast(), ids.len())
        })
    }

    /// Frees the space of what was forgotten. Up to so many percent of the packs may remain unused.
    /// If it fails, completed steps remain, nothing that is needed is lost, and another prune does
    /// the rest. Blocks.
    pub fn prune(&self, unused_percent_max: f64, watch: Watch<'_>) -> Result<Prune> {
        let mut options = varve_sys::varve_prune_options::sized();
        options.unused_percent_max = unused_percent_max;
        let mut plan = ptr::null_mut();
        watch.call(|call| {
            // SAFETY: the arguments are valid for the call.
            unsafe { varve_sys::varve_prune_plan(self.handle, &options, call, &mut plan) }
        })?;
        let mut done = varve_sys::varve_prune_info::sized();
        let result = watch.call(|call| {
            // SAFETY: the arguments are valid for the call.
            unsafe { varve_sys::varve_plan_execute(plan, call, &mut done) }
        });
        // SAFETY: the plan is not used any more.
        unsafe { varve_sys::varve_plan_free(plan) };
        result.map(|()| Prune {
            byte_count: done.byte_count,
            freed_byte_count: done.freed_byte_count,
            copied_byte_count: done.copied_byte_count,
            removed_pack_count: done.removed_pack_count,
            rewritten_pack_count: done.rewritten_pack_count,
        })
    }

    /// Lists checkpoints in order of publication. Blocks.
    pub fn checkpoints(&self, selection: &Selection<'_>) -> Result<Vec<Id>> {
        let lineage = c_optional(selection.lineage)?;
        let before = selection.before.map(Id::packed);
        let (since, until) = (selection.since.map(nanoseconds), selection.until.map(nanoseconds));
        let mut place = varve_sys::varve_selection::sized();
        place.lineage = pointer(&lineage);
        place.newest = selection.newest;
        place.before = before.as_ref().map_or(ptr::null(), |id| id);
        place.since = since.as_ref().map_or(ptr::null(), |time| time);
        place.until = until.as_ref().map_or(ptr::null(), |time| time);
        let (mut ids, mut count) = (ptr::null_mut(), 0);
        // SAFETY: the arguments are valid for the call, and the library returned the array.
        let ids = unsafe {
            check(varve_sys::varve_checkpoint_list(self.handle, &place, &mut ids, &mut count))?;
            take_array(ids, count)
        };
        Ok(ids.into_iter().map(Id::unpacked).collect())
    }

    /// Finds the checkpoint with a name: an id or a prefix of it, a lineage (its newest checkpoint)
    /// or a label; each may be followed by ~N, for N checkpoints before it. Blocks.
    pub fn find(&self, name: &str) -> Result<Id> {
        let name = c_text(name)?;
        let mut id = varve_sys::varve_id { bytes: [0; 32] };
        // SAFETY: the arguments are valid for the call.
        check(unsafe { varve_sys::varve_checkpoint_find(self.handle, name.as_ptr(), &mut id) })?;
        Ok(Id::unpacked(id))
    }

    /// Describes a checkpoint. Blocks.
    pub fn checkpoint(&self, id: Id) -> Result<Checkpoint> {
        let mut place = varve_sys::varve_checkpoint::sized();
        // SAFETY: the arguments are valid for the call.
        check(unsafe { varve_sys::varve_checkpoint_show(self.handle, &id.packed(), &mut place) })?;
        let label = array_text(&place.label);
        Ok(Checkpoint {
            id: Id::unpacked(place.id),
            parent: (place.has_parent != 0).then(|| Id::unpacked(place.parent)),
            omits_disks: place.omits_disks != 0,
            lineage: array_text(&place.lineage),
            label: (!label.is_empty()).then_some(label),
            time: time(place.time_nanoseconds),
            pause: Duration::from_nanos(place.pause_nanoseconds.max(0) as u64),
            page_count: place.page_count,
            zero_page_count: place.zero_page_count,
            changed_page_count: place.changed_page_count,
            stored_page_count: place.stored_page_count,
            added_byte_count: place.added_byte_count,
            volume_count: place.volume_count,
        })
    }

    /// Describes the volumes of a checkpoint: the memory, then disks. Blocks.
    pub fn volumes(&self, id: Id) -> Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        loop {
            let mut place = varve_sys::varve_volume::sized();
            // SAFETY: the arguments are valid for the call.
            let result = check(unsafe {
                varve_sys::varve_checkpoint_volume(
                    self.handle,
                    &id.packed(),
                    volumes.len(),
                    &mut place,
                )
            });
            match result {
                Ok(()) => {}
                // Past the last; but of a checkpoint that does not exist there is no first.
                Err(error) if error.code() == Code::NotFound && !volumes.is_empty() => {
                    return Ok(volumes);
                }
                Err(error) => return Err(error),
            }
            volumes.push(Volume {
                name: array_text(&place.name),
                is_disk: place.is_disk != 0,
                block_byte_count: place.block_byte_count as u32,
                byte_count: place.byte_count,
                page_count: place.page_count,
                zero_page_count: place.zero_page_count,
                changed_page_count: place.changed_page_count,
                root: place.root,
                extent_byte_count: place.extent_byte_count,
            });
        }
    }

    /// Gives a checkpoint a label, or removes the one that it has (`None`). Later checkpoints of its
    /// lineage lose that label. Blocks for one sync.
    pub fn set_label(&self, id: Id, label: Option<&str>) -> Result<()> {
        let label = c_optional(label)?;
        // SAFETY: the arguments are valid for the call.
        check(unsafe {
            varve_sys::varve_checkpoint_set_label(self.handle, &id.packed(), pointer(&label))
        })
    }

    /// Reads the state that the capture was given. Blocks.
    pub fn state(&self, id: Id) -> Result<Vec<u8>> {
        let (mut state, mut count) = (ptr::null_mut(), 0);
        // SAFETY: the arguments are valid for the call, and the library returned the array.
        unsafe {
            let id = id.packed();
            check(varve_sys::varve_checkpoint_state(self.handle, &id, &mut state, &mut count))?;
            Ok(take_array(state as *mut u8, count))
        }
    }

    /// Determines the pages in which a volume (`None`: the memory) differs between two checkpoints,
    /// as ascending ranges that do not touch. Blocks.
    pub fn difference(&self, from: Id, to: Id, volume: Option<&str>) -> Result<Vec<Range>> {
        let volume = c_optional(volume)?;
        let (mut ranges, mut count) = (ptr::null_mut(), 0);
        // SAFETY: the arguments are valid for the call, and the library returned the array.
        let ranges = unsafe {
            check(varve_sys::varve_checkpoint_diff(
                self.handle,
                &from.packed(),
                &to.packed(),
                pointer(&volume),
                &mut ranges,
                &mut count,
            ))?;
            take_array(ranges, count)
        };
        Ok(ranges.iter().map(|range| Range { first: range.first, count: range.count }).collect())
    }

    /// Writes a volume (`None`: the memory) raw to a file, pipe or socket, from its position on;
    /// what does not exist is zeros. Each page is verified first. After a failure a part has been
    /// written. Blocks.
    pub fn export(
        &self, id: Id, volume: Option<&str>, file: &impl AsRawFd, watch: Watch<'_>,
    ) -> Result<()> {
        let volume = c_optional(volume)?;
        watch.call(|call| {
            // SAFETY: the arguments are valid for the call.
            unsafe {
                varve_sys::varve_checkpoint_export(
                    self.handle,
                    &id.packed(),
                    pointer(&volume),
                    varve_sys::VARVE_FORMAT_RAW,
                    file.as_raw_fd(),
                    call,
                )
            }
        })
    }

    /// Fills regions with a volume of a checkpoint: their frames must be exactly the checkpoint's.
    /// Each page is verified. When it fails, the regions have a part of the checkpoint, and the
    /// guest must not run. Blocks.
    pub fn restore(
        &self, id: Id, regions: &[Region<'_>], options: &RestoreOptions<'_>, watch: Watch<'_>,
    ) -> Result<Restore> {
        let regions = pack_regions(regions);
        let volume = c_optional(options.volume)?;
        let mut place = varve_sys::varve_restore_options::sized();
        place.volume = pointer(&volume);
        place.starts_zeroed = c_int::from(options.starts_zeroed);
        let mut done = varve_sys::varve_restore_result::sized();
        let (mut state, mut count) = (ptr::null_mut(), 0);
        watch.call(|call| {
            // SAFETY: the arguments are valid for the call.
            unsafe {
                varve_sys::varve_restore_regions(
                    self.handle,
                    &id.packed(),
                    regions.as_ptr(),
                    regions.len(),
                    &place,
                    call,
                    &mut done,
                    &mut state,
                    &mut count,
                )
            }
        })?;
        Ok(Restore {
            // SAFETY: the library returned the array.
            state: unsafe { take_array(state as *mut u8, count) },
            written_page_count: done.written_page_count,
            read_byte_count: done.read_byte_count,
        })
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the handle is this repository's; sessions borrow it, so there are none.
            unsafe { varve_sys::varve_repository_close(self.handle) };
        }
    }
}

fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |count| -count),
    }
}

fn time(nanoseconds: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    if nanoseconds < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}
