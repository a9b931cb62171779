public import GuestModel
import Synchronization

/// Several groups as one: a guest with disks of different kinds.
///
/// In the pause they are cut one after the other, while the guest stands still. For the guest, all
/// are of one instant; for another writer of the disks they are not. Each group gets the time that
/// those before it have left.
///
/// The name of a cut consists of the names of its parts, so it is found again only by a set of the
/// same groups in the same order, and `ThinVolumes.createSnapshot` does not find it. Calls block as
/// those of the groups do. Thread-safe if the groups are.
public final class DiskGroupSet: JournaledDisks, ExchangeableDisks {
    private let groups: [any DiskGroup]

    /// Creates a set.
    ///
    /// - Parameter groups: in the order in which they are cut; no two may have a disk of one name.
    public init(_ groups: [any DiskGroup]) { self.groups = groups }

    /// The entries of all groups' journals, whether a living process owns them or not.
    public func leftovers() throws(GuestError) -> [DiskLeftover] {
        var found: [DiskLeftover] = []
        for case let group as any JournaledDisks in groups { found += try group.leftovers() }
        return found
    }

    /// Removes what cuts of all groups have left and no living process owns.
    ///
    /// Stops at the first group that fails, and throws its error.
    @discardableResult
    public func dropLeftovers() throws(GuestError) -> [DiskLeftover] {
        var dropped: [DiskLeftover] = []
        for case let group as any JournaledDisks in groups {
            dropped += try group.dropLeftovers()
        }
        return dropped
    }

    /// The disks of all groups.
    ///
    /// - Throws: `invalidOption` if two have one name; what a group throws.
    public func disks() throws(GuestError) -> [GuestDisk] {
        var disks: [GuestDisk] = []
        for group in groups { disks += try group.disks() }
        try DiskNames.check(disks.map(\.name))
        return disks
    }

    /// Prepares a cut of each group; if one fails, those before it are released.
    public func prepareCut() throws(GuestError) -> any DiskCut {
        var cuts: [any DiskCut] = []
        do throws(GuestError) {
            for group in groups { cuts.append(try group.prepareCut()) }
            try DiskNames.check(cuts.flatMap { $0.disks.map(\.name) })
        } catch {
            for cut in cuts { try? cut.release() }
            throw error
        }
        return DiskCutSet(cuts)
    }

    /// The cut with a name, if each part of it is found; otherwise nil.
    public func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
        guard let names = DiskCutSet.parts(name), names.count == groups.count else { return nil }
        var cuts: [any DiskCut] = []
        for (group, name) in zip(groups, names) {
            guard let cut = try group.standingCut(name) else { return nil }
            cuts.append(cut)
        }
        return DiskCutSet(cuts)
    }

    /// Makes new contents for the disks of each group; if one fails, those before it are dropped.
    ///
    /// - Throws: `unsupported` if a group is not `ExchangeableDisks`; what a group throws.
    public func prepareExchange(
        from cut: (any DiskCut)?
    ) throws(GuestError) -> any DiskExchange {
        let cuts = (cut as? DiskCutSet)?.parts
        var parts: [any DiskExchange] = []
        do throws(GuestError) {
            for (index, group) in groups.enumerated() {
                guard let group = group as? any ExchangeableDisks else {
                    throw GuestError(
                        code: .unsupported,
                        message: "a disk of the guest cannot be reverted with its memory; restore "
                            + "the checkpoint as a new guest")
                }
                let known = cuts.flatMap { $0.count == groups.count ? $0[index] : nil }
                parts.append(try group.prepareExchange(from: known))
            }
        } catch {
            for part in parts { try? part.end() }
            throw error
        }
        return DiskExchangeSet(parts)
    }
}

/// New contents of the disks of several groups.
private final class DiskExchangeSet: DiskExchange {
    private let parts: [any DiskExchange]
    /// How many of them are exchanged.
    private let exchangedCount = Mutex(0)

    init(_ parts: [any DiskExchange]) { self.parts = parts }

    var disks: [GuestDisk] { parts.flatMap(\.disks) }
    var beginsWithCut: Bool { parts.allSatisfy(\.beginsWithCut) }

