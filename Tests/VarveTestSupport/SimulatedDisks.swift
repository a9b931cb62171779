public import GuestModel
import Synchronization

/// Disks in arrays, which cuts copy.
///
/// Calls fail on request, and what changed may be unknown.
public final class SimulatedDisks: DiskGroup {
    /// The calls that can fail.
    public enum Call: Hashable, Sendable {
        case disks
        case prepare
        case cut
        case changed
        case stored
        case read
        case release
        /// Of `OwnDisks`.
        case resize
        /// Of `OwnDisks`; a part is written.
        case write
    }

    struct State: Sendable {
        var contents: [String: [UInt8]] = [:]
        /// The number of the last write to each block.
        var writes: [String: [Int]] = [:]
        var writeCount = 0
        var knowsChanges = true
        var comparesContents = false
        /// Calls until the one that fails, by kind.
        var failing: [Call: (after: Int, times: Int)] = [:]
        var standing: [String: SimulatedCut] = [:]
        var cutCount = 0
        /// Requests under way in the next cut, by disk.
        var requests: [String: Int] = [:]
        /// Called in each cut.
        var inCut: (@Sendable () -> Void)?
    }

    private let state = Mutex(State())

    /// Creates a group without disks.
    public init() {}

    func with<T: Sendable>(_ body: (inout State) -> T) -> T { state.withLock { body(&$0) } }

    /// Gives the guest exactly these disks; blocks that differ count as written.
    public func set(_ disks: [String: [UInt8]]) {
        with { state in
            state.writeCount += 1
            for (name, new) in disks {
                let old = state.contents[name] ?? []
                var writes = state.writes[name] ?? []
                for block in 0..<(new.count + 4095) / 4096 {
                    let range = block * 4096..<min(new.count, block * 4096 + 4096)
                    if block == writes.count { writes.append(state.writeCount) }
                    if range.upperBound > old.count || old[range] != new[range] {
                        writes[block] = state.writeCount
                    }
                }
                state.writes[name] = Array(writes.prefix((new.count + 4095) / 4096))
            }
            state.writes = state.writes.filter { disks[$0.key] != nil }
            state.contents = disks
        }
    }

    /// The contents now.
    public var contents: [String: [UInt8]] { with { $0.contents } }

    /// Whether a cut can say what changed since another one.
    public func setKnowsChanges(_ knows: Bool) { with { $0.knowsChanges = knows } }

    /// Sets how many requests are under way in the cuts from now on; unknown if not named.
    public func setRequestsUnderWay(_ requests: [String: Int]) {
        with { $0.requests = requests }
    }

    /// Whether a block that was written with what it held counts as changed.
    public func setComparesContents(_ compares: Bool) { with { $0.comparesContents = compares } }

    /// Makes a call fail, once.
    ///
    /// - Parameters:
    ///   - after: calls of its kind that succeed before.
    ///   - times: how many fail.
    public func fail(_ call: Call, after count: Int = 0, times: Int = 1) {
        with { $0.failing[call] = (count, times) }
    }

    /// Lets no call fail any more.
    public func failNone() { with { $0.failing = [:] } }

    /// Calls `body` in each cut.
    public func inCut(_ body: (@Sendable () -> Void)?) { with { $0.inCut = body } }

    /// The names of the cuts that stand, or are prepared.
    public var standing: [String] { with { $0.standing.keys.sorted() } }

    func check(_ call: Call) throws(GuestError) {
        let fails = with { state -> Bool in
            guard let (left, times) = state.failing[call] else { return false }
            if left > 0 {
                state.failing[call] = (left - 1, times)
            } else {
                state.failing[call] = times == 1 ? nil : (0, times - 1)
            }
            return left == 0
        }
        guard fails else { return }
        throw GuestError(
            code: .callFailed,
            message: "call \(call) of the simulated disks failed as the test asked", errno: 5)
    }

    /// The disks, in the order of their names.
    public func disks() throws(GuestError) -> [GuestDisk] {
        try check(.disks)
        return contents.sorted { $0.key < $1.key }.map {
            GuestDisk(name: $0.key, byteCount: UInt64($0.value.count))
        }
    }

    /// Prepares a cut.
    public func prepareCut() throws(GuestError) -> any DiskCut {
        try check(.prepare)
        return with { state in
            state.cutCount += 1
            let cut = SimulatedCut(self, name: "cut-\(state.cutCount)")
            state.standing[cut.name] = cut
            return cut
        }
    }

