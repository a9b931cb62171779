import CheckpointFormat
public import GuestModel

/// Selects the checkpoints of a list: those that satisfy every field.
public struct CheckpointSelection: Hashable, Sendable {
    /// Those of one lineage; nil: of all lineages.
    public var lineage: LineageName?
    /// At most this many, the newest ones; nil: no limit.
    public var newest: Int?
    /// Those that were published before this one; nil: all.
    ///
    /// With `newest`, this reads a long list in pages: set `before` to the first checkpoint of the
    /// page that was read last.
    public var before: CheckpointID?
    /// Those whose guest was paused at this time or later, in nanoseconds since 1970.
    ///
    /// Times are those of the host's clock, which may have been set back: they need not ascend in
    /// order of publication.
    public var since: Int64?
    /// Those whose guest was paused at this time or earlier, in nanoseconds since 1970.
    public var until: Int64?

    /// Creates a selection; by default of all checkpoints.
    public init(
        lineage: LineageName? = nil, newest: Int? = nil, before: CheckpointID? = nil,
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
