import Glibc
public import GuestModel
import Synchronization

// New contents of a thin volume are a snapshot under an ID of their own, at first of a cut, or of
// the volume as it is, and then written to. The exchange gives the volume's device another table
// with this ID: the device keeps its name and number, so a back end that has it open need not know.
//
//                     prepared          exchanged         ended
//   device's table    thin POOL OLD     thin POOL NEW     thin POOL OLD
//   the pool has      OLD, NEW          OLD, NEW          OLD
//
// LVM, or a script that activates the volume after a reboot, knows it by its ID. So in the end it
// gets this ID again: OLD is deleted, and made again as a snapshot of NEW while the device is
// suspended for a moment.
//
// Lines of the entry, one for each volume: `volume NAME BYTES SECTOR ORIGIN ORIGINNAME POOLNAME
// POOLUUID DEVICE EXTERNAL NEW OLD`, as of a cut (ThinCut), DEVICE being the name under which the
// new contents are written. Which of the two is in force is said by the device's table alone:
//
//   table has    the entry's owner is dead
//   OLD          NEW is deleted: there was no exchange, or it has ended
//   NEW          the volume gets the ID OLD again
//   no device    nothing is deleted until it is active again

/// One volume of an exchange.
struct ThinReplacement: Sendable {
    var part: ThinPart
    let oldID: UInt32
    var newID: UInt32 { part.ids[0] }

    init(_ volume: ThinVolume, device: String) {
        part = ThinPart(volume, device: device)
        part.ids = [part.ids[0]]
        oldID = volume.table.id
    }

    /// Its line in the journal.
    var line: [String] { part.line + ["\(oldID)"] }

    init?(_ words: ArraySlice<String>) {
        guard let last = words.last, let old = UInt32(last), let part = ThinPart(words.dropLast()),
            part.ids.count == 1
        else { return nil }
        self.part = part
        oldID = old
    }

    /// The volumes of an entry; nil if a line is damaged.
    static func all(_ record: JournalRecord) -> [ThinReplacement]? {
        let lines = record.lines("volume")
        let found = lines.compactMap { ThinReplacement($0) }
        return found.count == lines.count ? found : nil
    }

    /// A table of the volume's device.
    func table(_ id: UInt32, _ pool: ThinPool) -> MappedTarget {
        MappedTarget(
            start: 0, length: part.disk.byteCount / 512, type: "thin",
            parameters: [pool.device.number.text, "\(id)", part.externalOrigin].compactMap(\.self)
                .joined(separator: " "))
    }
}

/// New contents of thin volumes.
final class ThinExchange: DiskExchange {
    private struct Requests: Sendable {
        let loadNew: any PreparedRequest
        let loadOld: any PreparedRequest
        let suspend: any PreparedRequest
        let resume: any PreparedRequest
        let clear: any PreparedRequest

        init(
            _ new: ThinReplacement, _ pool: ThinPool, _ calls: any DeviceMapperCalls
        ) throws(GuestError) {
            let origin = new.part.origin
            loadNew = try calls.prepare(.load(origin, new.table(new.newID, pool)))
            loadOld = try calls.prepare(.load(origin, new.table(new.oldID, pool)))
            suspend = try calls.prepare(.suspend(origin))
            resume = try calls.prepare(.resume(origin))
            clear = try calls.prepare(.clear(origin))
        }
    }

    private struct State: Sendable {
        var files: [Int: (reader: BlockReader, writer: OpenFile)] = [:]
        /// IDs that the pool has because of this.
        var made: Set<UInt32> = []
        /// Devices that may exist.
        var active: Set<String> = []
        var isExchanged = false
        /// Tables with the new contents may be loaded, and not in force.
        var isLoaded = false
    }

    private let group: ThinDisks
    private let journal: JournalEntry
    private let volumes: [ThinVolume]
    private let replacements: [ThinReplacement]
    private let diskGuard: DiskGuard?
    private let requests: [Requests]
    private let state = Mutex(State())

