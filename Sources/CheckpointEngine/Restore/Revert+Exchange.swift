import CPageKernels
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore

// Disks of a guest that another program serves, such as those of a Xen domain, go back as a whole.
//
//   while it runs:   new contents are made of the newest checkpoint's cut. Blocks in which the
//                    checkpoint differs from that are read, verified, and written to them. They
//                    are made durable, and a cut of them is made
//   in the pause:    the disks are exchanged: what the guest has written since is no matter
//   afterwards:      the old contents are dropped; the next capture compares with that cut
//
// Without a cut of the newest checkpoint the new contents begin with what the disks hold now, and
// every block that may be stored is compared.

/// The disks of one revert that are exchanged.
final class DiskExchangeRevert: RevertedDisks {
    /// Blocks that are compared, and written, at once.
    private static let batchBlockCount = 256

    private let disks: SessionDisks
    private let group: any ExchangeableDisks
    private let target: Checkpoint
    private let pipeline: CheckpointPipeline
    private var contents: (any DiskExchange)?
    /// Of the new contents.
    private var cut: (any DiskCut)?
    private(set) var blockCount = 0
    var cutName: String { cut?.name ?? "" }
    private let buffer = PageMemory.allocate(
        byteCount: DiskExchangeRevert.batchBlockCount * Page.byteCount)

    init(
        _ disks: SessionDisks, _ group: any ExchangeableDisks, to target: Checkpoint,
        of pipeline: CheckpointPipeline
    ) {
        self.disks = disks
        self.group = group
        self.target = target
        self.pipeline = pipeline
    }

    deinit { PageMemory.deallocate(buffer) }

    // MARK: - While the guest runs

    func prepare(_ map: PageMap, _ control: WorkControl) throws {
        let now = try group.disks()
        try check(now)
        guard !now.isEmpty else { return }
        let prepared = disks.takePrepared(target.id)
        defer { if let prepared { disks.failed(prepared) } }
        let last = pipeline.parent.flatMap { disks.last(of: $0.id) }
        let exchange = try group.prepareExchange(from: prepared ?? last?.cut)
        contents = exchange
        // It may have found other ones.
        try check(exchange.disks)
        for (index, disk) in exchange.disks.enumerated() {
            guard let volume = target.disks.first(where: { NameForm.areSame($0.name, disk.name) })
            else { preconditionFailure("its disks are the checkpoint's") }
            var known: [BlockRange]?
            if exchange.beginsWithCut {
                known = prepared == nil ? try difference(volume, map, last) : []
            }
            var candidates: [BlockRange]
            if let known {
                candidates = known
            } else {
                candidates = try exchange.storedBlocks(ofDisk: index)
                candidates += map[volume.number].layout.runs.map(\.frames)
            }
            candidates = BlockLists.joined(candidates.map { $0.clamped(to: 0..<disk.blockCount) })
            for range in candidates {
                try write(range, index, volume.number, map[volume.number], exchange, control)
            }
        }
        cut = try exchange.finishWriting()
    }

    private func check(_ now: [GuestDisk]) throws(GuestError) {
        try target.checkDisks(now)
        for disk in now {
            let then = target.disks.first { NameForm.areSame($0.name, disk.name) }
            guard let then, then.byteCount != disk.byteCount else { continue }
            throw GuestError(
                code: .sizeMismatch,
                message: "disk \(disk.name) has \(disk.byteCount) bytes now, and "
                    + "\(then.byteCount) in checkpoint \(target.id.short); give it that size, or "
                    + "restore the checkpoint as a new guest with its disks")
        }
    }

    /// Blocks in which the checkpoint differs from the cut of the newest one; nil if that is
    /// unknown.
    private func difference(
        _ volume: Volume, _ map: PageMap, _ last: SessionDisks.Last?
    ) throws -> [BlockRange]? {
        guard let last, let parent = pipeline.parent,
            let then = parent.manifest.volume(volume.number),
            NameForm.areSame(then.name, volume.name)
        else { return nil }
        let written = last.written?[Array(volume.name.utf8)] ?? []
        guard parent.id != target.id else { return written }
        return written
            + (try pipeline.withMap { map.differingRuns(of: volume.number, from: $0) })
            .map(\.frames)
    }

