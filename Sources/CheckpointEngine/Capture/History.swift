package import CheckpointIndex
package import CheckpointStore
package import GuestModel
import PackStore

/// Whether a checkpoint goes on with the guest of its lineage.
package enum History {
    /// Fails with a guest's error (`anotherGuest`) if a lineage is known to be another guest's, and
    /// the options do not accept that.
    ///
    /// Reads the state of one checkpoint.
    ///
    /// - Parameters:
    ///   - newest: the checkpoint that is gone on from; nil: none.
    ///   - difference: in which way its state is another guest's; nil if it may be this one's.
    package static func check(
        _ newest: Checkpoint?, of repository: Repository, _ options: CaptureOptions,
        difference: (GuestState) -> String?
    ) throws(CaptureError) {
        guard let newest, !options.acceptsGuestChange else { return }
        let state: GuestState
        do throws(RepositoryError) {
            state = try repository.state(of: newest)
        } catch {
            throw CaptureError(error)
        }
        guard let difference = difference(state) else { return }
        throw CaptureError(
            GuestError(
                code: .anotherGuest,
                message: "lineage '\(newest.lineage)' is another guest's: \(difference); name "
                    + "another lineage, or accept the change (--accept-guest-change, "
                    + "CaptureOptions.acceptsGuestChange)"))
    }
}
