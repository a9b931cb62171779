// Everything except live Xen domains. Xen's streams are read and written here too
// (`importXenStream`, `export`), because that needs no library of Xen.

@_exported public import CheckpointEngine
@_exported public import CheckpointFormat
@_exported public import CheckpointIndex
@_exported public import CheckpointStore
@_exported public import CheckpointUpkeep
@_exported public import GuestDisks
@_exported public import GuestModel
@_exported public import LinuxGuest
@_exported public import PackStore
@_exported public import XenStream

@_exported public import struct SystemPackage.FilePath
