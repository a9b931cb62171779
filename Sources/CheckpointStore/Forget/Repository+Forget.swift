import CheckpointFormat
import CheckpointIndex
public import GuestModel
public import PackStore

extension Repository {
    /// Makes checkpoints cease to exist: all of them or, if this throws, none.
    ///
    /// One record and one sync. Every other checkpoint stays what it is, also those that follow a
    /// forgotten one. Their space comes back with `planPrune`. What a session goes on from may be
    /// forgotten, and what somebody reads; prune waits for them. Should the disk fail the sync and
    /// the taking back too, what is found when the repository is next opened counts.
    ///
    /// - Parameter ids: checkpoints that exist; at most 524,288.
    public func forget(_ ids: [CheckpointID]) throws(RepositoryError) {
        let writer = try openWriter()
        try catchUp()
        var seen: Set<CheckpointID> = []
        let unique = ids.filter { seen.insert($0).inserted }
        guard !unique.isEmpty else { return }
        guard unique.count <= ForgetRecord.idCountMax else {
            throw RepositoryError(
                .invalidName,
                "\(unique.count) checkpoints cannot be forgotten at once; at most "
                    + "\(ForgetRecord.idCountMax) can")
        }
        for id in unique {
            let entry = try withIndex { try $0.entry(id) }
            guard let entry, !entry.isForgotten else { throw forgotten(id) }
        }
        let record = ForgetRecord(
            timeNanoseconds: Int64(WallClock.nanoseconds), ids: unique.map(\.digest))
        // The read mark stays before the record until the index has it.
        let number = nextTransaction(of: writer)
        defer { didEnd(transaction: number) }
        let location = try writer.appendAlone(.forget, payload: record.encoded)
        didForget(unique, in: location.pack)
    }
}
