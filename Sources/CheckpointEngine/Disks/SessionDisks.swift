import CheckpointIndex
import GuestModel
import Synchronization

// A cut is needed until a later one was read, because what changed is known by comparing the two.
//
//   prepared -> cut -> its checkpoint exists: `last`, and the one before is retired
//                   -> the capture failed: retired
//
// So if a capture fails, the next one compares with the last checkpoint's cut, and nothing that
// changed in between is missed.

/// A session's disks, and the cuts of them that stand.
final class SessionDisks: Sendable {
    /// The newest checkpoint, and the cut with which the next one is compared.
    struct Last: Sendable {
        let checkpoint: CheckpointID
        let cut: any DiskCut
        /// Blocks in which the checkpoint's disks differ from the cut, by the bytes of their names.
        ///
        /// A revert wrote them. Nil: the checkpoint was read from this cut.
        var written: [[UInt8]: [BlockRange]]?
    }

    private struct State: Sendable {
        var last: Last?
        /// Cuts that are to be dropped.
        var retired: [any DiskCut] = []
        var failure: GuestError?
        /// The checkpoint of a revert that failed and left memory and disks of two instants.
        var mixedBy: CheckpointID?
        /// What a process that died in a revert had prepared.
        var prepared: (checkpoint: CheckpointID, cut: any DiskCut)?
    }

    let group: any DiskGroup
    private let state: Mutex<State>

    /// - Parameters:
    ///   - parent: the checkpoint that the first one follows; if its cut still stands, the first
    ///     capture need not compare everything.
    ///   - noted: a revert that this session is to complete; likewise.
    init(
        _ group: any DiskGroup, parent: Checkpoint?, noted: NotedRevert? = nil
    ) throws(GuestError) {
        self.group = group
        var state = State()
        if let parent, let name = parent.cutName, let cut = try group.standingCut(name) {
            cut.readingEnded()
            state.last = Last(checkpoint: parent.id, cut: cut)
        }
        if let noted, !noted.diskCut.isEmpty, let cut = try group.standingCut(noted.diskCut) {
            cut.readingEnded()
            state.prepared = (noted.checkpoint, cut)
        }
        self.state = Mutex(state)
    }

    /// Throws `invalidOption` if a session would drop the disks of its lineage without having been
    /// told to.
    static func check(
        _ newest: Checkpoint?, hasDisks: Bool, _ options: CaptureOptions
    ) throws(CheckpointError) {
        guard !hasDisks, !options.omitsDisks, let newest,
            !newest.disks.isEmpty || newest.omitsDisks
        else { return }
        throw CheckpointError(
            .invalidOption,
            "the newest checkpoint of lineage '\(newest.lineage)' says that its guest has disks; "
                + "take them too, or say that they are omitted, which is recorded (--no-disks, "
                + "CaptureOptions.omitsDisks)")
    }

    /// False if the newest cut had no disks: a group may have none for now.
    var hasDisks: Bool { state.withLock { $0.last.map { !$0.cut.disks.isEmpty } ?? true } }

    /// The disks of a cut, to be read after the checkpoint `parent`.
    func source(_ cut: any DiskCut, after parent: CheckpointID?) -> CutDisks {
        let last = state.withLock { $0.last }
        guard let last, last.checkpoint == parent else { return CutDisks(cut: cut, parent: nil) }
        return CutDisks(cut: cut, parent: last.cut, written: last.written ?? [:])
    }

    /// The cut with which a checkpoint's disks can be compared; nil if there is none.
    func last(of checkpoint: CheckpointID) -> Last? {
        state.withLock { $0.last }.flatMap { $0.checkpoint == checkpoint ? $0 : nil }
    }

    /// Takes a cut that holds a checkpoint's disks, and is in no checkpoint; the caller owns it.
    func takePrepared(_ checkpoint: CheckpointID) -> (any DiskCut)? {
        state.withLock { state in
            guard let prepared = state.prepared, prepared.checkpoint == checkpoint else {
                return nil
            }
            state.prepared = nil
            return prepared.cut
        }
    }

    /// Notes that the disks are those of a checkpoint, but for blocks that were written after a
    /// cut.
    func reverted(
        _ cut: any DiskCut, to checkpoint: CheckpointID, written: [[UInt8]: [BlockRange]]
    ) {
        state.withLock { state in
            if let last = state.last { state.retired.append(last.cut) }
            state.last = Last(checkpoint: checkpoint, cut: cut, written: written)
            state.mixedBy = nil
        }
        cut.readingEnded()
    }

    /// Notes that memory and disks are of two instants, until a revert succeeds: a checkpoint of
    /// them would look like any other.
    func forget(mixedBy checkpoint: CheckpointID) {
        state.withLock { state in
            if let last = state.last { state.retired.append(last.cut) }
            state.last = nil
            state.mixedBy = checkpoint
        }
    }

    /// Throws if memory and disks are of two instants.
    func checkWhole() throws(GuestError) {
        guard let checkpoint = state.withLock({ $0.mixedBy }) else { return }
        throw GuestError(
            code: .stateRejected,
            message: "memory and disks are of two instants since a revert to \(checkpoint.short) "
                + "failed, and are not captured so; revert again, or restore it as a new guest")
    }

    /// Notes that a checkpoint with a cut's disks exists.
    func published(_ cut: any DiskCut, in checkpoint: CheckpointID) {
        state.withLock { state in
            if let last = state.last { state.retired.append(last.cut) }
            state.last = Last(checkpoint: checkpoint, cut: cut)
        }
        cut.readingEnded()
    }

    /// Notes that something of the disks could not be dropped.
    func note(_ error: GuestError) { state.withLock { $0.failure = error } }

    /// Notes that a cut is in no checkpoint.
    func failed(_ cut: any DiskCut) {
        state.withLock { $0.retired.append(cut) }
    }

    /// Drops the cuts that are not needed any more.
    func releaseRetired() {
        let retired = state.withLock { state in
            defer { state.retired = [] }
            return state.retired
        }
        for cut in retired {
            do throws(GuestError) {
                try cut.release()
            } catch {
                state.withLock { $0.failure = error }
            }
        }
    }

    /// Drops the cuts at the end of a session.
    ///
    /// - Parameter keepsLast: whether that of the newest checkpoint is kept.
    func end(keepingLast keepsLast: Bool) {
        state.withLock { state in
            if let prepared = state.prepared { state.retired.append(prepared.cut) }
            state.prepared = nil
            // No checkpoint names the cut of a revert, so none would find it again.
            if let last = state.last, !keepsLast || last.written != nil {
                state.retired.append(last.cut)
            }
            state.last = nil
        }
        releaseRetired()
    }

    /// Why a cut could not be dropped the last time that happened; nil if it never did.
    var failure: GuestError? { state.withLock { $0.failure } }
}
