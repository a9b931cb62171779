import Glibc
import GuestModel

/// One check's disks, and what all checks do with them.
struct DiskExamination {
    /// The most blocks of a disk that are compared.
    private static let sampleCountMax = 256

    private let subject: DiskConformanceSubject
    private var group: (any DiskGroup)?
    let disks: [GuestDisk]
    /// Whole blocks of each disk that are written and compared, ascending.
    let sample: [[UInt64]]
    private var random: Examination.Draws

    init(_ subject: DiskConformanceSubject, seed: UInt64) throws {
        self.subject = subject
        let group = try subject.makeGroup()
        self.group = group
        disks = try group.disks()
        random = Examination.Draws(state: seed)
        guard !disks.isEmpty else { throw Finding("the group has no disk") }
        var sample: [[UInt64]] = []
        for disk in disks {
            let whole = disk.byteCount / UInt64(Page.byteCount)
            guard whole > 0 else { throw Finding("disk \(disk.name) is smaller than a block") }
            var blocks: Set<UInt64> = [0, whole - 1]
            let count = min(UInt64(DiskExamination.sampleCountMax), whole)
            while blocks.count < count {
                blocks.insert(UInt64.random(in: 0..<whole, using: &random))
            }
            sample.append(blocks.sorted())
        }
        self.sample = sample
    }

    mutating func perform(_ check: DiskConformanceCheck) throws {
        switch check {
        case .disksAreDescribed: try disksAreDescribed()
        case .cutKeepsItsContent: try cutKeepsItsContent()
        case .readFillsExactly: try readFillsExactly()
        case .changedBlocksAreComplete: try changedBlocksAreComplete()
        case .storedBlocksAreComplete: try storedBlocksAreComplete()
        case .cutIsReadByThreads: try cutIsReadByThreads()
        case .unusedCutIsReleased: try unusedCutIsReleased()
        case .releaseLeavesOthers: try releaseLeavesOthers()
        case .releasedCutIsGone: try releasedCutIsGone()
        case .standingCutIsFound: try standingCutIsFound()
        case .revertedDisksAreWritten: try revertedDisksAreWritten()
        }
    }

    // MARK: - What checks do

    func openGroup() throws -> any DiskGroup {
        guard let group else { throw Finding("the check has closed its group") }
        return group
    }

    func makeCut() throws -> any DiskCut {
        let cut = try openGroup().prepareCut()
        _ = try cut.cut(within: .seconds(60))
        guard cut.disks == disks else { throw Finding("the cut has other disks than the group") }
        return cut
    }

    /// Writes to some blocks of each disk as the guest does; returns the bytes that each has now.
    mutating func write() throws -> [[UInt64: [UInt8]]] {
        let subject = subject
        return try write { index, block, bytes in
            try subject.write(index, block * UInt64(Page.byteCount), bytes)
        }
    }

    mutating func write(
        _ body: (Int, UInt64, [UInt8]) throws -> Void
    ) throws -> [[UInt64: [UInt8]]] {
        var written: [[UInt64: [UInt8]]] = []
        for index in disks.indices {
            var blocks: [UInt64: [UInt8]] = [:]
            for _ in 0..<Int.random(in: 1...8, using: &random) {
                let block = sample[index][Int.random(in: 0..<sample[index].count, using: &random)]
                let bytes = (0..<Page.byteCount).map { _ in
                    UInt8.random(in: 0...255, using: &random)
                }
                try body(index, block, bytes)
                blocks[block] = bytes
            }
            written.append(blocks)
        }
        return written
    }

    /// Reads blocks into memory that was filled with a byte, with a page before and after it.
    static func read(
        _ cut: any DiskCut, _ index: Int, _ blocks: BlockRange, over filler: UInt8 = 0xa5
    ) throws -> [UInt8] {
        let count = blocks.count * Page.byteCount
        let room = UnsafeMutableRawBufferPointer.allocate(
            byteCount: count + 2 * Page.byteCount, alignment: Page.byteCount)
        defer { room.deallocate() }
        room.initializeMemory(as: UInt8.self, repeating: filler)
        let place = UnsafeMutableRawBufferPointer(
            rebasing: room[Page.byteCount..<Page.byteCount + count])
        try cut.read(blocks, ofDisk: index, into: place)
        let edges = [room[..<Page.byteCount], room[(Page.byteCount + count)...]]
        guard edges.allSatisfy({ $0.allSatisfy { $0 == filler } }) else {
            throw Finding("read wrote outside of its destination")
        }
        return [UInt8](place)
    }