    /// A cut by its name.
    public func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
        with { $0.standing[name] }
    }
}

/// A copy of simulated disks.
final class SimulatedCut: DiskCut {
    private struct State: Sendable {
        var disks: [GuestDisk] = []
        var contents: [String: [UInt8]] = [:]
        var writes: [String: [Int]] = [:]
        var writeCount = 0
        var requests: [String: Int] = [:]
        var isReleased = false
    }

    let name: String
    private let group: SimulatedDisks
    private let state = Mutex(State())

    init(_ group: SimulatedDisks, name: String) {
        self.group = group
        self.name = name
    }

    var disks: [GuestDisk] { state.withLock { $0.disks } }

    func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
        try group.check(.cut)
        group.with { $0.inCut }?()
        let disks = try group.disks()
        let (contents, writes, count) = group.with { ($0.contents, $0.writes, $0.writeCount) }
        let requests = group.with { $0.requests }
        state.withLock { state in
            state.requests = requests
            state.disks = disks
            state.contents = contents
            state.writes = writes
            state.writeCount = count
        }
        return DiskCutTimes(drain: .microseconds(20), cut: .microseconds(30))
    }

    func requestsUnderWay(ofDisk index: Int) -> Int? {
        state.withLock { $0.requests[$0.disks[index].name] }
    }

    func changedBlocks(
        ofDisk index: Int, since earlier: any DiskCut
    ) throws(GuestError) -> [BlockRange]? {
        try group.check(.changed)
        guard let earlier = earlier as? SimulatedCut, group.with({ $0.knowsChanges }) else {
            return nil
        }
        precondition(!isReleased && !earlier.isReleased, "a released cut cannot be compared")
        let name = disks[index].name
        guard earlier.disks.contains(where: { $0.name == name }) else { return nil }
        if group.with({ $0.comparesContents }) {
            let old = earlier.state.withLock { $0.contents[name] ?? [] }
            return SimulatedCut.difference(content(index), old)
        }
        let since = earlier.state.withLock { $0.writeCount }
        let writes = state.withLock { $0.writes[name] ?? [] }
        return writes.indices.filter { writes[$0] > since }.map { UInt64($0)..<UInt64($0) + 1 }
    }

    /// The blocks of `new` that differ, exactly.
    private static func difference(_ new: [UInt8], _ old: [UInt8]) -> [BlockRange] {
        var ranges: [BlockRange] = []
        for start in stride(from: 0, to: new.count, by: 4096) {
            func block(_ bytes: [UInt8]) -> [UInt8] {
                let found = start < bytes.count ? bytes[start..<min(bytes.count, start + 4096)] : []
                return Array(found) + [UInt8](repeating: 0, count: 4096 - found.count)
            }
            let number = UInt64(start / 4096)
            if block(new) != block(old) { ranges.append(number..<number + 1) }
        }
        return ranges
    }

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        try group.check(.stored)
        let content = content(index)
        var ranges: [BlockRange] = []
        for start in stride(from: 0, to: content.count, by: 4096) {
            let block = content[start..<min(content.count, start + 4096)]
            let number = UInt64(start / 4096)
            if block.contains(where: { $0 != 0 }) { ranges.append(number..<number + 1) }
        }
        return ranges
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        try group.check(.read)
        precondition(!isReleased, "a released cut cannot be read")
        let content = content(index)
        let start = Int(blocks.lowerBound) * 4096
        let end = min(content.count, Int(blocks.upperBound) * 4096)
        destination.initializeMemory(as: UInt8.self, repeating: 0)
        if start < end { destination.copyBytes(from: content[start..<end]) }
    }

    private func content(_ index: Int) -> [UInt8] {
        state.withLock { $0.contents[$0.disks[index].name] ?? [] }
    }

    private var isReleased: Bool { state.withLock { $0.isReleased } }

    func release() throws(GuestError) {
        state.withLock { state in
            precondition(!state.isReleased, "a cut is released once")
            state.isReleased = true
        }
        _ = group.with { $0.standing.removeValue(forKey: name) }
        try group.check(.release)
    }
}

extension SimulatedGuest {
    /// The bytes of its pages from frame 0 on: those of a disk that was restored into it.
    public func bytes(_ count: Int) -> [UInt8] {
        with { state in
            var bytes: [UInt8] = []
            for frame in 0..<UInt64((count + 4095) / 4096) {
                bytes += state.pages[frame] ?? [UInt8](repeating: 0, count: 4096)
            }
            return Array(bytes[..<count])
        }
    }
}
