import CheckpointFormat
public import GuestModel

/// Which checkpoints a list has: all that every field allows.
public struct CheckpointSelection: Hashable, Sendable {
    /// Those of one lineage; nil: of all.
    public var lineage: String?
    /// At most so many, the newest; nil: all.
    public var newest: Int?
    /// Those that were published before this one; nil: all.
    ///
    /// With `newest`, the way to read a long list page by page: `before` is the first checkpoint of
    /// the page that was read last.
    public var before: CheckpointID?
    /// Those whose guest was held still at this time or later, in nanoseconds since 1970.
    ///
    /// Times are those of the host's clock, which may have been set back: they need not ascend in
    /// the order of publication.
    public var since: Int64?
    /// Those whose guest was held still at this time or before, in nanoseconds since 1970.
    public var until: Int64?

    /// Makes a selection; of all checkpoints unless told otherwise.
    public init(
        lineage: String? = nil, newest: Int? = nil, before: CheckpointID? = nil,
        since: Int64? = nil, until: Int64? = nil
    ) {
        self.lineage = lineage
        self.newest = newest
        self.before = before
        self.since = since
        self.until = until
    }

    func includes(timeNanoseconds time: Int64) -> Bool {
        (since.map { $0 <= time } ?? true) && (until.map { time <= $0 } ?? true)
    }
}
