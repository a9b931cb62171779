package import GuestModel

/// Receives the contents of a stream, in the stream's order.
///
/// Called on the reader's thread. An error that it throws ends the reading and is passed on.
package protocol XenStreamVisitor: AnyObject {
    /// Pages with their contents.
    ///
    /// A frame may occur again, even in the same call: the last content counts.
    ///
    /// - Parameters:
    ///   - frames: at most 256.
    ///   - contents: 4096 bytes for each; part of the read buffer, valid only during the call.
    func pages(_ frames: Span<PageFrameNumber>, _ contents: RawSpan) throws

    /// A frame without content: only allocated, or not (or no longer) existing.
    func frame(_ frame: PageFrameNumber, isPopulated: Bool) throws

    /// An epoch is whole: what was read so far is the guest at one instant.
    ///
    /// Called once for a plain stream, at its end.
    func endEpoch(_ state: GuestState) throws
}

/// A summary of a stream.
public struct XenStreamSummary: Hashable, Sendable {
    /// Epochs that were whole.
    public internal(set) var epochCount = 0
    /// True if it was a checkpointed stream: Remus.
    public internal(set) var isCheckpointed = false
    /// True if pages or state followed the last whole epoch; they were dropped.
    public internal(set) var hasPartialEpoch = false
    /// Reserved fields and padding that were not zero.
    ///
    /// Xen's specification of libxc streams says to ignore them; in the state they are zero.
    public internal(set) var ignoredReservedFields = XenStreamOmission()
    /// Unknown optional records (bit 31 of the type), which were skipped.
    public internal(set) var skippedRecords = XenStreamOmission()
}

/// Parts of a stream, all of one kind, that were ignored.
public struct XenStreamOmission: Hashable, Sendable {
    /// How many there were.
    public private(set) var count = 0
    /// The record of the first one: `X86_TSC_INFO`; nil if there is none.
    public private(set) var firstRecord: String?
    /// The byte offset of that record in the stream.
    public private(set) var firstOffset: UInt64?

    mutating func add(_ record: String, at offset: UInt64) {
        if count == 0 { (firstRecord, firstOffset) = (record, offset) }
        count += 1
    }
}

/// What follows the end of a whole stream; it was not read.
public struct XenStreamTrailer: Hashable, Sendable {
    /// The byte offset of the first byte after the stream.
    public let offset: UInt64
    /// The format of a second stream that begins there; nil if the bytes are something else.
    public let format: XenStreamFormat?
}
