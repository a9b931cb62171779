import CheckpointFormat
package import CheckpointIndex
import GuestModel
package import PackStore
import Synchronization

/// Protects a checkpoint's pages from this process's prune, even if it is forgotten.
///
/// For a session that continues from a checkpoint: its page map refers to pages that readers might
/// not need.
package final class SessionLease: Sendable {
    private let id: CheckpointID
    private let repository: Repository
    private let isReleased = Atomic<Bool>(false)

    /// Leases a checkpoint that cannot have been forgotten.
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

    /// Ends the lease now; this object may live on.
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
    /// Protects a checkpoint's pages from prune until the result is released.
    ///
    /// Fails if it was forgotten and no session has a lease on it.
    package func leaseForSession(_ checkpoint: Checkpoint) throws(RepositoryError) -> SessionLease {
        let id = checkpoint.id
        try catchUp()
        // Looked up under the lock: prune reads the catalog and the session leases at one moment.
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
