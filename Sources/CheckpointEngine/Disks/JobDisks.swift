import CheckpointIndex
import CheckpointStore
import GuestModel
import Synchronization

/// The cut of one capture: prepared before the pause, made in it, and passed on when the capture
/// has ended.
final class JobDisks: Sendable {
    private let disks: SessionDisks
    private let cut = Mutex<(any DiskCut)?>(nil)

    init(_ disks: SessionDisks) { self.disks = disks }

    /// Prepares the cut, unless that was done already for a pause that was given up.
    func prepare() throws(CheckpointError) {
        guard cut.withLock({ $0 }) == nil else { return }
        do {
            try disks.checkWhole()
            // Names and sizes that no checkpoint can have are refused while the guest runs.
            var table = VolumeTable()
            _ = try table.adopt(try disks.group.disks())
            try prepareCut()
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    private func prepareCut() throws(GuestError) {
        let prepared = try disks.group.prepareCut()
        cut.withLock { $0 = prepared }
    }

    /// Makes the cut, in the pause.
    func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
        guard let cut = cut.withLock({ $0 }) else {
            preconditionFailure("a cut is prepared before the pause")
        }
        return try cut.cut(within: budget)
    }

    /// The disks, once they are cut.
    func source(after parent: CheckpointID?) -> CutDisks? {
        cut.withLock { $0 }.map { disks.source($0, after: parent) }
    }

    /// Passes the cut on: to the next capture's comparison, or to be dropped.
    func end(_ result: Result<Checkpoint, CheckpointError>) {
        guard let cut = cut.withLock({ $0 }) else { return }
        switch result {
        case .success(let checkpoint): disks.published(cut, in: checkpoint.id)
        case .failure: disks.failed(cut)
        }
    }
}
