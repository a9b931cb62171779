use std::fmt;
use std::io;
use std::os::raw::c_int;

use varve_sys::{Structure, VARVE_OK};

use crate::{text, Id};

/// What kind of failure an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The call itself is wrong; the message says how.
    InvalidArgument,
    /// The handle was freed.
    InvalidHandle,
    /// The call was made from a progress function.
    InCallback,
    /// A callback of the guest failed.
    CallbackFailed,
    /// The call was cancelled, or its progress function ended it.
    Cancelled,
    /// The capture has not ended yet.
    TimedOut,
    /// The session was closed while the call waited for it.
    Closed,
    /// There is no memory for the result.
    NoMemory,
    /// There is no repository, checkpoint or volume of that name.
    NotFound,
    /// The directory is not empty.
    Exists,
    /// The directory is not a repository.
    Foreign,
    /// The repository's format is of another version.
    VersionMismatch,
    /// Another process has the repository open for writing.
    Locked,
    /// Something else is under way.
    Busy,
    /// Data is damaged; [`Error::corruption`] says where.
    Corrupted,
    /// The disk or the quota is full.
    NoSpace,
    /// A system call failed; [`Error::number`] is its errno.
    CallFailed,
    /// The repository was opened for reading.
    ReadOnly,
    /// The name of a lineage or label is malformed or taken.
    InvalidName,
    /// Several checkpoints have ids with this prefix.
    AmbiguousName,
    /// The repository changed since the prune was planned.
    PlanStale,
    /// The call asks for more than the format can hold.
    LimitExceeded,
    /// The index is damaged and no pack is: open the repository again.
    IndexDamaged,
    /// The repository was moved while it was open.
    Moved,
    /// The guest cannot do what was asked.
    Unsupported,
    /// The regions do not have the checkpoint's shape.
    SizeMismatch,
    /// The guest does not accept the checkpoint's state.
    StateRejected,
    /// The lineage belongs to another guest.
    AnotherGuest,
    /// The guest failed in another way.
    GuestFailed,
    /// More pages were dirty than the session's pool holds.
    PoolTooSmall,
    /// A capture that was begun before this one failed.
    PredecessorFailed,
    /// The dirty pages did not include one that was written.
    AuditMissed,
    /// The checkpoint lacks what the format of the export requires.
    InvalidStream,
    /// Anything else.
    Failed,
    /// A code of a later version of the library.
    Unknown(i32),
}

impl Code {
    fn new(code: c_int) -> Code {
        match code {
            varve_sys::VARVE_INVALID_ARGUMENT => Code::InvalidArgument,
            varve_sys::VARVE_INVALID_HANDLE => Code::InvalidHandle,
            varve_sys::VARVE_IN_CALLBACK => Code::InCallback,
            varve_sys::VARVE_CALLBACK_FAILED => Code::CallbackFailed,
            varve_sys::VARVE_CANCELLED => Code::Cancelled,
            varve_sys::VARVE_TIMED_OUT => Code::TimedOut,
            varve_sys::VARVE_CLOSED => Code::Closed,
            varve_sys::VARVE_NO_MEMORY => Code::NoMemory,
            varve_sys::VARVE_NOT_FOUND => Code::NotFound,
            varve_sys::VARVE_EXISTS => Code::Exists,
            varve_sys::VARVE_FOREIGN => Code::Foreign,
            varve_sys::VARVE_VERSION_MISMATCH => Code::VersionMismatch,
            varve_sys::VARVE_LOCKED => Code::Locked,
            varve_sys::VARVE_BUSY => Code::Busy,
            varve_sys::VARVE_CORRUPTED => Code::Corrupted,
            varve_sys::VARVE_NO_SPACE => Code::NoSpace,
            varve_sys::VARVE_CALL_FAILED => Code::CallFailed,
            varve_sys::VARVE_READ_ONLY => Code::ReadOnly,
            varve_sys::VARVE_INVALID_NAME => Code::InvalidName,
            varve_sys::VARVE_AMBIGUOUS_NAME => Code::AmbiguousName,
            varve_sys::VARVE_PLAN_STALE => Code::PlanStale,
            varve_sys::VARVE_LIMIT_EXCEEDED => Code::LimitExceeded,
            varve_sys::VARVE_INDEX_DAMAGED => Code::IndexDamaged,
            varve_sys::VARVE_MOVED => Code::Moved,
            varve_sys::VARVE_UNSUPPORTED => Code::Unsupported,
            varve_sys::VARVE_SIZE_MISMATCH => Code::SizeMismatch,
            varve_sys::VARVE_STATE_REJECTED => Code::StateRejected,
            varve_sys::VARVE_ANOTHER_GUEST => Code::AnotherGuest,
            varve_sys::VARVE_GUEST_FAILED => Code::GuestFailed,
            varve_sys::VARVE_POOL_TOO_SMALL => Code::PoolTooSmall,
            varve_sys::VARVE_PREDECESSOR_FAILED => Code::PredecessorFailed,
            varve_sys::VARVE_AUDIT_MISSED => Code::AuditMissed,
            varve_sys::VARVE_INVALID_STREAM => Code::InvalidStream,
            varve_sys::VARVE_FAILED => Code::Failed,
            code => Code::Unknown(code),
        }
    }

