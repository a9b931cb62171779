import CPageKernels
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore

// Disks that the guest's own process writes go back with its memory. Those of a guest that another
// program serves are exchanged as a whole: Revert+Exchange.swift.
//
//   while it runs:   a cut of the disks is prepared; blocks in which the checkpoint differs from
//                    the newest one are read from the repository
//   in the pause:    the disks are cut, as they are now
//                    candidates = those blocks + blocks that changed since the newest one's cut
//                    each is compared with the checkpoint; what differs and is not read yet is read
//                    sizes are set, and the blocks that differ are written; then the memory
//   if that fails:   what was written is replaced from the cut, before the guest continues
//   afterwards:      the cut takes the place of the newest one's, together with the list of blocks
//                    that differ from it
//
// The disks are written before the memory, because a file system that is full or fails is the
// likelier failure, and the cut holds what was there. A failure while memory is written leaves the
// disks as the checkpoint has them, since the memory cannot be taken back: reverting again
// completes both.

extension CaptureSession {
    /// How the disks are reverted with the memory; nil if there are none.
    ///
    /// Throws `unsupported` if there are some that cannot be.
    func diskRevert(
        to checkpoint: Checkpoint
    ) throws(CheckpointError) -> (any RevertedDisks)? {
        guard let disks = pipeline.disks else {
            guard checkpoint.disks.isEmpty else { throw CaptureSession.disksStay }
            return nil
        }
        if let group = disks.group as? any RevertibleDisks {
            return DiskRevert(disks, group, to: checkpoint, of: pipeline)
        }
        if let group = disks.group as? any ExchangeableDisks {
            return DiskExchangeRevert(disks, group, to: checkpoint, of: pipeline)
        }
        guard !disks.hasDisks, checkpoint.disks.isEmpty else { throw CaptureSession.disksStay }
        return nil
    }

    private static var disksStay: CheckpointError {
        CheckpointError(
            GuestError(
                code: .unsupported,
                message: "a guest with disks cannot be reverted in place: its memory would run "
                    + "over disks of another instant; restore the checkpoint as a new guest "
                    + "with its disks"))
    }
}

/// The disks of one revert, on the caller's thread.
///
/// The methods are called in this order, at most once each.
protocol RevertedDisks: AnyObject {
    /// The number of blocks that differed, and were written.
    var blockCount: Int { get }

    /// The name of a cut that holds the checkpoint's disks; empty if there is none.
    var cutName: String { get }

    /// While the guest runs: prepares all that is possible.
    ///
    /// - Parameter map: the checkpoint's.
    func prepare(_ map: PageMap, _ control: WorkControl) throws

    /// In the pause, while devices end their requests: does what of the exchange is possible while
    /// the disks hold what they held.
    func load() throws

    /// Undoes `load`: the revert has failed, and the guest is about to continue.
    func unload() throws

    /// In the pause: finds what is left to do. Nothing is changed yet.
    ///
    /// - Returns: bytes read from packs.
    func plan(within budget: Duration) throws -> Int

    /// In the pause, before the guest's state is prepared: writes disks that are the guest's own.
    func write() throws

    /// In the pause, before the memory is written: exchanges disks.
    ///
    /// If that fails, everything is as it was, or the message says that it is not.
    func exchange() throws

    /// In the pause, if the memory is as it was: puts the disks back to what they held.
    func takeBack(after error: any Error) throws

    /// The guest is the checkpoint's.
    func complete()

    /// The disks are the checkpoint's, but not the memory: the next capture compares everything.
    func leaveHalfway()

    /// Drops what is not needed any more, whatever became of the revert. Called at the end, always.
    func end()
}

/// Disks to which only the guest's own process writes.
final class DiskRevert: RevertedDisks {
    /// Blocks that are compared, or written, at once.
    private static let batchBlockCount = 256

    private struct Part {
        let name: String
        let volume: VolumeNumber
        /// Its size in the checkpoint.
        let byteCount: UInt64
        /// Its size now, and its number in the cut: known in the pause.
        var nowByteCount: UInt64 = 0
        var index = 0
        /// Blocks in which the checkpoint differs from the newest one; nil if that is unknown.
        var known: [BlockRange]?
        var contents: [BlockContents] = []
        /// Blocks that differ from what the disk holds now, all below its size in the checkpoint.
        var differing: [BlockRange] = []
        /// How many of these runs may be written.
        var writtenRunCount = 0
        var isResized = false

        var blockCount: UInt64 { BlockLists.blockCount(byteCount) }
        var nowBlockCount: UInt64 { BlockLists.blockCount(nowByteCount) }
        var changesSize: Bool { byteCount != nowByteCount }

