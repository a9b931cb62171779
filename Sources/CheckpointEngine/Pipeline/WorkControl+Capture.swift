import PackStore

extension WorkControl {
    /// The error of a capture or an import that was cancelled.
    var cancelledCapture: CheckpointError { CheckpointError(cancelled) }

    /// Throws `cancelled` if the capture or import is to end.
    func checkCapture() throws(CheckpointError) {
        do throws(RepositoryError) {
            try check()
        } catch {
            throw CheckpointError(error)
        }
    }
}