    func readSample(_ cut: any DiskCut) throws -> [[[UInt8]]] {
        try disks.indices.map { index in
            try sample[index].map { try DiskExamination.read(cut, index, $0..<$0 + 1) }
        }
    }

    func expect(
        _ cut: any DiskCut, _ contents: [[[UInt8]]], _ problem: String
    ) throws {
        for (index, blocks) in try readSample(cut).enumerated() {
            let wrong = blocks.indices.first { !Examination.same(blocks[$0], contents[index][$0]) }
            if let wrong {
                throw Finding(
                    "\(problem): block \(sample[index][wrong]) of disk \(disks[index].name)")
            }
        }
    }

    /// Contents after writes.
    func contents(
        _ contents: [[[UInt8]]], after written: [[UInt64: [UInt8]]]
    ) -> [[[UInt8]]] {
        disks.indices.map { index in
            sample[index].indices.map { place in
                written[index][sample[index][place]] ?? contents[index][place]
            }
        }
    }

    /// Throws unless ranges are ascending, separated and within a disk.
    private func check(_ ranges: [BlockRange], _ index: Int, _ name: String) throws {
        var end: UInt64?
        for range in ranges {
            guard !range.isEmpty, end.map({ $0 < range.lowerBound }) ?? true,
                range.upperBound <= disks[index].blockCount
            else {
                throw Finding(
                    "\(name) are not ascending and separated, or not within disk "
                        + disks[index].name)
            }
            end = range.upperBound
        }
    }

    // MARK: - Checks

    private func disksAreDescribed() throws {
        guard Set(disks.map(\.name)).count == disks.count else {
            throw Finding("two disks have one name")
        }
        for disk in disks {
            guard 1...255 ~= disk.name.utf8.count, [512, 4096].contains(disk.sectorByteCount),
                disk.byteCount % UInt64(disk.sectorByteCount) == 0
            else { throw Finding("disk '\(disk.name)' has an impossible name or size") }
        }
        guard try openGroup().disks() == disks else {
            throw Finding("the disks are not the same each time")
        }
        let cut = try makeCut()
        try cut.release()
    }

    private mutating func cutKeepsItsContent() throws {
        let first = try makeCut()
        let old = try readSample(first)
        let new = contents(old, after: try write())
        try expect(first, old, "a cut changed with a later write")
        let second = try makeCut()
        _ = try write()
        try expect(second, new, "a cut lacks a write that came before it, or has a later one")
        try expect(first, old, "a cut changed with a later cut")
        for cut in [first, second] { try cut.release() }
    }

    private mutating func readFillsExactly() throws {
        _ = try write()
        let cut = try makeCut()
        for (index, disk) in disks.enumerated() {
            let count = min(disk.blockCount, 33)
            for blocks in [0..<count, disk.blockCount - count..<disk.blockCount] {
                let bytes = try DiskExamination.read(cut, index, blocks)
                guard
                    Examination.same(
                        bytes, try DiskExamination.read(cut, index, blocks, over: 0x5a))
                else { throw Finding("read leaves bytes of its destination as they were") }
                let single = try blocks.flatMap {
                    try DiskExamination.read(cut, index, $0..<$0 + 1)
                }
                guard Examination.same(bytes, single) else {
                    throw Finding("blocks read together differ from those read one by one")
                }
                let end = blocks.upperBound * UInt64(Page.byteCount)
                guard end > disk.byteCount else { continue }
                guard bytes.suffix(Int(end - disk.byteCount)).allSatisfy({ $0 == 0 }) else {
                    throw Finding("bytes past the end of disk \(disk.name) are not zero")
                }
            }
        }
        try cut.release()
    }

    private mutating func changedBlocksAreComplete() throws {
        var earlier = try makeCut()
        for round in 0..<4 {
            let old = try readSample(earlier)
            let written = round == 2 ? disks.map { _ in [:] } : try write()
            let cut = try makeCut()
            let new = try readSample(cut)
            for index in disks.indices {
                guard let changed = try cut.changedBlocks(ofDisk: index, since: earlier) else {
                    continue
                }
                try check(changed, index, "changedBlocks")
                for (place, block) in sample[index].enumerated()
                where !changed.contains(where: { $0.contains(block) }) {
                    guard Examination.same(old[index][place], new[index][place]),
                        written[index][block].map({ Examination.same($0, old[index][place]) })
                            ?? true
                    else {
                        throw Finding(
                            "changedBlocks lack block \(block) of disk \(disks[index].name)")
                    }
                }
            }
            try earlier.release()
            earlier = cut
        }
        try earlier.release()
    }

