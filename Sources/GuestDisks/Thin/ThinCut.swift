import Glibc
import GuestModel
import Synchronization

/// Snapshots of all volumes of a group.
final class ThinCut: DiskCut {
    /// What the pause needs for one volume.
    private struct Requests: Sendable {
        let suspend: any PreparedRequest
        let resume: any PreparedRequest
        /// One for each ID.
        let snapshots: [any PreparedRequest]
    }

    private struct State: Sendable {
        var parts: [ThinPart]
        var readers: [Int: BlockReader] = [:]
        /// IDs that the pool may have because of this cut.
        var used: [Set<UInt32>]
        var isCut = false
        var isMade = false
        /// Devices that may exist.
        var active: Set<String> = []
        /// It is only compared with any more.
        var isStanding = false
        /// Comparisons with it that are in progress.
        var comparisonCount = 0
        /// A snapshot of it may be gone already.
        var isIncomplete = false
        /// Its snapshots are gone before it was released.
        var isGivenUp = false
    }

    private let group: ThinDisks
    private let journal: JournalEntry
    private let requests: [Requests]
    private let diskGuard: DiskGuard?
    private let state: Mutex<State>

    let disks: [GuestDisk]
    var name: String { journal.name }
    private var calls: any DeviceMapperCalls { group.calls }

    /// Prepares a cut; the entry is in the journal.
    init(
        _ group: ThinDisks, _ entry: JournalEntry, _ parts: [ThinPart], _ diskGuard: DiskGuard?
    ) throws(GuestError) {
        var requests: [Requests] = []
        for part in parts {
            guard let origin = part.originID,
                let pool = try ThinPool(named: part.poolName, uuid: part.poolUUID, group.calls)
            else { throw ThinCut.missingPool(part) }
            var snapshots: [any PreparedRequest] = []
            for id in part.ids {
                snapshots.append(
                    try group.calls.prepare(
                        .message(pool.device.number, "create_snap \(id) \(origin)")))
            }
            requests.append(
                Requests(
                    suspend: try group.calls.prepare(.suspend(part.origin)),
                    resume: try group.calls.prepare(.resume(part.origin)),
                    snapshots: snapshots))
        }
        self.group = group
        self.diskGuard = diskGuard
        self.requests = requests
        journal = entry
        disks = parts.map(\.disk)
        state = Mutex(State(parts: parts, used: parts.map { _ in [] }))
    }

    /// A cut that was made before; nil if a snapshot is missing.
    init?(standing group: ThinDisks, _ entry: JournalEntry) throws(GuestError) {
        guard let parts = ThinPart.parts(entry.record), parts.allSatisfy({ $0.ids.count == 1 })
        else { return nil }
        self.group = group
        journal = entry
        diskGuard = nil
        requests = []
        disks = parts.map(\.disk)
        state = Mutex(
            State(
                parts: parts, used: parts.map { Set($0.ids) }, isCut: true, isMade: true,
                active: Set(parts.map(\.device))))
        for part in parts {
            guard try ThinPool(named: part.poolName, uuid: part.poolUUID, group.calls) != nil
            else { return nil }
            // Its owner died while it was read.
            try group.calls.remove(named: part.device)
        }
        for index in parts.indices {
            do throws(GuestError) {
                _ = try reader(index)
            } catch {
                // The pool has no such snapshot, as after a repair.
                guard error.errno == ENODATA || error.errno == ENXIO || error.errno == EINVAL else {
                    throw error
                }
                for part in parts { try? group.calls.remove(named: part.device) }
                return nil
            }
        }
    }

    private static func missingPool(_ part: ThinPart) -> GuestError {
        GuestError(
            code: .unavailable,
            message: "the pool \(part.poolName) of disk \(part.disk.name) does not exist any more; "
                + "activate it")
    }

    // MARK: - In the pause

