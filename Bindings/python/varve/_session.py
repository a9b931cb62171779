"""Sessions over regions of memory."""

import os
from typing import NamedTuple, Optional

from ._errors import check, sized
from ._repository import Call, Handle, pack_id, pack_text, take_bytes, unpack_id
from ._varve import ffi, lib


class Region:
    """A part of a guest's memory: a writable buffer, such as an ``mmap``.

    ``guest_address`` is where the guest sees it. The buffer is used in place, and kept.
    """

    def __init__(self, buffer, guest_address=0):
        self._memory = ffi.from_buffer(buffer, require_writable=True)
        self.guest_address = guest_address


class File(NamedTuple):
    """A raw file on XFS or btrfs that is a disk of the guest; its checkpoints have it too.

    ``name`` is the volume's. ``block_byte_count`` is 512 or 4096.
    """

    name: str
    path: str
    block_byte_count: int = 512


class Dirty:
    """The pages that may have been written since the last capture or revert.

    ``bitmaps`` has a buffer for each region, in the layout of ``KVM_GET_DIRTY_LOG``: whole 64-bit
    words, used in place. ``frames`` are guest addresses divided by 4096.
    """

    def __init__(self, bitmaps=(), frames=()):
        self._place = sized("varve_dirty")
        self._buffers = [ffi.from_buffer("uint64_t[]", bitmap) for bitmap in bitmaps]
        self._bitmaps = ffi.new("struct varve_bitmap[]", len(self._buffers))
        for place, buffer in zip(self._bitmaps, self._buffers):
            place.words = buffer
            place.word_count = len(buffer)
        self._frames = ffi.new("uint64_t[]", list(frames))
        self._place.bitmaps = self._bitmaps
        self._place.bitmap_count = len(self._bitmaps)
        self._place.frames = self._frames
        self._place.frame_count = len(self._frames)


class CaptureResult(NamedTuple):
    """A checkpoint that was taken."""

    id: str
    dirty_page_count: int
    changed_page_count: int
    stored_page_count: int
    added_byte_count: int
    downtime_nanoseconds: int
    disk_nanoseconds: int


class RevertResult(NamedTuple):
    """What a revert did, and the checkpoint's state."""

    state: bytes
    written_page_count: int
    compared_page_count: int
    written_block_count: int


def pack_regions(regions):
    """The array of some regions, and what must be kept while it is used."""
    array = ffi.new("struct varve_region[]", len(regions))
    for place, region in zip(array, regions):
        place.size = ffi.sizeof("struct varve_region")
        place.guest_address = region.guest_address
        place.address = region._memory
        place.byte_count = len(region._memory)
    return array, [region._memory for region in regions]


def _files(files, state_directory, clone_directory):
    """The structure of some files, and what must be kept while it is used; nothing for none."""
    if not files:
        return ffi.NULL, ()
    array = ffi.new("struct varve_file[]", len(files))
    keep = [array]

    def pack_path(path):
        keep.append(ffi.NULL if path is None else ffi.new("char[]", os.fsencode(path)))
        return keep[-1]

    for place, file in zip(array, files):
        place.size = ffi.sizeof("struct varve_file")
        keep.append(pack_text(file.name))
        place.name = keep[-1]
        place.path = pack_path(file.path)
        place.block_byte_count = file.block_byte_count
    result = sized("varve_files")
    result.files = array
    result.count = len(files)
    result.state_directory = pack_path(state_directory)
    result.clone_directory = pack_path(clone_directory)
    return result, keep


def _input(dirty, state, label):
    place = sized("varve_capture_input")
    name = pack_text(label)
    place.label = name
    if dirty is not None:
        place.dirty = dirty._place
    bytes_ = ffi.from_buffer(state)
    place.state = bytes_
    place.state_byte_count = len(bytes_)
    return place, (name, dirty, bytes_)


