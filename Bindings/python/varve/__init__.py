"""Checkpoints of running guests, through libvarve.

A program that has its guest's memory in a buffer, such as an ``mmap``, takes checkpoints of it::

    with varve.Repository.create("/var/lib/varve") as repository:
        with repository.session("machine", [varve.Region(memory)]) as session:
            first = session.capture(state=registers)
            ...                                     # the guest runs
            second = session.capture(dirty=varve.Dirty(bitmaps=[bitmap]), state=registers)
            registers = session.revert(first.id)    # the memory is as it was

Buffers are used in place: nothing is copied but by Varve itself. Calls release the interpreter's
lock while they block. Each failure is a subclass of ``varve.Error``.
"""

from ._errors import (
    AmbiguousName,
    Busy,
    Cancelled,
    Corrupted,
    Corruption,
    Error,
    Exists,
    InvalidArgument,
    InvalidHandle,
    InvalidName,
    NotFound,
    ReadOnly,
    TimedOut,
)
from ._repository import (
    Cancellation,
    Checkpoint,
    Finding,
    Loss,
    Prune,
    Range,
    Reader,
    RepairPlan,
    Repository,
    Statistics,
    VerifyReport,
    Volume,
    plan_repair,
    version,
)
from ._session import Capture, CaptureResult, Dirty, File, Region, RevertResult, Session

__all__ = [
    "AmbiguousName",
    "Busy",
    "Cancellation",
    "Cancelled",
    "Capture",
    "CaptureResult",
    "Checkpoint",
    "Corrupted",
    "Corruption",
    "Dirty",
    "Error",
    "Exists",
    "File",
    "Finding",
    "InvalidArgument",
    "InvalidHandle",
    "InvalidName",
    "Loss",
    "NotFound",
    "Prune",
    "Range",
    "ReadOnly",
    "Reader",
    "Region",
    "RepairPlan",
    "Repository",
    "RevertResult",
    "Session",
    "Statistics",
    "TimedOut",
    "VerifyReport",
    "Volume",
    "plan_repair",
    "version",
]
