import CheckpointFormat
import CheckpointStore
import Glibc
import GuestModel
import PackStore
import Synchronization
import SystemPackage

/// The writer's lock: the plan's until the repaired repository has it.
final class RepairLock: Sendable {
    private let held: Mutex<(any RepositoryFile)?>

    /// Why it could not be had, and the plan cannot be executed; nil if it was.
    let refusal: RepositoryError?

    /// Takes the lock; where this process may not write, keeps the reason.
    init(
        _ path: FilePath, _ files: any RepositoryFiles, _ waiting: LockWaiting
    ) throws(RepositoryError) {
        do throws(RepositoryError) {
            held = Mutex(try Repository.takeLock(path, files, waiting))
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

    /// Gives the lock away.
    func take() -> (any RepositoryFile)? {
        held.withLock { lock in
            defer { lock = nil }
            return lock
        }
    }
}

/// What a plan was made from, and everything that its execution needs.
package struct RepairPreparation: Sendable {
    /// A pack that is written anew.
    struct Rewrite: Sendable {
        let pack: UInt32
        let cut: PackRewrite
        /// Empty parts of page maps, by the offset that stands for them in the cut.
        let payloads: [UInt32: [UInt8]]
        /// True if something in it is damaged, so that the original is worth keeping.
        let isDamaged: Bool
    }

    let path: FilePath
    let files: any RepositoryFiles
    let repository: RepositoryID
    let lock: RepairLock
    let packByteCountMax: Int
    /// What is wrong with the file `repository`; nil if nothing is.
    var envelopeProblem: String?
    /// True if the file `repository` must be rebuilt.
    var envelopeIsLost: Bool { envelopeProblem != nil }
    var rewrites: [Rewrite] = []
    /// Files in the folder of packs and the packs that they are.
    var misplaced: [(name: String, pack: UInt32)] = []
    /// Files that hold nothing.
    var hollow: [String] = []
    /// Checkpoints that the forget record names.
    var forgotten: [CheckpointID] = []
    /// Labels that the labels record gives.
    var labels: [LabelsRecord.Change] = []
    /// Pages that are stored anew, in the order of their places.
    var saved: [(digest: PageDigest, place: PagePlace)] = []
    /// The list of removed packs, if it changes.
    var pruned: PrunedRecord?
    /// The number of the pack in which these are written.
    var nextPack: UInt32 = 1
    var nextTransaction: UInt64 = 1
    /// The paths of the files in which saved pages lie, before anything is renamed.
    var paths: [String] = []

    /// True if a new pack must be begun.
    package var needsPack: Bool {
        !forgotten.isEmpty || !labels.isEmpty || !saved.isEmpty || pruned != nil
    }
}
