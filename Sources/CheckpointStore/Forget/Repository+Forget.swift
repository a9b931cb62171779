import CheckpointFormat
import CheckpointIndex
public import GuestModel
public import PackStore

extension Repository {
    /// Forgets checkpoints, so that they no longer exist: all of them or, if this throws, none.
    ///
    /// Costs one record and one sync. All other checkpoints are unaffected, including descendants
    /// of a forgotten one. `planPrune` reclaims the space. Checkpoints in use by sessions or
    /// readers may be forgotten; prune waits for those. If the disk fails both the sync and the
    /// removal of the record, the next open determines the outcome.
    ///
    /// - Parameter ids: existing checkpoints; at most 524,288.
    public func forget(_ ids: [CheckpointID]) throws(RepositoryError) {
        let writer = try openWriter()
        try catchUp()
        var seen: Set<CheckpointID> = []
        let unique = ids.filter { seen.insert($0).inserted }
        guard !unique.isEmpty else { return }
        guard unique.count <= ForgetRecord.idCountMax else {
            throw RepositoryError(
                .limitExceeded,
                "\(unique.count) checkpoints cannot be forgotten at once; at most "
                    + "\(ForgetRecord.idCountMax) can")
        }
        for id in unique {
            let entry = try withIndex { try $0.entry(id) }
            guard let entry, !entry.isForgotten else { throw forgotten(id) }
        }
        let record = ForgetRecord(
            timeNanoseconds: Int64(WallClock.nanoseconds), ids: unique.map(\.digest))
        // The read mark stays before the record until it is indexed.
        let number = nextTransaction(of: writer)
        defer { didEnd(transaction: number) }
        let location = try writer.appendAlone(.forget, payload: record.encoded)
        didForget(unique, in: location.pack)
    }
}
