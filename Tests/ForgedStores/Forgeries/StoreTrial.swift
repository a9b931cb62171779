import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
package import SystemPackage
import VarveTestSupport

/// Everything that can be done with a store, done to a forged one.
///
/// Whatever it holds: nothing traps, nothing hangs, nothing takes much memory; restored memory has
/// the root that its checkpoint states; verify and repair agree; a repaired store is whole; and
/// damage in packs is never reported as damage of the index.
package struct StoreTrial {
    private let path: FilePath
    /// The violated conditions.
    package private(set) var complaints: [String] = []
    /// True if verify found damage, or the store could not be opened.
    package private(set) var isDamaged = false

    private init(_ path: FilePath) {
        self.path = path
    }

    /// Tries a store; the store is changed.
    package static func run(_ path: FilePath) -> StoreTrial {
        var trial = StoreTrial(path)
        trial.read()
        trial.repair()
        trial.write()
        return trial
    }

    private mutating func complain(_ text: String) { complaints.append(text) }

    /// Runs `body`; an error must be one of the repository's own, and never that the index is
    /// damaged.
    private mutating func expecting(_ what: String, _ body: (inout StoreTrial) throws -> Void) {
        do {
            try body(&self)
        } catch let error as RepositoryError {
            if error.code == .indexDamaged { complain("\(what): \(error)") }
            isDamaged = true
        } catch {
            isDamaged = true
        }
    }

    private mutating func read() {
        expecting("reading") { trial throws in
            let repository = try Repository.open(at: trial.path, .reading)
            var damage: [Corruption] = []
            let checkpoints = try repository.checkpoints { damage.append($0) }
            for checkpoint in checkpoints { trial.restore(checkpoint, repository) }
            if let first = checkpoints.first, let last = checkpoints.last {
                _ = try? repository.difference(from: first, to: last)
            }
            for lineage in try repository.lineages() {
                _ = try? repository.checkpoint(named: "\(lineage.name)~1")
            }
            _ = try? repository.statistics()
            let report = try repository.verify()
            if !damage.isEmpty, report.isClean { trial.complain("verify says nothing of damage") }
            // There was no index that could be damaged.
            if let corruption = report.corruptions.first(where: { $0.file == "index" }) {
                trial.complain("verify blames the index: \(corruption)")
            }
            trial.isDamaged = !report.isClean
        }
    }

    private mutating func restore(_ checkpoint: Checkpoint, _ repository: Repository) {
        _ = checkpoint.addedByteCount + checkpoint.metadataByteCount + checkpoint.pageCount
        let guest = SimulatedGuest(layout: .empty)
        // Its pages are arrays: only guests that fit are restored.
        guard checkpoint.pageCount <= 1 << 12,
            (try? repository.restore(checkpoint, into: guest)) != nil
        else { return }
        let root = try? guest.memoryRoot()
        if root != checkpoint.memory.root {
            complain("\(checkpoint.id.short) came back as something else")
        }
    }

    private mutating func repair() {
        do throws(RepositoryError) {
            let plan = try Repository.planRepair(at: path)
            if plan.isEmpty == isDamaged {
                complain(
                    isDamaged
                        ? "repair finds nothing where verify does"
                        : "repair finds what verify does not: \(plan.findings[0].corruption)")
            }
            guard isDamaged else { return }
            let whole = plan.wholeCheckpoints.map(\.id)
            let outcome = try plan.execute()
            if let finding = outcome.report.findings.first {
                complain("after repair: \(finding.corruption)")
            }
            let repository = try Repository.open(at: path, .reading)
            let left = try repository.checkpoints()
            if Set(left.map(\.id)) != Set(whole) { complain("repair left others than it said") }
            for checkpoint in left { restore(checkpoint, repository) }
        } catch {
            if error.code == .indexDamaged || !isDamaged { complain("repair: \(error)") }
        }
    }

    private mutating func write() {
        expecting("writing") { trial throws in
            let repository = try WholeStore.open(trial.path)
            let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
            guest.with { $0.write(1, [UInt8](repeating: 9, count: Page.byteCount)) }
            let session = try CaptureSession(of: guest, in: repository, lineage: "new")
            let taken = try session.capture().checkpoint
            session.close()
            let oldest = try repository.checkpoints().prefix(2).map(\.id)
            try repository.forget(oldest.filter { $0 != taken.id })
            try repository.planPrune(.everything).execute()
            try repository.close()
            let reader = try Repository.open(at: trial.path, .reading)
            trial.restore(try reader.checkpoint(id: taken.id), reader)
            let report = try reader.verify()
            if let finding = report.findings.first {
                trial.complain("after prune: \(finding.corruption)")
            }
        }
    }
}
