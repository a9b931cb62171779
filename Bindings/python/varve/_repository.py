"""Repositories, their checkpoints, and what reads them."""

import os
from typing import Callable, List, NamedTuple, Optional, Tuple

from ._errors import Corruption, check, corruption, sized, text
from ._varve import ffi, lib


def version():
    """The version of libvarve."""
    return text(lib.varve_version())


class Volume(NamedTuple):
    """The memory of a checkpoint, or one of its disks."""

    name: str
    is_disk: bool
    byte_count: int
    page_count: int
    changed_page_count: int
    root: str
    extent_byte_count: int  # where it ends: what is read past that is zeros


class Checkpoint(NamedTuple):
    """A checkpoint. Ids are hexadecimal."""

    id: str
    parent: Optional[str]
    lineage: str
    label: Optional[str]
    time_nanoseconds: int
    pause_nanoseconds: int
    page_count: int
    changed_page_count: int
    stored_page_count: int
    added_byte_count: int
    volume_count: int


class Range(NamedTuple):
    """Consecutive frames."""

    first: int
    count: int


class Statistics(NamedTuple):
    """What a repository holds, and what it costs."""

    checkpoint_count: int
    page_count: int
    unique_page_count: int
    logical_byte_count: int
    byte_count: int


class VerifyReport(NamedTuple):
    """The result of a verification."""

    checkpoint_count: int
    pack_count: int
    byte_count: int
    page_count: int
    finding_count: int
    affected_checkpoint_count: int


class Prune(NamedTuple):
    """What a prune did."""

    byte_count: int
    freed_byte_count: int
    copied_byte_count: int


class Finding(NamedTuple):
    """A damaged place, and how it is repaired: "rewritten", "removed", "moved" and the like."""

    corruption: Corruption
    remedy: str
    affected: List[str]


class Loss(NamedTuple):
    """A checkpoint that cannot be restored bit for bit.

    ``lost`` has the disk (None: the memory) and the pages; it is empty if its page map or its state
    is lost. Without a description of it there is no lineage.
    """

    id: str
    lineage: Optional[str]
    label: Optional[str]
    reason: Corruption
    lost: List[Tuple[Optional[str], Range]]


class RepairPlan(NamedTuple):
    """What a repair of a repository would do."""

    findings: List[Finding]
    losses: List[Loss]
    whole_checkpoint_count: int
    rewritten_pack_count: int
    removed_pack_count: int
    missing_pack_count: int
    moved_file_count: int
    saved_page_count: int
    copied_byte_count: int
    kept_byte_count: int


_remedies = {
    getattr(lib, "VARVE_REMEDY_" + name.upper()): name
    for name in ("rewritten", "removed", "moved", "renamed", "named", "rebuilt", "forgotten")
}


class Handle:
    """Owns a handle of the library, and frees it once."""

    _free: Callable

    def __init__(self, handle):
        self._handle = handle

    def close(self):
        """Frees it; calling this again has no effect."""
        handle, self._handle = self._handle, ffi.NULL
        if handle != ffi.NULL:
            check(type(self)._free(handle))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        # Of an object that was not made, there is none.
        handle = getattr(self, "_handle", ffi.NULL)
        if handle != ffi.NULL:
            type(self)._free(handle)


class Cancellation(Handle):
    """Ends the calls to which it was passed, from any thread."""

    _free = staticmethod(lib.varve_cancellation_free)

    def __init__(self):
        place = ffi.new("varve_cancellation **")
        check(lib.varve_cancellation_create(place))
        super().__init__(place[0])

    def cancel(self):
        check(lib.varve_cancellation_cancel(self._handle))


class Call:
    """The structure that a call is watched by; keeps what it refers to."""

    def __init__(self, cancellation, progress):
        self._place = sized("varve_call")
        self._failure = None
        self._progress = progress
        if cancellation is not None:
            self._place.cancellation = cancellation._handle
        if progress is not None:
            self._self = ffi.new_handle(self)
            self._place.progress = lib.varve_python_progress
            self._place.context = self._self

    def check(self, code):
        """Raises what the progress function raised, or the failure of the call."""
        if self._failure is not None and code != lib.VARVE_OK:
            failure, self._failure = self._failure, None
            raise failure
        check(code)


@ffi.def_extern(error=1)
def varve_python_progress(context, progress):
    call = ffi.from_handle(context)
    try:
        total = progress.total if progress.has_total else None
        return 1 if call._progress(text(progress.phase), progress.done, total) is False else 0
    except BaseException as failure:  # passed on by the call that reported progress
        call._failure = failure
        return 1


def pack_id(name):
    """The structure of an id that is given in hexadecimal."""
    place = ffi.new("varve_id *")
    place.bytes = bytes.fromhex(name)
    return place


def unpack_id(place):
    return bytes(place.bytes).hex()


def pack_text(name):
    return ffi.NULL if name is None else ffi.new("char[]", name.encode())