    let disks: [GuestDisk]
    let beginsWithCut: Bool
    private var calls: any DeviceMapperCalls { group.calls }

    /// - Parameters:
    ///   - replacements: noted in the journal.
    ///   - origins: the ID of the snapshot with which each begins.
    init(
        _ group: ThinDisks, _ entry: JournalEntry, _ volumes: [ThinVolume],
        _ replacements: [ThinReplacement], from origins: [UInt32], isCut: Bool,
        _ diskGuard: DiskGuard?
    ) throws(GuestError) {
        var requests: [Requests] = []
        do throws(GuestError) {
            for (volume, new) in zip(volumes, replacements) {
                requests.append(try Requests(new, volume.pool, group.calls))
            }
        } catch {
            try? entry.remove()
            throw error
        }
        self.group = group
        journal = entry
        self.volumes = volumes
        self.replacements = replacements
        self.diskGuard = diskGuard
        self.requests = requests
        disks = replacements.map(\.part.disk)
        beginsWithCut = isCut
        do throws(GuestError) {
            for index in replacements.indices { try make(index, from: origins[index]) }
        } catch {
            try? end()
            throw error
        }
    }

    private func make(_ index: Int, from origin: UInt32) throws(GuestError) {
        let new = replacements[index]
        let pool = volumes[index].pool
        do throws(GuestError) {
            try calls.message(pool.device.number, "create_snap \(new.newID) \(origin)")
        } catch {
            if error.errno != EEXIST { state.withLock { _ = $0.made.insert(new.newID) } }
            throw GuestError(
                code: error.code,
                message: "the pool \(pool.device.name) made no snapshot for disk "
                    + "\(new.part.disk.name) (\(error.message))", errno: error.errno)
        }
        state.withLock { state in
            state.made.insert(new.newID)
            state.active.insert(new.part.device)
        }
        let number = try calls.create(
            NewThinDevice(
                name: new.part.device, uuid: "",
                length: new.part.disk.byteCount / 512,
                parameters: new.table(new.newID, pool).parameters, isReadOnly: false))
        var files: (BlockReader, OpenFile)?
        try calls.withNode(of: number, in: group.journal.directory) { (path) throws(GuestError) in
            files = (try BlockReader(path, of: new.part.disk), try OpenFile(path, O_RDWR))
        }
        guard let files else { return }
        state.withLock { $0.files[index] = files }
    }

