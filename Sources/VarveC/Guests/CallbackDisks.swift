import CVarve
import GuestModel
import Synchronization

// What the callbacks return is checked before it is used: a wrong number is an error of the guest,
// with the callback's name.

/// A table of the program's, and what it is passed.
struct CallerTable<Table>: @unchecked Sendable {
    // Unchecked: function pointers, and pointers that only the program's callbacks use.
    let table: Table
    let context: UnsafeMutableRawPointer?
}

/// The callbacks of disks, with what they return as values.
final class DiskCalls: Sendable {
    private typealias Blocks =
        (
            UnsafePointer<CChar>, UnsafeMutablePointer<UnsafePointer<varve_range>?>,
            UnsafeMutablePointer<Int>
        ) -> Int32

    private let calls: CallerTable<varve_disk_callbacks>
    let failures: CallbackFailures

    init(
        _ table: varve_disk_callbacks, _ context: UnsafeMutableRawPointer?,
        _ failures: CallbackFailures
    ) throws(Failure) {
        guard table.list != nil, table.cut != nil, table.read != nil, table.release != nil else {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "the disks' callbacks list, cut, read and release must not be NULL")
        }
        calls = CallerTable(table: table, context: context)
        self.failures = failures
    }

    var canWrite: Bool { calls.table.write != nil }
    var canPrepare: Bool { calls.table.prepare != nil }

    private func missing(_ name: String) -> GuestError {
        GuestError(code: .unsupported, message: "the guest's disks have no callback \(name)")
    }

    private static func wrong(_ message: String) -> GuestError {
        GuestError(code: .invalidRange, message: "the guest's callback " + message)
    }

    // MARK: - Disks

    func list() throws(GuestError) -> [GuestDisk] {
        guard let list = calls.table.list else { throw missing("list") }
        var pointer: UnsafePointer<varve_disk>?
        var count = 0
        try failures.call("list") { list(calls.context, &pointer, &count) }
        guard 0...DiskCalls.countMax ~= count else {
            throw DiskCalls.wrong(
                "list returned \(count) disks; at most \(DiskCalls.countMax) are possible")
        }
        guard count > 0 else { return [] }
        guard let pointer else { throw DiskCalls.wrong("list returned \(count) disks, no array") }
        var read: [(disk: varve_disk, name: String)] = []
        do throws(Failure) {
            try varve_disk.forEach(of: pointer, count: count, "disks") { (disk) throws(Failure) in
                read.append((disk, try require(string: disk.name, "the name")))
            }
        } catch {
            throw DiskCalls.wrong("list returned what is no disk: \(error.message)")
        }
        var disks: [GuestDisk] = []
        for (disk, name) in read {
            guard !disks.contains(where: { $0.name.utf8.elementsEqual(name.utf8) }) else {
                throw DiskCalls.wrong(
                    "list returned two disks named '\(PrintableText.escape(name))'")
            }
            disks.append(try DiskCalls.disk(disk, name))
        }
        return disks
    }

    /// As many as a checkpoint can have.
    private static let countMax = 1023
    private static let byteCountMax: UInt64 = 1 << 44

    private static func disk(
        _ disk: varve_disk, _ name: String
    ) throws(GuestError) -> GuestDisk {
        let sector = disk.block_byte_count == 0 ? 512 : Int(disk.block_byte_count)
        guard [512, 4096].contains(sector), 1...byteCountMax ~= disk.byte_count,
            disk.byte_count % UInt64(sector) == 0
        else {
            throw wrong(
                "list returned disk '\(PrintableText.escape(name))' with \(disk.byte_count) bytes "
                    + "in blocks of \(sector); a disk has at least one block of 512 or 4096 bytes, "
                    + "only whole ones, and at most 16 TiB")
        }
        return GuestDisk(name: name, byteCount: disk.byte_count, sectorByteCount: sector)
    }

    // MARK: - Cuts

    func prepare(_ cut: UInt64) throws(GuestError) {
        guard let prepare = calls.table.prepare else { return }
        try failures.call("prepare") { prepare(calls.context, cut) }
    }

    func cut(_ number: UInt64) throws(GuestError) {
        guard let cut = calls.table.cut else { throw missing("cut") }
        try failures.call("cut") { cut(calls.context, number) }
    }

    func release(_ cut: UInt64) throws(GuestError) {
        guard let release = calls.table.release else { throw missing("release") }
        try failures.call("release") { release(calls.context, cut) }
    }

    /// The blocks that may have changed; nil if that is unknown.
    func changed(
        _ disk: GuestDisk, in cut: UInt64, since earlier: UInt64
    ) throws(GuestError) -> [BlockRange]? {
        guard let changed = calls.table.changed else { return nil }
        return try blocks(of: disk, "changed", unknown: Int32(VARVE_BLOCKS_UNKNOWN)) {
            name, ranges, count in changed(calls.context, cut, earlier, name, ranges, count)
        }
    }

    func stored(_ disk: GuestDisk, in cut: UInt64) throws(GuestError) -> [BlockRange] {
        let all = [0..<disk.blockCount]
        guard let stored = calls.table.stored else { return all }
        let found = try blocks(of: disk, "stored", unknown: nil) { name, ranges, count in
            stored(calls.context, cut, name, ranges, count)
        }
        return found ?? all
    }

    /// Ranges as a callback returned them, checked; nil if it returned `unknown`.
    private func blocks(
        of disk: GuestDisk, _ callback: String, unknown: Int32?, _ call: Blocks
    ) throws(GuestError) -> [BlockRange]? {
        var pointer: UnsafePointer<varve_range>?
        var count = 0
        let result = disk.name.withCString { name in
            inCallback { call(name, &pointer, &count) }
        }
        if let unknown, result == unknown { return nil }
        guard result == 0 else { throw failures.note(callback, Int(result)) }
        // Each has a block of its own.
        guard count >= 0, UInt64(count) <= disk.blockCount, count == 0 || pointer != nil else {
            throw DiskCalls.wrong(
                "\(callback) returned \(count) ranges\(pointer == nil ? ", no array," : "") for "
                    + "disk '\(disk.name)', which has \(counted(disk.blockCount, "block"))")
        }
        var ranges: [BlockRange] = []
        var end: UInt64 = 0
        for range in UnsafeBufferPointer(start: pointer, count: count) {
            let next = range.first.addingReportingOverflow(range.count)
            guard range.count > 0, range.first >= end, !next.overflow,
                next.partialValue <= disk.blockCount
            else {
                throw DiskCalls.wrong(
                    "\(callback) returned \(range.count) blocks from \(range.first) on for disk "
                        + "'\(disk.name)'; ranges ascend, have at least one block, do not overlap, "
                        + "and end at block \(disk.blockCount) or before")
            }
            if let last = ranges.last, last.upperBound == range.first {
                ranges[ranges.count - 1] = last.lowerBound..<next.partialValue
            } else {
                ranges.append(range.first..<next.partialValue)
            }
            end = next.partialValue
        }
        return ranges
    }

    func read(
        _ blocks: BlockRange, of disk: GuestDisk, in cut: UInt64,
        into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        guard let read = calls.table.read else { throw missing("read") }
        try failures.call("read") {
            disk.name.withCString { name in
                read(
                    calls.context, cut, name, blocks.lowerBound, UInt64(blocks.count),
                    destination.baseAddress)
            }
        }
        let start = blocks.lowerBound * UInt64(Page.byteCount)
        let rest = disk.byteCount > start ? disk.byteCount - start : 0
        guard rest < UInt64(destination.count) else { return }
        UnsafeMutableRawBufferPointer(rebasing: destination[Int(rest)...])
            .initializeMemory(as: UInt8.self, repeating: 0)
    }

    // MARK: - Reverts

    func write(
        _ blocks: BlockRange, of disk: String, from source: UnsafeRawBufferPointer
    ) throws(GuestError) {
        guard let write = calls.table.write else { throw missing("write") }
        try failures.call("write") {
            disk.withCString { name in
                write(
                    calls.context, name, blocks.lowerBound, UInt64(blocks.count),
                    source.baseAddress)
            }
        }
    }

    func resize(_ disk: String, to byteCount: UInt64) throws(GuestError) {
        guard let resize = calls.table.resize else { throw missing("resize") }
        try failures.call("resize") {
            disk.withCString { name in resize(calls.context, name, byteCount) }
        }
    }
}

