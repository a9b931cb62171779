package import CheckpointFormat
import Glibc

// The open pack, and the order of writes.
//
//  1. Records are appended; they are not acknowledged yet.
//  2. A publish record is appended last and states how much of the pack was confirmed before.
//  3. The pack is synced, and checked to be at the path at which the store was opened. Now the
//     checkpoint exists. (If the store was moved meanwhile, the pack is truncated, as after a
//     failed sync.)
//  4. A pack that has reached its size gets its index and footer and is synced; only then is the
//     next pack created, its envelope synced, and its name synced.
//  5. When a pack's first confirming record is synced, and when a writer closes, the file `head` is
//     updated with how far the packs are confirmed. It may lag, so a failure to update it is an
//     error only when closing.
//
// During large appends the system is asked, every 8 MiB, to start writing them: otherwise the whole
// burst would wait for one sync, and so would a small checkpoint after it and the guest's own
// writes. Correctness does not depend on that.
//
// While step 3 waits for the disk, other transactions append after it: the next checkpoint's pages
// need not wait for this one's sync. Anything else that changes or syncs the pack waits, because
// the system reports a lost write to one sync only.
//
// After any failed write or sync nothing beyond `confirmed` is trusted: the next transaction begins
// by truncating the pack there, and every transaction in progress is lost (its epoch ends).
//
// Packs begun after the newest confirming record contain only abandoned data once no transaction is
// in progress. They are removed from the highest down, each durably, so that a crash leaves no gap
// in the numbers; then the pack of that record is reopened and truncated after it. A crash at any
// point leaves the same as a crash in the middle of the transaction.

/// An encoded record to be appended.
package struct PendingRecord: Sendable {
    /// Its bytes within the buffer that contains it.
    package let range: Range<Int>
    package let type: RecordType
    package let transaction: UInt64
    /// The table of a page group.
    package let frame: PageGroupTable?

    package init(
        range: Range<Int>, type: RecordType, transaction: UInt64, frame: PageGroupTable? = nil
    ) {
        self.range = range
        self.type = type
        self.transaction = transaction
        self.frame = frame
    }
}