    // MARK: - While the guest runs

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        let part = replacements[index].part
        guard part.externalOrigin == nil else { return BlockRanges.all(part.disk.blockCount) }
        return try ThinMetadata(group).answer(.mapped(part.ids[0]), part)
            ?? BlockRanges.all(part.disk.blockCount)
    }

    private func files(_ index: Int) throws(GuestError) -> (reader: BlockReader, writer: OpenFile) {
        guard let files = state.withLock({ $0.files[index] }) else {
            throw GuestError(
                code: .unavailable,
                message: "the new contents of disk \(disks[index].name) are closed")
        }
        return files
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        try files(index).reader.read(blocks, into: destination)
    }

    func write(
        _ blocks: BlockRange, ofDisk index: Int, from source: UnsafeRawBufferPointer
    ) throws(GuestError) {
        try files(index).writer.write(blocks, from: source, end: disks[index].byteCount)
    }

    func finishWriting() throws(GuestError) -> any DiskCut {
        let files = state.withLock { state in
            defer { state.files = [:] }
            return state.files
        }
        for (_, file) in files {
            guard file.writer.withDescriptor(system_fsync) == 0 else {
                throw GuestError.call("fsync", file.writer.path.printable)
            }
        }
        // A volume that is active could be snapshotted only while it is suspended.
        try deactivate()
        return try group.makeCut(
            of: zip(volumes, replacements).map { ($0, $1.newID) }, disks: disks)
    }

    private func deactivate() throws(GuestError) {
        for device in state.withLock({ $0.active.sorted() }) {
            try calls.remove(named: device)
            state.withLock { _ = $0.active.remove(device) }
        }
    }

    // MARK: - In the pause

    /// Loads the tables, which takes longer than to put them in force.
    func load() throws(GuestError) {
        try noteSuspending()
        state.withLock { $0.isLoaded = true }
        for request in requests { try request.loadNew.run() }
    }

    /// Clears the tables: the next one who resumes a device would put them in force.
    func unload() throws(GuestError) {
        guard state.withLock({ $0.isLoaded }) else { return }
        for request in requests {
            try ThinDisks.persistently { () throws(GuestError) in try request.clear.run() }
        }
        state.withLock { $0.isLoaded = false }
        diskGuard?.noteRunning()
    }

    func exchange() throws(GuestError) {
        do throws(GuestError) {
            if !state.withLock({ $0.isLoaded }) { try load() }
            try swap()
            state.withLock { state in
                state.isExchanged = true
                state.isLoaded = false
            }
        } catch {
            state.withLock { $0.isExchanged = true }
            try takeBack()
            throw error
        }
    }

    func takeBack() throws(GuestError) {
        guard state.withLock({ $0.isExchanged }) else { return }
        do throws(GuestError) {
            try noteSuspending()
            state.withLock { $0.isLoaded = true }
            for request in requests { try request.loadOld.run() }
            try swap()
        } catch {
            throw GuestError(
                code: error.code,
                message: "the disks could not be put back to what they held (\(error.message)); "
                    + "look at them with dmsetup table before the guest runs", errno: error.errno)
        }
        state.withLock { state in
            state.isExchanged = false
            state.isLoaded = false
        }
    }

    /// Tells the guard that devices may have a table loaded, or be suspended, from here on.
    private func noteSuspending() throws(GuestError) {
        guard let diskGuard, !diskGuard.note(suspending: replacements.map(\.part.origin)) else {
            return
        }
        throw GuestError(
            code: .unavailable,
            message: "the guard has died, so no disk was exchanged; try again")
    }

    /// Puts the loaded tables in force; no device is suspended afterwards.
    private func swap() throws(GuestError) {
        var failure: GuestError?
        do throws(GuestError) {
            for request in requests { try request.suspend.run() }
        } catch {
            failure = error
        }
        var isRunning = true
        for request in requests {
            do throws(GuestError) {
                try ThinDisks.persistently { () throws(GuestError) in try request.resume.run() }
            } catch {
                isRunning = false
                failure = failure ?? error
            }
        }
        if isRunning { diskGuard?.noteRunning() }
        if let failure { throw failure }
    }

    // MARK: - The end

    func end() throws(GuestError) {
        state.withLock { $0.files = [:] }
        try unload()
        try deactivate()
        let (isExchanged, made) = state.withLock { ($0.isExchanged, $0.made) }
        for (index, new) in replacements.enumerated() {
            let pool = volumes[index].pool
            if isExchanged {
                try group.giveIDBack(new, pool, diskGuard)
            } else if made.contains(new.newID) {
                try ThinCut.delete(new.newID, pool.device.number, calls)
            }
            state.withLock { _ = $0.made.remove(new.newID) }
        }
        try journal.remove()
    }
}

extension ThinDisks {
    /// Makes snapshots in which new contents are written.
    public func prepareExchange(
        from cut: (any DiskCut)?
    ) throws(GuestError) -> any DiskExchange {
        let volumes = try resolve()
        poolWatch.watch(ThinDisks.pools(of: volumes))
        try checkPools(volumes)
        if let cut = cut as? ThinCut, let origins = try origins(in: cut, volumes) {
            return try makeExchange(volumes, from: origins, isCut: true)
        }
        // The volumes are in use: only a cut of them can be made a snapshot of.
        guard let now = try prepareCut() as? ThinCut else { preconditionFailure("its own cut") }
        do throws(GuestError) {
            _ = try now.cut(within: .seconds(10))
            guard let origins = try origins(in: now, volumes) else {
                throw GuestError(
                    code: .unavailable,
                    message: "a disk was changed while its revert was prepared; try again")
            }
            let exchange = try makeExchange(volumes, from: origins, isCut: false)
            try? now.release()
            return exchange
        } catch {
            try? now.release()
            throw error
        }
    }

