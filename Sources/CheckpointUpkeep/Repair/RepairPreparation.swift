import CheckpointFormat
import CheckpointStore
import Glibc
import GuestModel
import PackStore
import Synchronization
import SystemPackage

/// The writer's lock: owned by the plan until the repaired repository takes it.
final class RepairLock: Sendable {
    private let held: Mutex<(any RepositoryFile)?>

    /// Why the lock could not be taken, so that the plan cannot be executed; nil if it was taken.
    let refusal: RepositoryError?

    /// Takes the lock; if this process may not write, records the reason.
    init(
        _ path: FilePath, _ files: any RepositoryFiles, _ waiting: LockWaiting,
        _ cancellation: Cancellation?
    ) throws(RepositoryError) {
        do throws(RepositoryError) {
            held = Mutex(try Repository.takeLock(path, files, waiting, cancellation))
            refusal = nil
        } catch {
            let isForbidden = error.errno.map { [EROFS, EACCES, EPERM].contains($0) } ?? false
            guard isForbidden || error.code == .notOwner else { throw error }
            held = Mutex(nil)
            refusal = error
        }
    }

    /// True if the plan was not executed yet.
    var isHeld: Bool { held.withLock { $0 != nil } }

    /// Hands over the lock.
    func take() -> (any RepositoryFile)? {
        held.withLock { lock in
            defer { lock = nil }
            return lock
        }
    }
}

/// The data from which a plan was made, and everything that its execution needs.
package struct RepairPreparation: Sendable {
    /// A pack that is rewritten.
    struct Rewrite: Sendable {
        let pack: UInt32
        let cut: PackRewrite
        /// Empty parts of page maps, by the placeholder offsets used for them in the rewrite.
        let payloads: [UInt32: [UInt8]]
        /// True if something in it is damaged, so that the original is worth keeping.
        let isDamaged: Bool
    }

    let path: FilePath
    let files: any RepositoryFiles
    let repository: RepositoryID
    let lock: RepairLock
    let packByteCountMax: Int
    /// What is wrong with the file `repository`; nil if it is intact.
    var envelopeProblem: String?
    /// True if the file `repository` must be rebuilt.
    var envelopeIsLost: Bool { envelopeProblem != nil }
    var rewrites: [Rewrite] = []
    /// Files in the directory of packs, and the packs that they contain.
    var misplaced: [(name: String, pack: UInt32)] = []
    /// Files without contents.
    var hollow: [String] = []
    /// Checkpoints in the forget record.
    var forgotten: [CheckpointID] = []
    /// Label changes in the labels record.
    var labels: [LabelsRecord.Change] = []
    /// Pages that are stored again, in order of location.
    var saved: [(digest: PageDigest, place: PagePlace)] = []
    /// The list of removed packs, if it changes.
    var pruned: PrunedRecord?
    /// The number of the pack to which these are written.
    var nextPack: UInt32 = 1
    var nextTransaction: UInt64 = 1
    /// The paths of the files that contain saved pages, before anything is renamed.
    var paths: [String] = []

    /// True if a new pack must be created.
    package var needsPack: Bool {
        !forgotten.isEmpty || !labels.isEmpty || !saved.isEmpty || pruned != nil
    }
}