/// Appends records to the newest pack of a repository.
///
/// Thread-safe; calls are serialized.
package final class PackWriter: Sendable {
    private struct State: Sendable {
        var pack: UInt32
        /// nil until the first append creates the pack.
        var file: (any RepositoryFile)?
        /// The next pack's file, if creating it failed after it got its name.
        var unfinished: (any RepositoryFile)?
        var end: UInt32
        var confirmed: UInt32
        /// Offset in the open pack up to which writeback was started.
        var writtenBack: UInt32
        var entries: [PackIndex.Entry]
        var epoch: UInt64 = 0
        var isBroken = false
        /// True once the lock was released: the packs may now belong to another writer.
        var isClosed = false
        /// The pack of the newest confirming record, if sealed, and what is confirmed of it.
        var lastConfirmed: Sealed?
        /// The first pack in which nothing is confirmed.
        var firstUnconfirmed: UInt32
        /// The highest pack created so far.
        var highestMade: UInt32
        /// True while a thread waits for the disk without the lock.
        var isSyncing = false
        /// The failure that ended the previous epoch; reported to each of its transactions.
        var lastFailure: FileError?
        var activeTransactions = 0
        var head: StoreHead

        static func always(_ state: State) -> Bool { true }

        /// True if some packs would contain only abandoned data once no transaction is in progress.
        var hasAbandonedPacks: Bool { lastConfirmed != nil || highestMade >= firstUnconfirmed }

        /// Moves on to a pack that is yet to be created.
        mutating func beginPack(_ number: UInt32) {
            pack = number
            file = nil
            entries = []
            end = 0
            confirmed = 0
            writtenBack = 0
        }

        /// True if everything in the open pack is confirmed and no thread is about to append to it.
        var canBeSealed: Bool {
            !isClosed && activeTransactions == 0 && file != nil && !entries.isEmpty
                && end == confirmed
        }

        func isEpoch(_ epoch: UInt64) -> Bool { self.epoch == epoch && !isBroken }

        /// Ends the epoch.
        mutating func fail(_ error: FileError) {
            isBroken = true
            epoch += 1
            lastFailure = error
        }
    }

    /// A sealed pack that can be reopened.
    private struct Sealed: Sendable {
        let pack: UInt32
        let confirmed: UInt32
        /// Its records up to that point.
        let entries: [PackIndex.Entry]
    }

    /// Bytes appended without a sync before the system is asked to write them: enough for a disk to
    /// write at full speed, few enough to be written in a tenth of a second.
    private static let writebackByteCount: UInt32 = 8 << 20

    private let files: any RepositoryFiles
    private let repository: RepositoryID
    package let packByteCountMax: Int
    private let didRemove: @Sendable (UInt32) -> Void
    private let state: Monitor<State>

    /// Creates a writer that continues where a scan ended.
    ///
    /// - Parameters:
    ///   - pack: the number of the open pack, or of one to be created.
    ///   - scan: the contents of the open pack, all confirmed; nil if it is to be created.
    ///   - didRemove: called with the number of a removed pack, so that others close it: the next
    ///     pack may get the same number.
    package init(
        files: any RepositoryFiles, repository: RepositoryID, pack: UInt32, scan: PackScan?,
        packByteCountMax: Int, didRemove: @escaping @Sendable (UInt32) -> Void = { _ in }
    ) throws(RepositoryError) {
        self.files = files
        self.didRemove = didRemove
        self.repository = repository
        self.packByteCountMax = packByteCountMax
        var file: (any RepositoryFile)?
        let head: StoreHead
        do {
            if scan != nil { file = try files.open(PackName.path(pack), .update) }
            head = try StoreHead(files, repository)
        } catch {
            throw RepositoryError(error)
        }
        let end = scan?.validEnd ?? 0
        state = Monitor(
            State(
                pack: pack, file: file, end: end, confirmed: end, writtenBack: end,
                entries: scan?.entries ?? [], firstUnconfirmed: scan == nil ? pack : pack + 1,
                highestMade: scan == nil ? pack - 1 : pack, head: head))
    }

    /// Begins a transaction, after cleaning up an earlier failure.
    ///
    /// - Returns: the epoch, to be passed to each append.
    package func begin() throws(RepositoryError) -> UInt64 {
        let pack = state.read { $0.file == nil ? nil : PackName.path($0.pack) }
        do {
            try files.checkPlace(writing: pack)
        } catch {
            throw RepositoryError(error)
        }
        return try locked(whileSyncing: \.isBroken) { (state) throws(FileError) -> UInt64 in
            if state.isBroken { try self.cut(&state) }
            state.activeTransactions += 1
            return state.epoch
        }
    }

    /// Ends a transaction.
    ///
    /// What an abandoned transaction appended after the newest publication is removed, with the
    /// packs that it filled, if no other is in progress; otherwise it is left to prune.
    package func end(wasPublished: Bool) {
        state.wait { state -> Void? in
            let isLast = state.activeTransactions == 1
            let hasRest = state.end > state.confirmed || state.hasAbandonedPacks
            let mustCut = !wasPublished && isLast && hasRest && !state.isClosed
            guard !mustCut || !state.isSyncing else { return nil }
            state.activeTransactions -= 1
            guard mustCut else { return () }
            do throws(FileError) {
                try cut(&state)
            } catch {
                // The next `begin` retries this and reports any failure.
                state.isBroken = true
                state.lastFailure = error
            }
            return ()
        }
    }

    /// Appends records in order.
    ///
    /// Blocks for the write; waits for another transaction's sync only if the pack is full.
    ///
    /// - Returns: the location of each record.
    package func append(
        _ records: [PendingRecord], of bytes: UnsafeRawBufferPointer, epoch: UInt64
    ) throws(RepositoryError) -> [RecordLocation] {
        guard let first = records.first, let last = records.last else { return [] }
        let size = last.range.upperBound - first.range.lowerBound
        let mustWait = { (state: State) in !self.hasRoom(for: size, state) }
        return try inEpoch(epoch, whileSyncing: mustWait) {
            (state) throws(FileError) -> [RecordLocation] in
            try self.write(records, of: bytes, &state)
        }
    }

    /// Appends a publish record, and syncs.
    ///
    /// The checkpoint exists when this returns.
    ///
    /// - Parameter payload: the manifest's bytes.
    package func publish(
        _ payload: [UInt8], transaction: UInt64, epoch: UInt64
    ) throws(RepositoryError) -> RecordLocation {
        let sync = try inEpoch(epoch) {
            (state) throws(FileError) -> Sync in
            let size = RecordHeader.recordByteCount(payload: payload.count)
            try self.makeRoom(for: size, &state)
            return try self.writeConfirming(
                .publish, payload: payload, transaction: transaction, &state)
        }
        return try finish(sync)
    }

    /// Records in the open pack and in the head that all of it is confirmed, so that later damage
    /// to its last checkpoint, or its loss, is never taken for the effect of a crash.
    ///
    /// Called when a writer closes.
    package func mark() throws(RepositoryError) {
        let sync = try locked { (state) throws(FileError) -> Sync? in
            if state.isBroken { try self.cut(&state) }
            guard state.file != nil, state.end == state.confirmed,
                let last = state.entries.last?.type, last.isConfirming, last != .mark
            else { return nil }
            return try self.writeConfirming(.mark, payload: [], transaction: 0, &state)
        }
        if let sync { _ = try finish(sync) }
        try locked { (state) throws(FileError) in
            let end = RecordLocation(pack: state.pack, offset: state.confirmed)
            guard end.namesBytes else { return }
            do throws(FileError) {
                try state.head.raise(to: end, self.files, self.repository)
            } catch {
                // Forgetting works on a full disk all the same; the head may lag.
                if !error.isFull { throw error }
            }
        }
    }

    /// Ends writing; nothing is written or removed afterwards, even if transactions are in
    /// progress.
    ///
    /// `mark` must be called first.
    package func close() {
        let failure = FileError(call: "append", path: StoreDirectory.packs, errno: EBADF)
        state.wait { state -> Void? in
            if state.isSyncing { return nil }
            state.isClosed = true
            state.fail(failure)
            return ()
        }
    }

    /// Leaves all packs before the open one to prune: none of them is removed or reopened.
    package func leaveSealedPacks() {
        state.change { state in
            state.lastConfirmed = nil
            state.firstUnconfirmed = max(state.firstUnconfirmed, state.pack)
        }
    }

    /// The open pack's records if it could be sealed now (`sealQuietPack`); nil if it could not, or
    /// if another pack is open.
    package func quietEntries(of pack: UInt32) -> [PackIndex.Entry]? {
        state.read { state in
            guard state.pack == pack, !state.isBroken, state.canBeSealed else { return nil }
            return state.entries
        }
    }

    /// Seals the open pack, whatever its size, unless a transaction is in progress.
    ///
    /// For prune, which considers only sealed packs. The next record begins a new pack. Costs one
    /// write and one sync; after a crash the pack is either sealed or unchanged.
    ///
    /// - Returns: true if the pack was sealed.
    package func sealQuietPack() throws(RepositoryError) -> Bool {
        try locked { (state) throws(FileError) -> Bool in
            if state.isBroken { try self.cut(&state) }
            guard state.canBeSealed, let file = state.file else { return false }
            try self.seal(file, &state)
            // No abandoned transaction may reopen it.
            state.lastConfirmed = nil
            state.firstUnconfirmed = state.pack
            return true
        }
    }

    /// Appends one record that belongs to no transaction, and syncs.
    ///
    /// If this throws, the record does not count, unless the pack cannot be truncated either.
    package func appendAlone(
        _ type: RecordType, payload: [UInt8]
    ) throws(RepositoryError) -> RecordLocation {
        precondition(type.isConfirming, "a record that is synced is a confirming one")
        do throws(RepositoryError) {
            let sync = try locked { (state) throws(FileError) -> Sync in
                if state.isBroken { try self.cut(&state) }
                let size = RecordHeader.recordByteCount(payload: payload.count)
                try self.makeRoom(for: size, &state)
                return try self.writeConfirming(type, payload: payload, transaction: 0, &state)
            }
            return try finish(sync)
        } catch {
            // The record may be complete in the file: it must not be read after this has failed. If
            // a transaction began since, it has truncated the pack, and truncating it now would
            // remove what that one appended.
            try? locked { (state) throws(FileError) in
                if state.isBroken { try self.cut(&state) }
            }
            throw error
        }
    }

    /// The pack to which records are appended; all before it are sealed.
    package var openPack: UInt32 { state.read { $0.pack } }

    /// The end of the confirmed part of the open pack.
    package var confirmedEnd: RecordLocation {
        state.read { RecordLocation(pack: $0.pack, offset: $0.confirmed) }
    }

    // MARK: - Under the lock

    /// Runs `body` under the lock; a failure ends the epoch.
    ///
    /// - Parameter mustWait: called while a sync is in progress; true to wait until that has ended.
    private func locked<T>(
        whileSyncing mustWait: (State) -> Bool = State.always,
        _ body: (inout State) throws(FileError) -> T
    ) throws(RepositoryError) -> T {
        let result = state.wait { state -> Result<T, FileError>? in
            if state.isSyncing, mustWait(state) { return nil }
            do throws(FileError) {
                return .success(try body(&state))
            } catch {
                state.fail(error)
                return .failure(error)
            }
        }
        switch result {
        case .success(let value): return value
        case .failure(let error): throw RepositoryError(error)
        }
    }

    private func inEpoch<T>(
        _ epoch: UInt64, whileSyncing mustWait: (State) -> Bool = State.always,
        _ body: (inout State) throws(FileError) -> T
    ) throws(RepositoryError) -> T {
        // A straggler of an ended epoch must not end the current one, so its failure is not thrown
        // inside `locked`.
        let isHeldUp = { (state: State) in state.isEpoch(epoch) && mustWait(state) }
        let result = try locked(whileSyncing: isHeldUp) {
            (state) throws(FileError) -> Result<T, FileError> in
            if state.isEpoch(epoch) { return .success(try body(&state)) }
            guard let failure = state.lastFailure else {
                preconditionFailure("an epoch ends by a failure")
            }
            return .failure(failure)
        }
        switch result {
        case .success(let value): return value
        case .failure(let error): throw RepositoryError(error)
        }
    }

    /// A confirming record that was appended, and the sync that it needs.
    private struct Sync {
        let file: any RepositoryFile
        let location: RecordLocation
        /// The offset at which the record ends.
        let end: UInt32
    }

    /// Waits for the disk, without the lock.
    private func finish(_ sync: Sync) throws(RepositoryError) -> RecordLocation {
        let result = Result { () throws(FileError) in
            try sync.file.sync()
            try files.checkPlace(writing: PackName.path(sync.location.pack))
        }
        var head = state.read { $0.head }
        if case .success = result, head.confirmed?.pack ?? 0 < sync.location.pack {
            // A head that lags is harmless: the next confirming record, or closing, updates it.
            let end = RecordLocation(pack: sync.location.pack, offset: sync.end)
            try? head.raise(to: end, files, repository)
        }
        state.change { [head] state in
            state.isSyncing = false
            state.head = head
            switch result {
            case .success:
                // Any failure in the meantime concerns later records.
                state.confirmed = sync.end
                state.lastConfirmed = nil
                state.firstUnconfirmed = sync.location.pack + 1
                state.writtenBack = max(state.writtenBack, sync.end)
            case .failure(let error):
                state.fail(error)
            }
        }
        do {
            try result.get()
        } catch {
            throw RepositoryError(error)
        }
        return sync.location
    }

    private func write(
        _ records: [PendingRecord], of bytes: UnsafeRawBufferPointer, _ state: inout State
    ) throws(FileError) -> [RecordLocation] {
        guard let first = records.first, let last = records.last else { return [] }
        let span = first.range.lowerBound..<last.range.upperBound
        let file = try makeRoom(for: span.count, &state)
        let start = state.end
        try file.write(UnsafeRawBufferPointer(rebasing: bytes[span]), at: UInt64(start))
        var locations: [RecordLocation] = []
        locations.reserveCapacity(records.count)
        for record in records {
            precondition(
                record.range.lowerBound - span.lowerBound == Int(state.end - start),
                "records follow each other without a gap")
            locations.append(RecordLocation(pack: state.pack, offset: state.end))
            let payload = bytes.loadUnaligned(
                fromByteOffset: record.range.lowerBound + 8, as: UInt32.self)
            state.entries.append(
                PackIndex.Entry(
                    type: record.type, offset: state.end,
                    payloadCount: Int(UInt32(littleEndian: payload)),
                    transaction: record.transaction, frame: record.frame))
            state.end += UInt32(record.range.count)
        }
        if state.end - state.writtenBack >= PackWriter.writebackByteCount {
            file.startWriteback(UInt64(state.writtenBack)..<UInt64(state.end))
            state.writtenBack = state.end
        }
        return locations
    }

    /// Appends a confirming record; `finish` must be called afterwards, without the lock.
    private func writeConfirming(
        _ type: RecordType, payload: [UInt8], transaction: UInt64, _ state: inout State
    ) throws(FileError) -> Sync {
        var record = RecordWriter()
        let range = record.append(
            type, transaction: transaction, confirmed: state.confirmed, payload: payload)
        let pending = PendingRecord(range: range, type: type, transaction: transaction)
        let locations = try record.withUnsafeBytes {
            (bytes) throws(FileError) -> [RecordLocation] in
            try write([pending], of: bytes, &state)
        }
        guard let file = state.file else { preconditionFailure("a record was written to it") }
        state.isSyncing = true
        return Sync(file: file, location: locations[0], end: state.end)
    }

    /// Number of records from which on a pack is sealed: each takes some 100 bytes of memory.
    private static let entryCountMax = 1 << 17

    private func hasRoom(for byteCount: Int, _ state: State) -> Bool {
        state.file != nil
            && (state.entries.isEmpty || Int(state.end) + byteCount <= packByteCountMax)
            && state.entries.count < PackWriter.entryCountMax
    }

    /// Returns the open pack with space for `byteCount` more; seals a full one and creates the
    /// next.
    @discardableResult
    private func makeRoom(
        for byteCount: Int, _ state: inout State
    ) throws(FileError) -> any RepositoryFile {
        if let file = state.file {
            if hasRoom(for: byteCount, state) { return file }
            try seal(file, &state)
        }
        return try make(&state)
    }

    private func seal(_ file: any RepositoryFile, _ state: inout State) throws(FileError) {
        var record = RecordWriter()
        record.append(
            .packIndex, transaction: 0, payload: PackIndex(entries: state.entries).encoded)
        let footer = PackFooter(indexOffset: state.end, pack: UInt64(state.pack))
        try file.write(record.bytes + footer.encoded, at: UInt64(state.end))
        try file.sync()
        if state.firstUnconfirmed > state.pack {
            state.lastConfirmed = Sealed(
                pack: state.pack, confirmed: state.confirmed,
                entries: state.entries.filter { $0.offset < state.confirmed })
        }
        state.beginPack(state.pack + 1)
    }

    private func make(_ state: inout State) throws(FileError) -> any RepositoryFile {
        // An existing file of that name is never overwritten: it may hold checkpoints.
        let file: any RepositoryFile
        if let unfinished = state.unfinished {
            file = unfinished
        } else {
            guard state.pack <= PackName.numberMax else {
                throw FileError(
                    call: "open", path: PackName.path(state.pack), errno: EOVERFLOW)
            }
            file = try files.open(PackName.path(state.pack), .createNew)
            // Only now: an existing file of that name is not this writer's to remove.
            state.highestMade = state.pack
            state.unfinished = file
        }
        let envelope = Envelope(kind: .pack, repository: repository, number: UInt64(state.pack))
        try file.write(envelope.encoded, at: 0)
        try file.sync()
        try files.syncDirectory(StoreDirectory.packs)
        state.unfinished = nil
        state.file = file
        state.end = UInt32(Envelope.byteCount)
        state.confirmed = state.end
        state.writtenBack = state.end
        return file
    }

    /// Truncates the packs to what is confirmed.
    private func cut(_ state: inout State) throws(FileError) {
        guard !state.isClosed else {
            throw FileError(call: "append", path: StoreDirectory.packs, errno: EBADF)
        }
        if state.hasAbandonedPacks { try takeBack(&state) }
        if let file = state.file {
            try file.truncate(to: UInt64(state.confirmed))
            try file.sync()
        }
        state.entries.removeAll { $0.offset >= state.confirmed }
        state.end = state.confirmed
        state.writtenBack = state.confirmed
        state.isBroken = false
    }

    /// Removes the packs in which nothing is confirmed, and reopens the one before them.
    private func takeBack(_ state: inout State) throws(FileError) {
        while state.highestMade >= state.firstUnconfirmed {
            let pack = state.highestMade
            state.unfinished = nil
            state.beginPack(pack)
            do throws(FileError) {
                try files.remove(PackName.path(pack))
            } catch {
                // It was removed earlier, but the removal could not be made durable.
                if !error.isMissing { throw error }
            }
            try files.syncDirectory(StoreDirectory.packs)
            didRemove(pack)
            state.highestMade = pack - 1
        }
        guard let last = state.lastConfirmed else { return }
        state.file = try files.open(PackName.path(last.pack), .update)
        state.pack = last.pack
        state.entries = last.entries
        state.end = last.confirmed
        state.confirmed = last.confirmed
        state.writtenBack = last.confirmed
        state.lastConfirmed = nil
    }
}
