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
}
