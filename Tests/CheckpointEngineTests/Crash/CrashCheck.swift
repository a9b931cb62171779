import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
import VarveTestSupport

/// The conditions that a store must meet after a crash.
struct CrashCheck {
    private struct Problem: Error, CustomStringConvertible {
        let description: String
    }

    let copies: [CheckpointID: CrashWorld.Copy]
    /// For each checkpoint that was relabeled after its publication, the labels that it may have.
    let labels: [CheckpointID: [String?]]
    /// Guests at each capture: a checkpoint that was not acknowledged is equal to one of these.
    let attempts: [CrashWorld.Copy]
    let acknowledged: [CheckpointID]
    /// Checkpoints that must not be there.
    let forgotten: Set<CheckpointID>
    /// Checkpoints that a caller had begun to forget.
    let mayBeGone: Set<CheckpointID>
    /// True if the store was damaged and may not be repaired yet.
    let mustRepair: Bool
    let packByteCountMax: Int
    let abandonedByteCountMax: Int

    private func fail(_ description: String) -> Problem { Problem(description: description) }

    /// Opens the store and checks all of it, takes a checkpoint, and checks again.
    func run(_ disk: SimulatedDisk) throws {
        let files = disk.boot()
        if mustRepair { try repair(disk, files) }
        let repository = try open(disk, files)
        let found = try repository.checkpoints()
        let missing = Set(acknowledged).subtracting(found.map(\.id))
        guard missing.isEmpty else {
            throw fail("acknowledged and gone: \(missing.map(\.short).sorted())")
        }
        let present = Set(found.map(\.id))
        guard present.isDisjoint(with: forgotten) else { throw fail("forgotten and there again") }
        for checkpoint in found {
            try checkContents(checkpoint, repository)
            if let parent = checkpoint.parent, !present.contains(parent),
                !mayBeGone.contains(parent)
            {
                throw fail("checkpoint \(checkpoint.id.short) is without its parent")
            }
        }
        try checkNames(found, repository)
        try checkSpace(repository)
        let next = try captureNext(found, repository)
        let report = try repository.verify()
        guard report.isClean else { throw fail("verify: \(report.corruptions)") }
        guard report.checkpointCount == found.count + 1 else {
            throw fail("verify saw \(report.checkpointCount) of \(found.count + 1) checkpoints")
        }
        try checkPrune(found, repository)
        try repository.close()
        let reader = try Repository.open(at: disk.indexRoot, .reading, files: files)
        guard try reader.checkpoints().map(\.id) == found.map(\.id) + [next] else {
            throw fail("a reader sees other checkpoints than the writer left")
        }
    }

    private func repair(_ disk: SimulatedDisk, _ files: SimulatedFiles) throws {
        let plan = try Repository.planRepair(
            at: disk.indexRoot, files: files, packByteCountMax: packByteCountMax)
        let report = try plan.execute().report
        guard report.isClean else { throw fail("not whole when repaired: \(report.corruptions)") }
    }

    /// Opens the store, or creates it if the crash came before it was complete.
    private func open(
        _ disk: SimulatedDisk, _ files: SimulatedFiles
    ) throws(RepositoryError) -> Repository {
        do {
            return try Repository.open(
                at: disk.indexRoot, .writing, files: files, packByteCountMax: packByteCountMax)
        } catch {
            guard error.code == .missing, acknowledged.isEmpty else { throw error }
        }
        return try Repository.create(
            at: disk.indexRoot, files: files, packByteCountMax: packByteCountMax)
    }

