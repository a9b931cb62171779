// The facade: everything that an embedder needs comes with `import Varve`.

@_exported public import CheckpointEngine
@_exported public import CheckpointFormat
@_exported public import CheckpointStore
@_exported public import GuestModel
@_exported public import LinuxGuest
@_exported public import XenGuest
@_exported public import XenStream

@_exported public import struct SystemPackage.FilePath
