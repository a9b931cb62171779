public import GuestModel

/// Takes what a stream holds, in the stream's order.
///
/// Called on the reader's thread. What it throws ends the reading and is passed on.
public protocol XenStreamVisitor: AnyObject {
    /// Pages with their contents.
    ///
    /// A frame may come again, in the same call too: the last content counts.
    ///
    /// - Parameters:
    ///   - frames: at most 256.
    ///   - contents: 4096 bytes for each; part of the read buffer, valid inside the call only.
    func pages(_ frames: Span<PageFrameNumber>, _ contents: RawSpan) throws

    /// A frame without content: allocated only, or not there (any more).
    func frame(_ frame: PageFrameNumber, isPopulated: Bool) throws

    /// An epoch is whole: what came so far is the guest at one instant.
    ///
    /// Called once for a plain stream, at its end.
    func endEpoch(_ state: GuestState) throws
}

/// What a stream was.
public struct XenStreamSummary: Hashable, Sendable {
    /// Epochs that were whole.
    public internal(set) var epochCount = 0
    /// True if it was a checkpointed stream: Remus.
    public internal(set) var isCheckpointed = false
    /// True if pages or state came after the last whole epoch; they were dropped.
    public internal(set) var hasPartialEpoch = false
    /// Reserved fields and padding that were not zero.
    ///
    /// Xen's specification of libxc streams has them ignored; in the state they are zero.
    public internal(set) var ignoredReservedFields = XenStreamOmission()
    /// Optional records (bit 31 of the type) that are not known and were skipped.
    public internal(set) var skippedRecords = XenStreamOmission()
}

/// Places of a stream, all of one kind, that were not taken.
public struct XenStreamOmission: Hashable, Sendable {
    /// How many there were.
    public private(set) var count = 0
    /// The record that the first one is in: `X86_TSC_INFO`; nil if there is none.
    public private(set) var firstRecord: String?
    /// Byte offset in the stream of that record.
    public private(set) var firstOffset: UInt64?

    mutating func add(_ record: String, at offset: UInt64) {
        if count == 0 { (firstRecord, firstOffset) = (record, offset) }
        count += 1
    }
}

/// What follows the end of a whole stream; it was not taken.
public struct XenStreamTrailer: Hashable, Sendable {
    /// Byte offset of the first byte after the stream.
    public let offset: UInt64
    /// The form of a second stream that begins there; nil if the bytes are something else.
    public let format: XenStreamFormat?
}
