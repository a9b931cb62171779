package import CheckpointIndex
package import CheckpointStore
package import GuestModel
import PackStore

/// Checks whether a checkpoint continues the guest of its lineage.
package enum History {
    /// Throws a guest's error (`anotherGuest`) if a lineage is known to belong to another guest,
    /// and the options do not accept that.
    ///
    /// Reads the state of one checkpoint.
    ///
    /// - Parameters:
    ///   - newest: the checkpoint that the next one follows; nil if there is none.
    ///   - difference: returns how a state is known to be another guest's; nil if it may be this
    ///     guest's.
    package static func check(
        _ newest: Checkpoint?, of repository: Repository, _ options: CaptureOptions,
        difference: (GuestState) -> String?
    ) throws(CheckpointError) {
        guard let newest, !options.acceptsGuestChange else { return }
        let state: GuestState
        do throws(RepositoryError) {
            state = try repository.state(of: newest)
        } catch {
            throw CheckpointError(error)
        }
        guard let difference = difference(state) else { return }
        throw CheckpointError(
            GuestError(
                code: .anotherGuest,
                message: "lineage '\(newest.lineage)' is another guest's: \(difference); name "
                    + "another lineage, or accept the change (--accept-guest-change, "
                    + "CaptureOptions.acceptsGuestChange)"))
    }
}