    fn kind(self) -> io::ErrorKind {
        match self {
            Code::InvalidArgument | Code::InvalidHandle | Code::InvalidName => {
                io::ErrorKind::InvalidInput
            }
            Code::NotFound => io::ErrorKind::NotFound,
            Code::Exists => io::ErrorKind::AlreadyExists,
            Code::ReadOnly => io::ErrorKind::PermissionDenied,
            Code::TimedOut => io::ErrorKind::TimedOut,
            Code::Corrupted => io::ErrorKind::InvalidData,
            Code::Unsupported => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::Other,
        }
    }
}

/// A place where data is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// Relative to the repository.
    pub file: String,
    /// Of the record or block in the file.
    pub offset: u64,
    /// What is damaged, such as "page group".
    pub object: String,
    /// What was expected and what was found.
    pub reason: String,
    /// The disk to which the frame belongs; `None` for the memory.
    pub disk: Option<String>,
    /// For which it was read.
    pub checkpoint: Option<Id>,
    /// That cannot be read.
    pub frame: Option<u64>,
}

/// A call of the library failed.
#[derive(Debug, Clone)]
pub struct Error(Box<Failure>);

#[derive(Debug, Clone)]
struct Failure {
    code: Code,
    message: String,
    number: i32,
    corruption: Option<Corruption>,
}

/// A result of the library.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What kind of failure it is.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The errno of a system call; 0 if there is none.
    pub fn number(&self) -> i32 {
        self.0.number
    }

    /// What is damaged, if the code is [`Code::Corrupted`].
    pub fn corruption(&self) -> Option<&Corruption> {
        self.0.corruption.as_ref()
    }

    pub(crate) fn invalid(message: &str) -> Error {
        let message = message.to_string();
        Error(Box::new(Failure {
            code: Code::InvalidArgument,
            message,
            number: 0,
            corruption: None,
        }))
    }

    /// The failure of this thread's last call.
    fn last(code: c_int) -> Error {
        let mut place = varve_sys::varve_corruption::sized();
        // SAFETY: the strings are copied before another call of this thread.
        unsafe {
            Error(Box::new(Failure {
                code: Code::new(code),
                message: text(varve_sys::varve_error_message()).unwrap_or_default(),
                number: varve_sys::varve_error_number(),
                corruption: (varve_sys::varve_error_corruption(&mut place) == VARVE_OK)
                    .then(|| corruption(&place)),
            }))
        }
    }
}

/// # Safety
///
/// The library filled the structure in, and its strings are valid.
unsafe fn corruption(place: &varve_sys::varve_corruption) -> Corruption {
    Corruption {
        file: text(place.file).unwrap_or_default(),
        offset: place.offset,
        object: text(place.object).unwrap_or_default(),
        reason: text(place.reason).unwrap_or_default(),
        disk: text(place.disk),
        checkpoint: (place.has_checkpoint != 0).then(|| Id::unpacked(place.checkpoint)),
        frame: (place.has_frame != 0).then_some(place.frame),
    }
}

/// The result of a code. Must be called on the thread that made the call, before its next one.
pub(crate) fn check(code: c_int) -> Result<()> {
    if code == VARVE_OK {
        Ok(())
    } else {
        Err(Error::last(code))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::new(error.code().kind(), error)
    }
}
