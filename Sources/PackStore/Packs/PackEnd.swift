import CheckpointFormat

extension RecordLocation {
    /// True if, as the end of what was read or written, it has anything of its pack besides the
    /// envelope before it.
    ///
    /// A pack with nothing in it is removed by the next writer, and no mark knows of that.
    package var namesBytes: Bool { offset > UInt32(Envelope.byteCount) }
}