def _result(place):
    return CaptureResult(
        unpack_id(place.id), *(getattr(place, name) for name in CaptureResult._fields[1:])
    )


class Session(Handle):
    """Captures one guest into one lineage, again and again.

    The guest must not write while a call of this runs; after ``begin`` it may. ``files`` are its
    disks, which are cut with the memory, and ``state_directory`` notes what that leaves; the header
    ``varve_guest.h`` says more. Other options are those of ``varve_session_options``.
    """

    _free = staticmethod(lib.varve_session_close)

    def __init__(
        self,
        repository,
        lineage,
        regions,
        parent: Optional[str] = None,
        files=(),
        state_directory=None,
        clone_directory=None,
        **options,
    ):
        place = sized("varve_session_options")
        first = ffi.NULL if parent is None else pack_id(parent)
        place.parent = first
        for name, value in options.items():
            setattr(place, name, value)
        disks, _keep = _files(files, state_directory, clone_directory)
        place.files = disks
        array, self._memory = pack_regions(regions)
        self._repository = repository
        session = ffi.new("varve_session **")
        check(
            lib.varve_session_open_regions(
                repository._handle, lineage.encode(), array, len(regions), place, session
            )
        )
        super().__init__(session[0])

    def capture(
        self, dirty=None, state=b"", label=None, cancellation=None, progress=None
    ) -> CaptureResult:
        """Takes a checkpoint, and returns when it is durable. Without ``dirty``, of every page."""
        place, _keep = _input(dirty, state, label)
        call = Call(cancellation, progress)
        result = sized("varve_capture_result")
        call.check(lib.varve_session_capture(self._handle, place, call._place, result))
        return _result(result)

    def begin(self, dirty=None, state=b"", label=None, cancellation=None) -> "Capture":
        """Begins a checkpoint; when this returns the guest may run."""
        place, _keep = _input(dirty, state, label)
        call = Call(cancellation, None)
        capture = ffi.new("varve_capture **")
        check(lib.varve_session_begin(self._handle, place, call._place, capture))
        return Capture(capture[0])

    def revert(self, id, dirty=None, cancellation=None) -> RevertResult:
        """Puts the memory back, and returns the state of the checkpoint."""
        call = Call(cancellation, None)
        place = sized("varve_revert_result")
        state, count = ffi.new("void **"), ffi.new("size_t *")
        check(
            lib.varve_session_revert(
                self._handle,
                pack_id(id),
                ffi.NULL if dirty is None else dirty._place,
                call._place,
                place,
                state,
                count,
            )
        )
        return RevertResult(
            take_bytes(state, count),
            place.written_page_count,
            place.compared_page_count,
            place.written_block_count,
        )

    def check_disks(self):
        """Raises why a cut of the disks could not be dropped, if that has happened."""
        check(lib.varve_session_disk_failure(self._handle))

    @property
    def parent(self) -> Optional[str]:
        """The checkpoint that the next one will follow."""
        place = ffi.new("varve_id *")
        code = lib.varve_session_parent(self._handle, place)
        if code == lib.VARVE_NOT_FOUND:
            return None
        check(code)
        return unpack_id(place)

    def cancel(self):
        """Cancels what has begun."""
        check(lib.varve_session_cancel(self._handle))


class Capture(Handle):
    """A capture that has begun; ``select`` finds it readable when it has ended."""

    _free = staticmethod(lib.varve_capture_free)

    def fileno(self):
        place = ffi.new("int *")
        check(lib.varve_capture_descriptor(self._handle, place))
        return place[0]

    def wait(self, timeout_seconds=None) -> CaptureResult:
        """Waits until the checkpoint is durable."""
        result = sized("varve_capture_result")
        nanoseconds = -1 if timeout_seconds is None else int(timeout_seconds * 1e9)
        check(lib.varve_capture_wait(self._handle, nanoseconds, result))
        return _result(result)

    def cancel(self):
        check(lib.varve_capture_cancel(self._handle))