        func content(_ block: UInt64) -> UnsafeRawBufferPointer? {
            for part in contents { if let bytes = part[block] { return bytes } }
            return nil
        }
    }

    private let disks: SessionDisks
    private let group: any RevertibleDisks
    private let target: Checkpoint
    private let pipeline: CheckpointPipeline
    private var map = PageMap(disksIn: .process)
    private var parts: [Part]
    private var cut: (any DiskCut)?
    private var cutBudget = Duration.zero
    private let buffer = PageMemory.allocate(
        byteCount: DiskRevert.batchBlockCount * Page.byteCount)

    init(
        _ disks: SessionDisks, _ group: any RevertibleDisks, to target: Checkpoint,
        of pipeline: CheckpointPipeline
    ) {
        self.disks = disks
        self.group = group
        self.target = target
        self.pipeline = pipeline
        parts = target.disks.map {
            Part(name: $0.name, volume: $0.number, byteCount: $0.byteCount)
        }
    }

    deinit { PageMemory.deallocate(buffer) }

    /// The number of blocks that differed.
    var blockCount: Int {
        parts.reduce(0) { $1.differing.reduce($0) { $0 + $1.count } }
    }

    /// None: the disks are not exchanged.
    var cutName: String { "" }

    // MARK: - While the guest runs

    /// Prepares a cut, and reads what is known to differ.
    ///
    /// - Parameter map: the checkpoint's.
    func prepare(_ map: PageMap, _ control: WorkControl) throws {
        self.map = map
        try check(try group.disks())
        cut = try group.prepareCut()
        guard let parent = pipeline.parent else { return }
        for index in parts.indices {
            // A disk that was removed and came back may have another number.
            guard let volume = parent.manifest.volume(parts[index].volume),
                NameForm.areSame(volume.name, parts[index].name)
            else { continue }
            var known: [BlockRange] = []
            if parent.id != target.id {
                let number = parts[index].volume
                known = try pipeline.withMap { base in
                    map.differingRuns(of: number, from: base).map(\.frames)
                }
            }
            parts[index].known = known
            try read(known, of: index, control)
        }
    }

    /// Throws unless the guest has exactly the checkpoint's disks.
    private func check(_ now: [GuestDisk]) throws(GuestError) { try target.checkDisks(now) }

    /// Reads blocks of the checkpoint that are not zero and not read yet.
    ///
    /// - Returns: bytes read from packs.
    @discardableResult
    private func read(
        _ ranges: [BlockRange], of index: Int, _ control: WorkControl
    ) throws -> Int {
        let part = parts[index]
        let volume = map[part.volume]
        var pages: [(frame: PageFrameNumber, digest: PageDigest)] = []
        for range in ranges {
            for block in range where part.content(block) == nil {
                let frame = PageFrameNumber(block)
                guard case .present(let digest) = volume[frame] else { continue }
                pages.append((frame, digest))
            }
        }
        guard !pages.isEmpty else { return 0 }
        let contents = BlockContents(pages.map(\.frame.rawValue))
        var supply = PageSupply(repository: pipeline.repository, checkpoint: target)
        supply.volume = part.volume
        supply.control = control
        let byteCount = try supply.read(pages, into: contents)
        parts[index].contents.append(contents)
        return byteCount
    }

    // MARK: - In the pause

    /// Cuts the disks, finds out which blocks differ, and reads them.
    ///
    /// Nothing is written yet.
    ///
    /// - Returns: bytes read from packs.
    func load() {}

    func unload() {}

    func plan(within budget: Duration) throws -> Int {
        let cut = madeCut
        cutBudget = budget
        _ = try cut.cut(within: budget)
        let now = cut.disks
        try check(now)
        var byteCount = 0
        for index in parts.indices {
            let name = parts[index].name
            guard let place = now.firstIndex(where: { NameForm.areSame($0.name, name) }) else {
                preconditionFailure("its disks are the checkpoint's")
            }
            parts[index].index = place
            parts[index].nowByteCount = now[place].byteCount
            parts[index].differing = try differing(parts[index], cut)
            byteCount += try read(parts[index].differing, of: index, .none)
        }
        return byteCount
    }

    private var madeCut: any DiskCut {
        guard let cut else { preconditionFailure("a cut is prepared before the pause") }
        return cut
    }

