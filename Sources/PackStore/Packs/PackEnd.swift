import CheckpointFormat

extension RecordLocation {
    /// True if anything but the envelope of its pack lies before this position.
    ///
    /// The next writer removes a pack without records, and no mark records that.
    package var namesBytes: Bool { offset > UInt32(Envelope.byteCount) }
}