    func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
        try state.withLock { (state) throws(GuestError) in
            precondition(!state.isCut, "a cut is made once")
            if let diskGuard, !diskGuard.note(suspending: state.parts.map(\.origin)) {
                throw GuestError(
                    code: .unavailable,
                    message: "the guard has died, so no volume was suspended; prepare another cut")
            }
            let start = ContinuousClock.now
            var times = DiskCutTimes()
            var failure: GuestError?
            do throws(GuestError) {
                for index in requests.indices { try suspend(index, state.parts[index]) }
                times.drain = ContinuousClock.now - start
                try ThinCut.check(budget, start)
                for index in requests.indices {
                    try snapshot(index, &state)
                    try ThinCut.check(budget, start)
                }
            } catch {
                failure = error
            }
            // All, whatever failed: a resume of a device that runs does nothing.
            if let error = resumeAll() {
                // The guard is not told, so it tries once more when this process ends.
                throw error
            }
            diskGuard?.noteRunning()
            // Snapshots that were made are deleted by `release`, which is not in a hurry.
            if let failure { throw failure }
            state.isCut = true
            times.cut = ContinuousClock.now - start - times.drain
            return times
        }
    }

    private static func check(
        _ budget: Duration, _ start: ContinuousClock.Instant
    ) throws(GuestError) {
        let elapsed = ContinuousClock.now - start
        guard elapsed > budget else { return }
        throw GuestError(
            code: .timedOut,
            message: "the cut of the disks took \(elapsed), longer than \(budget), and was given "
                + "up; allow more, or use faster storage")
    }

    private func suspend(_ index: Int, _ part: ThinPart) throws(GuestError) {
        do throws(GuestError) {
            try requests[index].suspend.run()
        } catch {
            throw GuestError(
                code: error.code,
                message: "disk \(part.disk.name), \(part.originName), could not be suspended "
                    + "(\(error.message)); look at the kernel's log (dmesg) and at "
                    + "dmsetup info \(part.originName)", errno: error.errno)
        }
    }

    private func snapshot(_ index: Int, _ state: inout State) throws(GuestError) {
        for (request, id) in zip(requests[index].snapshots, state.parts[index].ids) {
            do throws(GuestError) {
                state.used[index].insert(id)
                try request.run()
                state.parts[index].ids = [id]
                return
            } catch {
                guard error.errno == EEXIST else {
                    let part = state.parts[index]
                    throw GuestError(
                        code: error.code,
                        message: "the pool \(part.poolName) made no snapshot of disk "
                            + "\(part.disk.name) (\(error.message)); look at its mode and space "
                            + "(dmsetup status \(part.poolName)) and at the kernel's log (dmesg)",
                        errno: error.errno)
                }
                // It is another's, and must not be deleted.
                state.used[index].remove(id)
            }
        }
        throw GuestError(
            code: .busy,
            message: "the pool \(state.parts[index].poolName) has other volumes under the IDs of "
                + "this cut; take another one")
    }

    /// Resumes each volume, with patience: the first failure that lasts, if any.
    private func resumeAll() -> GuestError? {
        var failure: GuestError?
        for request in requests {
            for attempt in 0..<5 {
                do throws(GuestError) {
                    try request.resume.run()
                    break
                } catch {
                    if attempt == 4 { failure = failure ?? error }
                    system_sleep(microseconds: 2000)
                }
            }
        }
        guard let failure else { return nil }
        return GuestError(
            code: failure.code,
            message: "a volume cannot be resumed (\(failure.message)); look at dmsetup info and "
                + "try dmsetup resume", errno: failure.errno)
    }

    // MARK: - After it

    /// Notes what was made, once, so that the cut can be found again.
    private func settle(_ state: inout State) throws(GuestError) {
        guard state.isCut else {
            throw GuestError(
                code: .unavailable, message: "this cut was not made; take another one")
        }
        guard !state.isMade else { return }
        var record = journal.record
        record.isMade = true
        record.lines = state.parts.map(\.line)
        try journal.replace(record)
        state.isMade = true
    }

    private func part(_ index: Int) throws(GuestError) -> ThinPart {
        try state.withLock { (state) throws(GuestError) in
            try settle(&state)
            return state.parts[index]
        }
    }

    /// Activates the snapshot the first time.
    private func reader(_ index: Int) throws(GuestError) -> BlockReader {
        try state.withLock { (state) throws(GuestError) in
            try settle(&state)
            if let reader = state.readers[index] { return reader }
            let part = state.parts[index]
            guard let pool = try ThinPool(named: part.poolName, uuid: part.poolUUID, calls) else {
                throw ThinCut.missingPool(part)
            }
            var number = try calls.device(named: part.device)?.number
            if number == nil {
                state.active.insert(part.device)
                let parameters = [pool.device.number.text, "\(part.ids[0])", part.externalOrigin]
                number = try calls.create(
                    NewThinDevice(
                        name: part.device,
                        uuid: "VARVE-\(part.device.dropFirst(ThinPart.mark.count))",
                        length: part.disk.byteCount / 512,
                        parameters: parameters.compactMap(\.self).joined(separator: " ")))
            }
            guard let number else { throw ThinCut.missingPool(part) }
            var opened: BlockReader?
            try calls.withNode(of: number, in: group.journal.directory) {
                (path) throws(GuestError) in
                opened = try BlockReader(path, of: part.disk)
            }
            guard let opened else { throw ThinCut.missingPool(part) }
            state.readers[index] = opened
            return opened
        }
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        try reader(index).read(blocks, into: destination)
    }

    func changedBlocks(
        ofDisk index: Int, since earlier: any DiskCut
    ) throws(GuestError) -> [BlockRange]? {
        let part = try part(index)
        guard let earlier = earlier as? ThinCut,
            let other = earlier.disks.firstIndex(where: { $0.name == part.disk.name })
        else { return nil }
        guard earlier.beginComparison() else { return nil }
        defer { earlier.endComparison() }
        let earlierPart = try earlier.part(other)
        guard earlierPart.poolName == part.poolName, earlierPart.poolUUID == part.poolUUID,
            earlierPart.externalOrigin == part.externalOrigin
        else {
            group.notice("disk \(part.disk.name) is on another pool than in the earlier cut")
            return nil
        }
        let question = MappingReader.Question.difference(earlierPart.ids[0], part.ids[0])
        guard var found = try ThinMetadata(group).answer(question, part) else { return nil }
        let (old, new) = (earlierPart.disk.byteCount, part.disk.byteCount)
        if new > old {
            let page = UInt64(Page.byteCount)
            found.join(old / page..<part.disk.blockCount)
        } else if new < old, new % UInt64(Page.byteCount) != 0 {
            // The last block reads as zeros behind the new end.
            found.join(part.disk.blockCount - 1..<part.disk.blockCount)
        }
        return found
    }

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        let part = try part(index)
        // What is not mapped is read from there.
        guard part.externalOrigin == nil else { return BlockRanges.all(part.disk.blockCount) }
        return try ThinMetadata(group).answer(.mapped(part.ids[0]), part)
            ?? BlockRanges.all(part.disk.blockCount)
    }

    func release() throws(GuestError) {
        try state.withLock { (state) throws(GuestError) in
            if !state.isGivenUp { try drop(&state) }
        }
    }

    private func drop(_ state: inout State) throws(GuestError) {
        state.readers = [:]
        for device in state.active.sorted() {
            try calls.remove(named: device)
            state.active.remove(device)
        }
        for index in state.parts.indices where !state.used[index].isEmpty {
            let part = state.parts[index]
            guard let pool = try ThinPool(named: part.poolName, uuid: part.poolUUID, calls)
            else { throw ThinCut.missingPool(part) }
            for id in state.used[index] {
                try ThinCut.delete(id, pool.device.number, calls)
                state.used[index].remove(id)
            }
        }
        try journal.remove()
    }

    /// The snapshot of a disk, which another one may be made of; nil if there is none any more.
    func snapshot(of name: String) throws(GuestError) -> ThinPart? {
        guard let index = disks.firstIndex(where: { $0.name.utf8.elementsEqual(name.utf8) })
        else { return nil }
        let part = try part(index)
        return state.withLock { $0.isIncomplete } ? nil : part
    }

    // MARK: - Given up

    func readingEnded() {
        state.withLock { $0.isStanding = true }
        group.poolWatch.stands(self)
    }

    /// True if nothing but a later comparison needs it.
    var mayBeGivenUp: Bool { state.withLock { ThinCut.mayBeGivenUp($0) } }

    private static func mayBeGivenUp(_ state: State) -> Bool {
        state.isStanding && !state.isGivenUp && state.comparisonCount == 0
    }

    func isIn(_ pool: ThinPool) -> Bool {
        state.withLock { state in
            state.parts.contains {
                $0.poolName == pool.device.name && $0.poolUUID == pool.device.uuid
            }
        }
    }

    /// Drops its snapshots before it is released, unless it is needed now; false if it is.
    ///
    /// From the first snapshot on, what changed since it is unknown, even if this fails; then it is
    /// tried again, or released as always.
    func giveUp() throws(GuestError) -> Bool {
        try state.withLock { (state) throws(GuestError) in
            guard ThinCut.mayBeGivenUp(state) else { return false }
            state.isIncomplete = true
            try drop(&state)
            state.isGivenUp = true
            return true
        }
    }

    /// False if it cannot be compared with any more.
    private func beginComparison() -> Bool {
        state.withLock { state in
            guard !state.isIncomplete else { return false }
            state.comparisonCount += 1
            return true
        }
    }

    private func endComparison() { state.withLock { $0.comparisonCount -= 1 } }

    /// Deletes a snapshot; one that does not exist is none.
    static func delete(
        _ id: UInt32, _ pool: DeviceNumber, _ calls: any DeviceMapperCalls
    ) throws(GuestError) {
        do throws(GuestError) {
            try calls.message(pool, "delete \(id)")
        } catch {
            guard error.errno == ENODATA else { throw error }
        }
    }
}