class Repository(Handle):
    """A repository of checkpoints."""

    _free = staticmethod(lib.varve_repository_close)

    def close(self):
        """Closes it; raises Busy, and closes nothing, while it has sessions."""
        handle = self._handle
        if handle == ffi.NULL:
            return
        code = lib.varve_repository_close(handle)
        if code != lib.VARVE_BUSY:
            self._handle = ffi.NULL
        check(code)

    @classmethod
    def create(cls, path):
        """Creates one in a directory that is empty or does not exist."""
        place = ffi.new("varve_repository **")
        check(lib.varve_repository_create(os.fsencode(path), place))
        return cls(place[0])

    @classmethod
    def create_volatile(cls, parent="/dev/shm"):
        """Creates one that is removed when it is closed, and that waits for no disk."""
        place = ffi.new("varve_repository **")
        check(lib.varve_repository_create_volatile(os.fsencode(parent), place))
        return cls(place[0])

    @classmethod
    def open(cls, path, writing=False, wait_seconds=0.0):
        """Opens one; ``wait_seconds`` may be None, to wait for the lock without limit."""
        options = sized("varve_open_options")
        options.access = lib.VARVE_WRITING if writing else lib.VARVE_READING
        options.wait_nanoseconds = -1 if wait_seconds is None else int(wait_seconds * 1e9)
        place = ffi.new("varve_repository **")
        check(lib.varve_repository_open(os.fsencode(path), options, place))
        return cls(place[0])

    def session(self, lineage, regions, **options):
        """Begins a session over regions; see ``Session`` for the options."""
        from ._session import Session

        return Session(self, lineage, regions, **options)

    def find(self, name) -> Checkpoint:
        """The checkpoint with an id or a prefix of one, of a lineage or a label; ``~N``."""
        place = ffi.new("varve_id *")
        check(lib.varve_checkpoint_find(self._handle, name.encode(), place))
        return self.checkpoint(unpack_id(place))

    def checkpoint(self, id) -> Checkpoint:
        """The checkpoint with an id."""
        place = sized("varve_checkpoint")
        check(lib.varve_checkpoint_show(self._handle, pack_id(id), place))
        return Checkpoint(
            unpack_id(place.id),
            unpack_id(place.parent) if place.has_parent else None,
            text(place.lineage),
            text(place.label) or None,
            place.time_nanoseconds,
            place.pause_nanoseconds,
            place.page_count,
            place.changed_page_count,
            place.stored_page_count,
            place.added_byte_count,
            place.volume_count,
        )

    def checkpoints(self, lineage=None, newest=0, before=None) -> List[str]:
        """The ids of checkpoints, in order of publication."""
        selection = sized("varve_selection")
        name = pack_text(lineage)
        selection.lineage = name
        selection.newest = newest
        first = ffi.NULL if before is None else pack_id(before)
        selection.before = first
        ids, count = ffi.new("varve_id **"), ffi.new("size_t *")
        check(lib.varve_checkpoint_list(self._handle, selection, ids, count))
        try:
            return [unpack_id(ids[0][index]) for index in range(count[0])]
        finally:
            lib.varve_free(ids[0])

    def volumes(self, id) -> List[Volume]:
        """The volumes of a checkpoint: the memory, and disks."""
        result = []
        for index in range(self.checkpoint(id).volume_count):
            place = sized("varve_volume")
            check(lib.varve_checkpoint_volume(self._handle, pack_id(id), index, place))
            result.append(
                Volume(
                    text(place.name),
                    bool(place.is_disk),
                    place.byte_count,
                    place.page_count,
                    place.changed_page_count,
                    bytes(place.root).hex(),
                    place.extent_byte_count,
                )
            )
        return result

    def state(self, id) -> bytes:
        """The state that a capture was given."""
        state, count = ffi.new("void **"), ffi.new("size_t *")
        check(lib.varve_checkpoint_state(self._handle, pack_id(id), state, count))
        return take_bytes(state, count)

    def difference(self, first, second, volume="memory") -> List[Range]:
        """The frames in which two checkpoints differ."""
        ranges, count = ffi.new("varve_range **"), ffi.new("size_t *")
        check(
            lib.varve_checkpoint_diff(
                self._handle, pack_id(first), pack_id(second), volume.encode(), ranges, count
            )
        )
        try:
            return [Range(ranges[0][n].first, ranges[0][n].count) for n in range(count[0])]
        finally:
            lib.varve_free(ranges[0])

    def reader(self, id, volume="memory") -> "Reader":
        """A reader of one volume."""
        return Reader(self, id, volume)

    def restore(self, id, regions, volume="memory", starts_zeroed=False) -> bytes:
        """Fills regions with a checkpoint, and returns its state."""
        from ._session import pack_regions

        options = sized("varve_restore_options")
        name = pack_text(volume)
        options.volume = name
        options.starts_zeroed = starts_zeroed
        array, _keep = pack_regions(regions)
        state, count = ffi.new("void **"), ffi.new("size_t *")
        check(
            lib.varve_restore_regions(
                self._handle, pack_id(id), array, len(regions), options, ffi.NULL, ffi.NULL, state,
                count,
            )
        )
        return take_bytes(state, count)

    def export(self, id, file, volume="memory", cancellation=None, progress=None):
        """Writes a volume, raw, to a file with a descriptor."""
        call = Call(cancellation, progress)
        call.check(
            lib.varve_checkpoint_export(
                self._handle, pack_id(id), volume.encode(), lib.VARVE_FORMAT_RAW, file.fileno(),
                call._place,
            )
        )

    def statistics(self) -> Statistics:
        place = sized("varve_statistics")
        check(lib.varve_repository_statistics(self._handle, place))
        return Statistics(*(getattr(place, name) for name in Statistics._fields))

    def verify(self, cancellation=None, progress=None) -> VerifyReport:
        """Reads and verifies everything. Damage is counted, not raised."""
        call = Call(cancellation, progress)
        place = sized("varve_verify_report")
        call.check(lib.varve_repository_verify(self._handle, ffi.NULL, call._place, place))
        return VerifyReport(*(getattr(place, name) for name in VerifyReport._fields))

    def set_label(self, id, label):
        """Gives a checkpoint a label, or removes the one that it has (None)."""
        check(lib.varve_checkpoint_set_label(self._handle, pack_id(id), pack_text(label)))

    def forget(self, ids):
        """Forgets checkpoints: all of them, or none."""
        array = ffi.new("varve_id[]", len(ids))
        for index, id in enumerate(ids):
            array[index].bytes = bytes.fromhex(id)
        check(lib.varve_repository_forget(self._handle, array, len(ids)))

    def prune(self, unused_percent_max=5.0) -> Prune:
        """Frees the space of what was forgotten."""
        options = sized("varve_prune_options")
        options.unused_percent_max = unused_percent_max
        plan = ffi.new("varve_plan **")
        check(lib.varve_prune_plan(self._handle, options, ffi.NULL, plan))
        try:
            done = sized("varve_prune_info")
            check(lib.varve_plan_execute(plan[0], ffi.NULL, done))
            return Prune(*(getattr(done, name) for name in Prune._fields))
        finally:
            lib.varve_plan_free(plan[0])