    /// Blocks that may differ: ascending, below the size in the checkpoint.
    private func candidates(_ part: Part, _ cut: any DiskCut) throws -> [BlockRange] {
        let volume = map[part.volume]
        var found: [BlockRange]
        let source = disks.source(cut, after: pipeline.parent?.id)
        if let known = part.known, let changed = try source.changedBlocks(ofDisk: part.index) {
            found = known + changed
            if part.changesSize {
                let end = min(part.byteCount, part.nowByteCount) / UInt64(Page.byteCount)
                // What was cut off is no change that a cut names.
                found.append(end..<end + 1)
                found += volume.layout.runs
                    .map { $0.frames.clamped(to: end..<max(end, part.blockCount)) }
            }
        } else {
            found = try cut.storedBlocks(ofDisk: part.index)
            found += volume.layout.runs.map(\.frames)
        }
        return BlockLists.joined(found.map { $0.clamped(to: 0..<part.blockCount) })
    }

    private func differing(_ part: Part, _ cut: any DiskCut) throws -> [BlockRange] {
        let volume = map[part.volume]
        var found: [BlockRange] = []
        try forEachBatch(of: try candidates(part, cut)) { batch in
            let bytes = try read(batch, part, cut)
            for (offset, block) in batch.enumerated() {
                let start = offset * Page.byteCount
                let now = UnsafeRawBufferPointer(rebasing: bytes[start..<start + Page.byteCount])
                guard differs(now, block, part, volume) else { continue }
                if let last = found.last, last.upperBound == block {
                    found[found.count - 1] = last.lowerBound..<block + 1
                } else {
                    found.append(block..<block + 1)
                }
            }
        }
        return found
    }

    private func differs(
        _ now: UnsafeRawBufferPointer, _ block: UInt64, _ part: Part, _ volume: VolumeMap
    ) -> Bool {
        guard case .present(let digest) = volume[PageFrameNumber(block)] else {
            return !ckernels_is_zero(now.baseAddress, Page.byteCount)
        }
        if let then = part.content(block) {
            return !ckernels_is_equal(then.baseAddress, now.baseAddress, Page.byteCount)
        }
        return PageDigest(hashing: now) != digest
    }