    /// Compares blocks with the checkpoint's, and writes those that differ.
    private func write(
        _ range: BlockRange, _ index: Int, _ number: VolumeNumber, _ volume: VolumeMap,
        _ exchange: any DiskExchange, _ control: WorkControl
    ) throws {
        var first = range.lowerBound
        while first < range.upperBound {
            let end = min(range.upperBound, first + UInt64(DiskExchangeRevert.batchBlockCount))
            try control.check()
            let bytes = UnsafeMutableRawBufferPointer(
                rebasing: buffer[..<(Int(end - first) * Page.byteCount)])
            try exchange.read(first..<end, ofDisk: index, into: bytes)
            try writeDiffering(first..<end, bytes, index, number, volume, exchange, control)
            first = end
        }
    }

    private func writeDiffering(
        _ batch: BlockRange, _ bytes: UnsafeMutableRawBufferPointer, _ index: Int,
        _ number: VolumeNumber, _ volume: VolumeMap, _ exchange: any DiskExchange,
        _ control: WorkControl
    ) throws {
        func place(_ block: UInt64) -> UnsafeMutableRawBufferPointer {
            let start = Int(block - batch.lowerBound) * Page.byteCount
            return UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + Page.byteCount])
        }
        var differing: [BlockRange] = []
        var pages: [(frame: PageFrameNumber, digest: PageDigest)] = []
        for block in batch {
            let frame = PageFrameNumber(block)
            if case .present(let digest) = volume[frame] {
                if PageDigest(hashing: UnsafeRawBufferPointer(place(block))) == digest { continue }
                pages.append((frame, digest))
            } else {
                if ckernels_is_zero(place(block).baseAddress, Page.byteCount) { continue }
                place(block).initializeMemory(as: UInt8.self, repeating: 0)
            }
            if let last = differing.last, last.upperBound == block {
                differing[differing.count - 1] = last.lowerBound..<block + 1
            } else {
                differing.append(block..<block + 1)
            }
        }
        if !pages.isEmpty {
            let contents = BlockContents(pages.map(\.frame.rawValue))
            var supply = PageSupply(repository: pipeline.repository, checkpoint: target)
            supply.volume = number
            supply.control = control
            _ = try supply.read(pages, into: contents)
            for page in pages {
                guard let content = contents[page.frame.rawValue] else { continue }
                place(page.frame.rawValue).copyMemory(from: content)
            }
        }
        for run in differing {
            let start = Int(run.lowerBound - batch.lowerBound) * Page.byteCount
            try exchange.write(
                run, ofDisk: index,
                from: UnsafeRawBufferPointer(
                    rebasing: bytes[start..<start + run.count * Page.byteCount]))
            blockCount += run.count
        }
    }

    // MARK: - In the pause

    func load() throws { try contents?.load() }

    func unload() throws { try contents?.unload() }

    func plan(within budget: Duration) -> Int { 0 }

    func write() {}

    func exchange() throws { try contents?.exchange() }

    func takeBack(after error: any Error) throws {
        do {
            try contents?.takeBack()
        } catch let failure {
            disks.forget(mixedBy: target.id)
            throw CheckpointError(
                .guest,
                "the revert to \(target.id.short) failed (\(error)), and the disks are the "
                    + "checkpoint's (\(failure)), while the memory is unchanged: revert again, or "
                    + "restore it as a new guest")
        }
    }

    // MARK: - Afterwards

    func complete() {
        guard let cut else { return }
        disks.reverted(cut, to: target.id, written: [:])
        self.cut = nil
    }

    func leaveHalfway() { disks.forget(mixedBy: target.id) }

    func end() {
        if let contents {
            do throws(GuestError) { try contents.end() } catch { disks.note(error) }
        }
        contents = nil
        if let cut { disks.failed(cut) }
        cut = nil
        disks.releaseRetired()
    }
}