    /// The IDs of the volumes' snapshots in a cut; nil if one cannot be used.
    private func origins(
        in cut: ThinCut, _ volumes: [ThinVolume]
    ) throws(GuestError) -> [UInt32]? {
        var origins: [UInt32] = []
        for volume in volumes {
            guard let part = try cut.snapshot(of: volume.disk.name),
                part.disk.byteCount == volume.disk.byteCount,
                part.poolName == volume.pool.device.name,
                part.poolUUID == volume.pool.device.uuid,
                part.externalOrigin == volume.table.externalOrigin
            else { return nil }
            origins.append(part.ids[0])
        }
        return origins
    }

    private func makeExchange(
        _ volumes: [ThinVolume], from origins: [UInt32], isCut: Bool
    ) throws(GuestError) -> ThinExchange {
        let token = Journal.makeToken()
        let replacements = volumes.enumerated().map { index, volume in
            ThinReplacement(volume, device: "\(ThinPart.mark)\(token)-\(index)")
        }
        var record = JournalRecord(.thinExchange)
        record.lines = replacements.map(\.line)
        let runningGuard = try aliveGuard()
        let entry = try journal.add("exchange-\(token)", record)
        // If that fails, the entry stays if something of it does.
        return try ThinExchange(
            self, entry, volumes, replacements, from: origins, isCut: isCut, runningGuard)
    }

    /// A cut that consists of snapshots of inactive volumes, made at once.
    func makeCut(
        of volumes: [(volume: ThinVolume, id: UInt32)], disks: [GuestDisk]
    ) throws(GuestError) -> any DiskCut {
        let token = Journal.makeToken()
        var parts = volumes.enumerated().map { index, item in
            ThinPart(item.volume, device: "\(ThinPart.mark)\(token)-\(index)")
        }
        for index in parts.indices { parts[index].ids = [parts[index].ids[0]] }
        var record = JournalRecord(.thin)
        record.lines = parts.map(\.line)
        let entry = try journal.add("cut-\(token)", record)
        var made: [(UInt32, DeviceNumber)] = []
        do throws(GuestError) {
            for (part, item) in zip(parts, volumes) {
                let pool = item.volume.pool.device.number
                do throws(GuestError) {
                    try calls.message(pool, "create_snap \(part.ids[0]) \(item.id)")
                } catch {
                    // An ID of another's must not be deleted.
                    if error.errno != EEXIST { made.append((part.ids[0], pool)) }
                    throw error
                }
                made.append((part.ids[0], pool))
            }
            record.isMade = true
            try entry.replace(record)
            if let cut = try ThinCut(standing: self, entry) { return cut }
            throw GuestError(
                code: .unavailable, message: "a snapshot of the new contents has vanished")
        } catch {
            // What cannot be dropped now stays noted.
            try? dropCut(parts, made, entry)
            throw error
        }
    }

    private func dropCut(
        _ parts: [ThinPart], _ made: [(UInt32, DeviceNumber)], _ entry: JournalEntry
    ) throws(GuestError) {
        for part in parts { try calls.remove(named: part.device) }
        for (id, pool) in made { try ThinCut.delete(id, pool, calls) }
        try entry.remove()
    }

