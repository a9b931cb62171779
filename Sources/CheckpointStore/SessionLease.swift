import CheckpointFormat
package import CheckpointIndex
import GuestModel
package import PackStore
import Synchronization

/// What goes on in this process that prune must wait for or leave alone.
struct Activity: Sendable {
    /// Transactions that were begun and are neither given up nor known to the index; and a place in
    /// the packs that is before all that each appends.
    var transactions: [UInt64: RecordLocation] = [:]
    /// Checkpoints that sessions and transactions build on, and how many do.
    var sessionLeases: [CheckpointID: Int] = [:]
    /// True while a prune runs; there is one at a time.
    var isPruning = false
    /// Prunes that were begun: a plan is good until the next one.
    var pruneCount = 0
    /// The open pack, and about how much of it was unused, when a plan found that sealing it would
    /// bring nothing back.
    var uselessSeal: (pack: UInt32, unusedByteCount: Int)?
    /// Pages that prune is about to delete: transactions that begin now store them anew.
    var condemned: Set<PageDigest> = []
}

/// Keeps a checkpoint's pages from this process's prune, also when it is forgotten.
///
/// For one who goes on from a checkpoint: its page map names pages that no reader would ask for.
package final class SessionLease: Sendable {
    private let id: CheckpointID
    private let repository: Repository
    private let isReleased = Atomic<Bool>(false)

    /// Holds a checkpoint that nobody can have forgotten.
    init(unchecked id: CheckpointID, in repository: Repository) {
        self.id = id
        self.repository = repository
        repository.activity.change { $0.sessionLeases[id, default: 0] += 1 }
    }

    fileprivate init(taken id: CheckpointID, in repository: Repository) {
        self.id = id
        self.repository = repository
    }

    deinit { release() }

    /// Gives the checkpoint up now; this object may live on.
    package func release() {
        guard !isReleased.exchange(true, ordering: .acquiringAndReleasing) else { return }
        let id = id
        repository.activity.change { activity in
            let count = activity.sessionLeases[id, default: 1] - 1
            activity.sessionLeases[id] = count == 0 ? nil : count
        }
    }
}

extension Repository {
    /// Keeps a checkpoint's pages from prune as long as the result lives.
    ///
    /// Fails if it was forgotten and no session holds it.
    package func leaseForSession(_ checkpoint: Checkpoint) throws(RepositoryError) -> SessionLease {
        let id = checkpoint.id
        try catchUp()
        // Looked up with the lock held: prune reads the catalog and these leases at one moment.
        let result = activity.change { activity -> Result<Bool, RepositoryError> in
            let result = Result { () throws(RepositoryError) -> Bool in
                if activity.sessionLeases[id] != nil { return true }
                return try self.withIndex { try $0.entry(id) }?.isForgotten == false
            }
            if case .success(true) = result { activity.sessionLeases[id, default: 0] += 1 }
            return result
        }
        guard try result.get() else { throw forgotten(id) }
        return SessionLease(taken: id, in: self)
    }

    func forgotten(_ id: CheckpointID) -> RepositoryError {
        RepositoryError(
            .unknownName, "checkpoint \(id.short) was forgotten; 'varve log' lists the others")
    }
}