/// Disks that a program's table of callbacks stands for, and that stay where they are in a revert.
final class CallbackDisks: DiskGroup {
    private let calls: DiskCalls
    private let cutCount = Atomic<UInt64>(0)

    init(_ calls: DiskCalls) { self.calls = calls }

    func disks() throws(GuestError) -> [GuestDisk] { try calls.list() }

    func prepareCut() throws(GuestError) -> any DiskCut {
        let disks = try calls.list()
        let number = cutCount.add(1, ordering: .relaxed).newValue
        try calls.prepare(number)
        return CallbackCut(calls, number, disks)
    }

    /// Nil: a cut has a number only as long as its session.
    func standingCut(_ name: String) -> (any DiskCut)? { nil }
}

/// The same with a callback that writes them.
final class WritableCallbackDisks: RevertibleDisks {
    private let calls: DiskCalls
    private let inner: CallbackDisks

    init(_ calls: DiskCalls) {
        self.calls = calls
        inner = CallbackDisks(calls)
    }

    func disks() throws(GuestError) -> [GuestDisk] { try inner.disks() }
    func prepareCut() throws(GuestError) -> any DiskCut { try inner.prepareCut() }
    func standingCut(_ name: String) -> (any DiskCut)? { inner.standingCut(name) }

    func resize(_ disk: String, to byteCount: UInt64) throws(GuestError) {
        try calls.resize(disk, to: byteCount)
    }