    private mutating func storedBlocksAreComplete() throws {
        _ = try write()
        let cut = try makeCut()
        let contents = try readSample(cut)
        for index in disks.indices {
            let stored = try cut.storedBlocks(ofDisk: index)
            try check(stored, index, "storedBlocks")
            for (place, block) in sample[index].enumerated()
            where !stored.contains(where: { $0.contains(block) }) {
                guard contents[index][place].allSatisfy({ $0 == 0 }) else {
                    throw Finding("storedBlocks lack block \(block) of disk \(disks[index].name)")
                }
            }
        }
        try cut.release()
    }

    /// What a thread reads: the first blocks of the first disk, some times.
    private final class Reading: @unchecked Sendable {
        // Unchecked: written by its thread alone, and read after that has ended.
        let cut: any DiskCut
        let blocks: BlockRange
        var bytes: [[UInt8]] = []
        init(_ cut: any DiskCut, _ blocks: BlockRange) {
            self.cut = cut
            self.blocks = blocks
        }
    }

    private mutating func cutIsReadByThreads() throws {
        _ = try write()
        let cut = try makeCut()
        let blocks = 0..<min(disks[0].blockCount, 16)
        let readings = (0..<4).map { _ in Reading(cut, blocks) }
        var threads: [pthread_t] = []
        for reading in readings {
            var thread = pthread_t()
            let code = pthread_create(
                &thread, nil,
                { argument in
                    guard let argument else { return nil }
                    let reading = Unmanaged<Reading>.fromOpaque(argument).takeRetainedValue()
                    for _ in 0..<8 {
                        let bytes = try? DiskExamination.read(reading.cut, 0, reading.blocks)
                        reading.bytes.append(bytes ?? [])
                    }
                    return nil
                }, Unmanaged.passRetained(reading).toOpaque())
            guard code == 0 else { throw Skip("no thread can be started") }
            threads.append(thread)
        }
        for thread in threads { pthread_join(thread, nil) }
        let expected = try DiskExamination.read(cut, 0, blocks)
        guard readings.allSatisfy({ $0.bytes.allSatisfy { Examination.same($0, expected) } }) else {
            throw Finding("a read fails, or returns other bytes, while other threads read")
        }
        try cut.release()
    }

    private mutating func unusedCutIsReleased() throws {
        for _ in 0..<3 { try openGroup().prepareCut().release() }
        let written = try write()
        let cut = try makeCut()
        let found = try readSample(cut)
        try expect(cut, contents(found, after: written), "a cut lacks a write that came before it")
        try cut.release()
    }

    private mutating func releaseLeavesOthers() throws {
        let first = try makeCut()
        _ = try write()
        let second = try makeCut()
        let found = try readSample(second)
        try first.release()
        _ = try write()
        try expect(second, found, "a cut changed when an earlier one was released")
        try second.release()
    }

    private func releasedCutIsGone() throws {
        let cut = try makeCut()
        _ = try readSample(cut)
        let name = cut.name
        try cut.release()
        for name in [name, "no cut of this name", "", "../x", "1:x"] {
            guard try openGroup().standingCut(name) == nil else {
                throw Finding("a cut is found under the name '\(name)', which none has")
            }
        }
    }

    private mutating func standingCutIsFound() throws {
        var cut: (any DiskCut)? = try makeCut()
        let old = try cut.map { try readSample($0) } ?? []
        let name = cut?.name ?? ""
        guard !name.isEmpty else {
            try cut?.release()
            throw Skip("cuts of this group have no name")
        }
        cut = nil
        group = nil
        group = try subject.makeGroup()
        let written = try write()
        guard let found = try openGroup().standingCut(name) else {
            throw Finding("a cut that stands is not found by its name")
        }
        guard found.disks == disks else { throw Finding("a cut that is found has other disks") }
        try expect(found, old, "a cut that is found has other contents")
        let later = try makeCut()
        try expect(later, contents(old, after: written), "a cut lacks a write that came before it")
        for index in disks.indices {
            guard let changed = try later.changedBlocks(ofDisk: index, since: found) else {
                continue
            }
            let lacking = written[index].keys.first { block in
                let place = sample[index].firstIndex(of: block) ?? 0
                return !changed.contains { $0.contains(block) }
                    && !Examination.same(old[index][place], written[index][block] ?? [])
            }
            if let lacking {
                throw Finding("changedBlocks since a cut that was found lack block \(lacking)")
            }
        }
        try found.release()
        try later.release()
    }
}