    /// What the cut has; blocks past its end are zero.
    private func read(
        _ blocks: BlockRange, _ part: Part, _ cut: any DiskCut
    ) throws(GuestError) -> UnsafeRawBufferPointer {
        let bytes = UnsafeMutableRawBufferPointer(
            rebasing: buffer[..<(blocks.count * Page.byteCount)])
        let end = min(blocks.upperBound, max(blocks.lowerBound, part.nowBlockCount))
        let count = Int(end - blocks.lowerBound) * Page.byteCount
        if count > 0 {
            try cut.read(
                blocks.lowerBound..<end, ofDisk: part.index,
                into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<count]))
        }
        UnsafeMutableRawBufferPointer(rebasing: bytes[count...])
            .initializeMemory(as: UInt8.self, repeating: 0)
        return UnsafeRawBufferPointer(bytes)
    }

    private func forEachBatch(
        of ranges: [BlockRange], _ body: (BlockRange) throws -> Void
    ) rethrows {
        for range in ranges {
            var first = range.lowerBound
            while first < range.upperBound {
                let end = min(range.upperBound, first + UInt64(DiskRevert.batchBlockCount))
                try body(first..<end)
                first = end
            }
        }
    }

    // MARK: - Writing

    func exchange() {}

    /// Writes what differs.
    ///
    /// If that fails, everything is as it was, or the message says that it is not.
    func write() throws {
        do {
            for index in parts.indices { try write(index) }
        } catch {
            try takeBack(after: error)
            throw CheckpointError(
                .guest,
                "the revert to \(target.id.short) failed while it wrote the disks (\(error)); they "
                    + "hold again what they did, and the guest runs unchanged")
        }
    }

    private func write(_ index: Int) throws {
        let part = parts[index]
        if part.changesSize {
            parts[index].isResized = true
            try group.resize(part.name, to: part.byteCount)
        }
        for run in part.differing {
            parts[index].writtenRunCount += 1
            try forEachBatch(of: [run]) { batch in
                for (offset, block) in batch.enumerated() {
                    let place = UnsafeMutableRawBufferPointer(
                        rebasing: buffer[offset * Page.byteCount..<(offset + 1) * Page.byteCount])
                    if let content = part.content(block) {
                        place.copyMemory(from: content)
                    } else {
                        place.initializeMemory(as: UInt8.self, repeating: 0)
                    }
                }
                try group.write(
                    batch, of: part.name,
                    from: UnsafeRawBufferPointer(
                        rebasing: buffer[..<(batch.count * Page.byteCount)]))
            }
        }
    }

    /// Puts back what the disks held before the first write, from the cut.
    ///
    /// Throws if that fails, too: the disks then hold a part of the checkpoint.
    func takeBack(after error: any Error) throws {
        var failure: (any Error)?
        for part in parts where part.isResized || part.writtenRunCount > 0 {
            do {
                try takeBack(part, madeCut)
            } catch {
                failure = failure ?? error
            }
        }
        // What cannot be written now may not have been written before either.
        guard let failure, (try? areUnchanged()) != true else { return }
        disks.forget(mixedBy: target.id)
        throw CheckpointError(
            .guest,
            "the revert to \(target.id.short) failed (\(error)), and what it wrote to the disks "
                + "could not be taken back (\(failure)); the guest's memory is unchanged, and its "
                + "disks hold a part of the checkpoint: revert again, or restore it as a new guest")
    }

    /// True if the disks are as they were cut, which a second cut tells.
    private func areUnchanged() throws -> Bool {
        let now = try group.prepareCut()
        defer { disks.failed(now) }
        _ = try now.cut(within: cutBudget)
        let before = madeCut
        let length = DiskRevert.batchBlockCount * Page.byteCount
        let other = PageMemory.allocate(byteCount: length)
        defer { PageMemory.deallocate(other) }
        for part in parts where part.isResized || part.writtenRunCount > 0 {
            guard let index = now.disks.firstIndex(where: { NameForm.areSame($0.name, part.name) }),
                now.disks[index].byteCount == part.nowByteCount
            else { return false }
            try forEachBatch(of: try replaced(part, before)) { batch in
                let bytes = try read(batch, part, before)
                let place = UnsafeMutableRawBufferPointer(rebasing: other[..<bytes.count])
                try now.read(batch, ofDisk: index, into: place)
                guard bytes.elementsEqual(place) else {
                    throw GuestError(code: .callFailed, message: "block \(batch) differs")
                }
            }
        }
        return true
    }

    private func takeBack(_ part: Part, _ cut: any DiskCut) throws {
        if part.isResized { try group.resize(part.name, to: part.nowByteCount) }
        try forEachBatch(of: try replaced(part, cut)) { batch in
            let bytes = try read(batch, part, cut)
            try group.write(batch, of: part.name, from: bytes)
        }
    }

    /// The blocks of a disk that may not be as they were cut.
    private func replaced(_ part: Part, _ cut: any DiskCut) throws -> [BlockRange] {
        var ranges = Array(part.differing.prefix(part.writtenRunCount))
        if part.isResized, part.byteCount < part.nowByteCount {
            // What was cut off reads as zeros now.
            let end = part.byteCount / UInt64(Page.byteCount)
            ranges += try cut.storedBlocks(ofDisk: part.index)
                .map { $0.clamped(to: end..<part.nowBlockCount) }
        }
        return BlockLists.joined(ranges.map { $0.clamped(to: 0..<part.nowBlockCount) })
    }

    // MARK: - Afterwards

    /// The guest is the checkpoint's: the next capture compares with the cut.
    func complete() {
        var written: [[UInt8]: [BlockRange]] = [:]
        for part in parts {
            var ranges = part.differing
            if part.changesSize {
                let block = UInt64(Page.byteCount)
                let first = min(part.byteCount, part.nowByteCount) / block
                ranges.append(first..<max(part.blockCount, part.nowBlockCount))
            }
            written[Array(part.name.utf8)] = BlockLists.joined(ranges)
        }
        disks.reverted(madeCut, to: target.id, written: written)
        cut = nil
    }

    /// The disks are the checkpoint's, but not the memory: nothing is captured until a revert has
    /// succeeded.
    func leaveHalfway() { disks.forget(mixedBy: target.id) }

    /// Drops what is not needed any more, whatever became of the revert.
    func end() {
        if let cut { disks.failed(cut) }
        cut = nil
        disks.releaseRetired()
    }
}

extension Checkpoint {
    /// Throws unless a guest's disks are exactly those of the checkpoint, by their names.
    func checkDisks(_ now: [GuestDisk]) throws(GuestError) {
        let isSame =
            now.count == disks.count
            && disks.allSatisfy { disk in now.contains { NameForm.areSame($0.name, disk.name) } }
        guard !isSame else { return }
        func list(_ names: [String]) -> String {
            names.isEmpty ? "no disk" : names.joined(separator: " and ")
        }
        throw GuestError(
            code: .unsupported,
            message: "the guest has \(list(now.map(\.name))) now, and checkpoint "
                + "\(id.short) has \(list(disks.map(\.name))); restore the checkpoint as a "
                + "new guest with its disks")
    }
}