    func write(
        _ blocks: BlockRange, of disk: String, from source: UnsafeRawBufferPointer
    ) throws(GuestError) {
        try calls.write(blocks, of: disk, from: source)
    }
}

/// A cut that has a number.
final class CallbackCut: DiskCut {
    private struct State {
        var disks: [GuestDisk]
        /// True if there is something to release.
        var isOwed: Bool
    }

    private let calls: DiskCalls
    private let number: UInt64
    private let state: Mutex<State>

    init(_ calls: DiskCalls, _ number: UInt64, _ disks: [GuestDisk]) {
        self.calls = calls
        self.number = number
        state = Mutex(State(disks: disks, isOwed: calls.canPrepare))
    }

    var disks: [GuestDisk] { state.withLock { $0.disks } }

    /// Empty: see `CallbackDisks.standingCut`.
    var name: String { "" }

    private func disk(_ index: Int) -> GuestDisk { state.withLock { $0.disks[index] } }

    func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
        let start = ContinuousClock.now
        state.withLock { $0.isOwed = true }
        try calls.cut(number)
        let now = try calls.list()
        try state.withLock { (state) throws(GuestError) in
            guard now.map(\.name) == state.disks.map(\.name) else {
                throw GuestError(
                    code: .invalidRange,
                    message: "the guest's callback list returned other disks in the pause than "
                        + "before it; change them while no capture runs")
            }
            state.disks = now
        }
        let time = ContinuousClock.now - start
        guard time <= budget else {
            throw GuestError(
                code: .timedOut,
                message: "the guest's callback cut took \(time), longer than \(budget); allow more "
                    + "(disk_cut_budget_nanoseconds), or do more in prepare")
        }
        return DiskCutTimes(cut: time)
    }

    func changedBlocks(
        ofDisk index: Int, since earlier: any DiskCut
    ) throws(GuestError) -> [BlockRange]? {
        let disk = disk(index)
        guard let earlier = earlier as? CallbackCut,
            earlier.disks.contains(where: { $0.name.utf8.elementsEqual(disk.name.utf8) })
        else { return nil }
        return try calls.changed(disk, in: number, since: earlier.number)
    }

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        try calls.stored(disk(index), in: number)
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        try calls.read(blocks, of: disk(index), in: number, into: destination)
    }

    func release() throws(GuestError) {
        let isOwed = state.withLock { state in
            defer { state.isOwed = false }
            return state.isOwed
        }
        if isOwed { try calls.release(number) }
    }
}