    private func checkContents(_ checkpoint: Checkpoint, _ repository: Repository) throws {
        let restored = SimulatedGuest(layout: .empty)
        let result = try repository.restore(checkpoint, into: restored)
        let pages = restored.with { $0.pages }
        let root = checkpoint.memory.root
        guard result.root == root, try restored.memoryRoot() == root else {
            throw fail("checkpoint \(checkpoint.id.short) has another root than it says")
        }
        var disks: [String: [UInt8]] = [:]
        for volume in checkpoint.disks {
            let image = SimulatedGuest(layout: .empty)
            _ = try repository.restore(checkpoint, volume: volume.name, into: image)
            disks[volume.name] = image.bytes(Int(volume.byteCount))
        }
        if let copy = copies[checkpoint.id] {
            let labels = labels[checkpoint.id] ?? [copy.label]
            guard copy.pages == pages, copy.disks == disks, labels.contains(checkpoint.label?.text),
                copy.lineage == checkpoint.lineage.text
            else { throw fail("checkpoint \(checkpoint.id.short) is not what was captured") }
            try checkReading(checkpoint, copy, repository)
        } else if !attempts.contains(where: {
            $0.lineage == checkpoint.lineage.text && $0.pages == pages && $0.disks == disks
        }) {
            throw fail("checkpoint \(checkpoint.id.short) is half there")
        }
    }

    /// The same through the reader that goes by frames.
    private func checkReading(
        _ checkpoint: Checkpoint, _ copy: CrashWorld.Copy, _ repository: Repository
    ) throws {
        var isEqual = true
        let reader = try VolumeReader(checkpoint, from: repository)
        try reader.read { runs, contents in
            var position = 0
            for frame in runs.flatMap(\.frames) {
                let page = contents[position..<position + Page.byteCount]
                isEqual = isEqual && copy.pages[frame].map { page.elementsEqual($0) } ?? false
                position += Page.byteCount
            }
        }
        guard isEqual, reader.layout.pageCount == copy.pages.count else {
            throw fail("checkpoint \(checkpoint.id.short) is read as something else")
        }
    }

    /// Prune frees all space that no checkpoint needs, and keeps everything else.
    private func checkPrune(_ found: [Checkpoint], _ repository: Repository) throws {
        let options = PruneOptions.everything
        // The second prune removes forget records of checkpoints that the first one removed.
        for _ in 0..<2 { try repository.planPrune(options).execute() }
        let rest = try repository.planPrune(options)
        guard rest.isEmpty, rest.unusedByteCount == 0, rest.deadPageCount == 0 else {
            throw fail("\(rest.unusedByteCount) bytes are unused after a prune")
        }
        for checkpoint in found { try checkContents(checkpoint, repository) }
        let report = try repository.verify()
        guard report.isClean else { throw fail("verify after a prune: \(report.corruptions)") }
    }

    private func checkNames(_ found: [Checkpoint], _ repository: Repository) throws {
        for label in Set(found.compactMap(\.label)) {
            let newest = found.last { $0.label == label }
            guard try repository.checkpoint(named: label.text) == newest else {
                throw fail("label \(label) names another checkpoint than the newest with it")
            }
        }
        for lineage in Set(found.map(\.lineage)) {
            let newest = found.last { $0.lineage == lineage }
            guard try repository.newest(ofLineage: lineage) == newest else {
                throw fail("lineage \(lineage) ends elsewhere")
            }
        }
    }

    /// Records of the last abandoned transaction are truncated.
    private func checkSpace(_ repository: Repository) throws {
        let abandoned = try repository.statistics().abandonedByteCount
        guard abandoned <= abandonedByteCountMax else {
            throw fail("\(abandoned) bytes of abandoned transactions are kept")
        }
    }

    /// The store takes the next checkpoint, of a guest that has changed in between.
    private func captureNext(
        _ found: [Checkpoint], _ repository: Repository
    ) throws -> CheckpointID {
        let pages = CrashWorld.guestPageCount
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: pages))
        guest.with { state in
            if let id = found.last?.id, let copy = copies[id] {
                for (frame, page) in copy.pages { state.write(frame, page) }
            }
            for frame in 10..<14 { state.write(UInt64(frame), CrashWorld.page(9999 + frame)) }
        }
        var options = CaptureOptions()
        options.poolByteCount = 4 << 20
        options.workerCount = 1
        options.omitsDisks = true
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        let next = try session.capture().checkpoint
        session.close()
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(next, into: restored)
        guard restored.with({ $0.pages }) == guest.with({ $0.pages }) else {
            throw fail("the next checkpoint is not what was captured")
        }
        return next.id
    }
}