    /// Ends the exchange of a volume: it gets back the ID that it had before.
    func giveIDBack(
        _ new: ThinReplacement, _ pool: ThinPool, _ diskGuard: DiskGuard?
    ) throws(GuestError) {
        let origin = new.part.origin
        let number = pool.device.number
        // What it held before, or a snapshot of an attempt that did not come to its end.
        try ThinCut.delete(new.oldID, number, calls)
        guard diskGuard?.note(suspending: [origin]) ?? true else {
            throw GuestError(
                code: .unavailable,
                message: "the guard has died, so the volume \(new.part.originName) keeps the ID "
                    + "\(new.newID) for now; the next checkpointer gives it its own")
        }
        let resume = try calls.prepare(.resume(origin))
        var failure: GuestError?
        do throws(GuestError) {
            try calls.prepare(.suspend(origin)).run()
            try calls.message(number, "create_snap \(new.oldID) \(new.newID)")
            try calls.prepare(.load(origin, new.table(new.oldID, pool))).run()
        } catch {
            failure = error
        }
        try ThinDisks.persistently { () throws(GuestError) in try resume.run() }
        diskGuard?.noteRunning()
        if let failure { throw failure }
        try ThinCut.delete(new.newID, number, calls)
    }

    /// Ends the exchange of a process that died.
    func dropExchange(_ entry: JournalEntry) throws(GuestError) -> [String] {
        guard let replacements = ThinReplacement.all(entry.record) else { throw damaged(entry) }
        var dropped: [String] = []
        for new in replacements {
            let part = new.part
            let pool = try pool(part.poolName, part.poolUUID, entry)
            try calls.remove(named: part.device)
            guard let device = try calls.device(part.origin), device.name == part.originName,
                let table = try calls.table(of: part.origin).first.flatMap({
                    ThinTable($0.parameters)
                })
            else {
                throw GuestError(
                    code: .unavailable,
                    message: "\(entry.name) has left new contents of \(part.originName) under the "
                        + "ID \(new.newID) of the pool \(part.poolName), and the volume, ID "
                        + "\(new.oldID), is not active; activate it, or make it from them if it "
                        + "does not exist any more (create_snap \(new.oldID) \(new.newID))")
            }
            if table.id == new.newID {
                try giveIDBack(new, pool, nil)
                dropped.append("\(part.originName) had the ID of its new contents")
            } else {
                _ = try DiskGuard.resume(part.origin, calls)
                // A table that was prepared and not put in force has the ID in use.
                try calls.prepare(.clear(part.origin)).run()
                let now = try calls.table(of: part.origin).first.flatMap {
                    ThinTable($0.parameters)
                }
                if now?.id == new.newID {
                    try giveIDBack(new, pool, nil)
                } else {
                    try ThinCut.delete(new.newID, pool.device.number, calls)
                }
                dropped.append("new contents of \(part.originName) in the pool \(part.poolName)")
            }
        }
        return dropped
    }

    /// Repeats a call that must succeed, for a moment.
    static func persistently(_ body: () throws(GuestError) -> Void) throws(GuestError) {
        for _ in 1..<5 {
            do throws(GuestError) { return try body() } catch {
                system_sleep(microseconds: 2000)
            }
        }
        try body()
    }
}

extension OpenFile {
    /// Writes blocks at their place; what is past the end is left out.
    ///
    /// `pwrite(2)`.
    func write(
        _ blocks: BlockRange, from source: UnsafeRawBufferPointer, end: UInt64
    ) throws(GuestError) {
        guard blocks.upperBound <= UInt64(Int.max / Page.byteCount),
            source.count == blocks.count * Page.byteCount
        else {
            throw GuestError(
                code: .invalidRange,
                message: "blocks \(blocks.lowerBound)..<\(blocks.upperBound) are not the "
                    + "\(source.count) bytes to be written")
        }
        let offset = Int(blocks.lowerBound) * Page.byteCount
        let end = min(source.count, max(0, Int(clamping: end) - offset))
        var done = 0
        while done < end {
            let count = withDescriptor { descriptor in
                system_pwrite(
                    descriptor, UnsafeRawBufferPointer(rebasing: source[done..<end]),
                    at: offset + done)
            }
            guard count > 0 else { throw GuestError.call("pwrite", path.printable) }
            done += count
        }
    }
}