    /// The part that has a disk, and the disk's number in it.
    private func part(ofDisk index: Int) -> (part: any DiskExchange, disk: Int) {
        var index = index
        for part in parts {
            let count = part.disks.count
            if index < count { return (part, index) }
            index -= count
        }
        preconditionFailure("the exchange has no such disk")
    }

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        let (part, disk) = part(ofDisk: index)
        return try part.storedBlocks(ofDisk: disk)
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        let (part, disk) = part(ofDisk: index)
        try part.read(blocks, ofDisk: disk, into: destination)
    }

    func write(
        _ blocks: BlockRange, ofDisk index: Int, from source: UnsafeRawBufferPointer
    ) throws(GuestError) {
        let (part, disk) = part(ofDisk: index)
        try part.write(blocks, ofDisk: disk, from: source)
    }

    func finishWriting() throws(GuestError) -> any DiskCut {
        var cuts: [any DiskCut] = []
        do throws(GuestError) {
            for part in parts { cuts.append(try part.finishWriting()) }
        } catch {
            for cut in cuts { try? cut.release() }
            throw error
        }
        return DiskCutSet(cuts)
    }

    func load() throws(GuestError) {
        for part in parts { try part.load() }
    }

    func unload() throws(GuestError) {
        var failure: GuestError?
        for part in parts {
            do throws(GuestError) { try part.unload() } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
    }

    func exchange() throws(GuestError) {
        do throws(GuestError) {
            for part in parts {
                try part.exchange()
                exchangedCount.withLock { $0 += 1 }
            }
        } catch {
            try takeBack()
            throw error
        }
    }

    func takeBack() throws(GuestError) {
        while let last = exchangedCount.withLock({ $0 > 0 ? $0 - 1 : nil }) {
            try parts[last].takeBack()
            exchangedCount.withLock { $0 = last }
        }
    }

    /// Ends each part, whatever fails, and throws the first failure.
    func end() throws(GuestError) {
        var failure: GuestError?
        for part in parts {
            do throws(GuestError) { try part.end() } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
    }
}

/// Cuts of several groups.
final class DiskCutSet: DiskCut {
    private let cuts: [any DiskCut]
    /// Parts that were released; a second call for one would be wrong.
    private let released = Mutex<Set<Int>>([])

    init(_ cuts: [any DiskCut]) { self.cuts = cuts }

    /// The cuts, in the order of the groups.
    var parts: [any DiskCut] { cuts }

    var disks: [GuestDisk] { cuts.flatMap(\.disks) }

    /// `LENGTH:NAME` of each part, or empty if one cannot be found again.
    var name: String {
        let names = cuts.map(\.name)
        guard !names.contains("") else { return "" }
        return names.map { "\($0.utf8.count):\($0)" }.joined()
    }

    /// The names of the parts; nil if the text is not such a name.
    static func parts(_ name: String) -> [String]? {
        var rest = Array(name.utf8)[...]
        var names: [String] = []
        while !rest.isEmpty {
            let digits = rest.prefix { 0x30...0x39 ~= $0 }
            rest = rest[digits.endIndex...]
            guard let count = Int(String(decoding: digits, as: UTF8.self)), count > 0,
                rest.popFirst() == UInt8(ascii: ":"), rest.count >= count,
                let text = String(validating: rest.prefix(count), as: UTF8.self)
            else { return nil }
            names.append(text)
            rest = rest.dropFirst(count)
        }
        return names
    }

    /// The part that has a disk, and the disk's number in it.
    private func part(ofDisk index: Int) -> (part: Int, disk: Int) {
        var index = index
        for (number, cut) in cuts.enumerated() {
            let count = cut.disks.count
            if index < count { return (number, index) }
            index -= count
        }
        preconditionFailure("the cut has no such disk")
    }

    func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
        let start = ContinuousClock.now
        var times = DiskCutTimes()
        for cut in cuts {
            let left = budget - (ContinuousClock.now - start)
            guard left > .zero else {
                throw GuestError(
                    code: .timedOut,
                    message: "the cut of the disks took longer than \(budget) and was given up; "
                        + "allow more")
            }
            let part = try cut.cut(within: left)
            times.drain += part.drain
            times.cut += part.cut
        }
        return times
    }

    func requestsUnderWay(ofDisk index: Int) -> Int? {
        let (part, disk) = part(ofDisk: index)
        return cuts[part].requestsUnderWay(ofDisk: disk)
    }

    func changedBlocks(
        ofDisk index: Int, since earlier: any DiskCut
    ) throws(GuestError) -> [BlockRange]? {
        let (part, disk) = part(ofDisk: index)
        guard let earlier = earlier as? DiskCutSet, earlier.cuts.count == cuts.count else {
            return nil
        }
        return try cuts[part].changedBlocks(ofDisk: disk, since: earlier.cuts[part])
    }

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        let (part, disk) = part(ofDisk: index)
        return try cuts[part].storedBlocks(ofDisk: disk)
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        let (part, disk) = part(ofDisk: index)
        try cuts[part].read(blocks, ofDisk: disk, into: destination)
    }

    func readingEnded() {
        for cut in cuts { cut.readingEnded() }
    }

    /// Releases each part, whatever fails, and throws the first failure.
    func release() throws(GuestError) {
        var failure: GuestError?
        for (number, cut) in cuts.enumerated() {
            guard released.withLock({ $0.insert(number).inserted }) else { continue }
            do throws(GuestError) { try cut.release() } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
    }
}
