"""Failures as exceptions."""

from typing import NamedTuple, Optional

from ._varve import ffi, lib


class Corruption(NamedTuple):
    """Where data is damaged."""

    file: str
    offset: int
    object: str
    reason: str
    checkpoint: Optional[str]
    frame: Optional[int]


class Error(Exception):
    """A call of Varve failed; the text says why, and what to do.

    ``code`` is one of the header's ``VARVE_...``, ``number`` the errno of a system call or 0.
    """

    code = 0
    number = 0


class InvalidArgument(Error, ValueError):
    """An argument or an option is wrong."""


class InvalidHandle(Error, ValueError):
    """The object was closed."""


class Cancelled(Error):
    """The call was cancelled."""


class TimedOut(Error, TimeoutError):
    """The capture has not ended yet."""


class NotFound(Error, LookupError):
    """There is no repository, checkpoint or volume of that name."""


class Exists(Error, FileExistsError):
    """The directory is not empty."""


class Busy(Error):
    """Something else is under way, or another process writes."""


class Corrupted(Error):
    """Data is damaged; ``corruption`` says where."""

    corruption: Optional[Corruption] = None


class ReadOnly(Error, PermissionError):
    """The repository was opened for reading."""


class InvalidName(Error, ValueError):
    """The name of a lineage or label is malformed or taken."""


class AmbiguousName(Error, LookupError):
    """Several checkpoints have ids with this prefix."""


_classes = {
    lib.VARVE_INVALID_ARGUMENT: InvalidArgument,
    lib.VARVE_INVALID_HANDLE: InvalidHandle,
    lib.VARVE_CANCELLED: Cancelled,
    lib.VARVE_TIMED_OUT: TimedOut,
    lib.VARVE_NOT_FOUND: NotFound,
    lib.VARVE_EXISTS: Exists,
    lib.VARVE_LOCKED: Busy,
    lib.VARVE_BUSY: Busy,
    lib.VARVE_CORRUPTED: Corrupted,
    lib.VARVE_READ_ONLY: ReadOnly,
    lib.VARVE_INVALID_NAME: InvalidName,
    lib.VARVE_AMBIGUOUS_NAME: AmbiguousName,
}


def text(pointer):
    """A string of the library's; nothing for NULL."""
    return None if pointer == ffi.NULL else ffi.string(pointer).decode("utf-8", "replace")


def corruption(place):
    """A structure as a value."""
    return Corruption(
        text(place.file),
        place.offset,
        text(place.object),
        text(place.reason),
        bytes(place.checkpoint.bytes).hex() if place.has_checkpoint else None,
        place.frame if place.has_frame else None,
    )


def check(code):
    """Raises the exception of a code, unless it is VARVE_OK.

    Must be called by the thread that made the call, before its next one.
    """
    if code == lib.VARVE_OK:
        return
    error = _classes.get(code, Error)(text(lib.varve_error_message()))
    error.code = code
    error.number = lib.varve_error_number()
    if isinstance(error, Corrupted):
        place = sized("varve_corruption")
        if lib.varve_error_corruption(place) == lib.VARVE_OK:
            error.corruption = corruption(place)
    raise error


def sized(name):
    """A structure that is zero but for its size."""
    place = ffi.new(f"struct {name} *")
    place.size = ffi.sizeof(f"struct {name}")
    return place