@ffi.def_extern()
def varve_python_finding(context, place, remedy, affected, affected_count):
    findings, _ = ffi.from_handle(context)
    ids = [unpack_id(affected[index]) for index in range(affected_count)]
    findings.append(Finding(corruption(place), _remedies.get(remedy, str(remedy)), ids))


@ffi.def_extern()
def varve_python_loss(context, place):
    _, losses = ffi.from_handle(context)
    lost = [
        (text(part.disk), Range(part.pages.first, part.pages.count))
        for part in (place.lost[index] for index in range(place.lost_count))
    ]
    losses.append(
        Loss(
            unpack_id(place.id),
            text(place.lineage),
            text(place.label),
            corruption(place.reason),
            lost,
        )
    )


def plan_repair(path, wait_seconds=0.0, cancellation=None, progress=None) -> RepairPlan:
    """Determines what a repair of a damaged repository would do; changes nothing.

    The repository must not be open for writing. ``varve repair --execute`` does what is planned.
    """
    options = sized("varve_repair_options")
    options.wait_nanoseconds = -1 if wait_seconds is None else int(wait_seconds * 1e9)
    found = ([], [])
    context = ffi.new_handle(found)
    options.context = context
    options.finding = lib.varve_python_finding
    options.loss = lib.varve_python_loss
    call = Call(cancellation, progress)
    info = sized("varve_repair_info")
    call.check(lib.varve_repair_plan(os.fsencode(path), options, call._place, info))
    return RepairPlan(*found, *(getattr(info, name) for name in RepairPlan._fields[2:]))


def take_bytes(state, count):
    """Bytes that the library allocated, as an object; frees them."""
    try:
        return bytes(ffi.buffer(state[0], count[0])) if count[0] else b""
    finally:
        lib.varve_free(state[0])


class Reader(Handle):
    """Reads ranges of one volume of a checkpoint; what does not exist is zeros."""

    _free = staticmethod(lib.varve_reader_close)

    def __init__(self, repository, id, volume="memory"):
        place = ffi.new("varve_reader **")
        check(lib.varve_reader_open(repository._handle, pack_id(id), volume.encode(), place))
        super().__init__(place[0])

    def read_into(self, offset, buffer):
        """Fills a writable buffer."""
        place = ffi.from_buffer(buffer, require_writable=True)
        check(lib.varve_reader_read(self._handle, offset, place, len(place)))

    def read(self, offset, byte_count) -> bytes:
        buffer = bytearray(byte_count)
        self.read_into(offset, buffer)
        return bytes(buffer)
