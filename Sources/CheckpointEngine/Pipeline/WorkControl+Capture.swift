import PackStore

extension WorkControl {
    /// The error of a capture or an import that was cancelled.
    var cancelledCapture: CaptureError { CaptureError(cancelled) }

    /// Throws `cancelled` if the capture or import is to end.
    func checkCapture() throws(CaptureError) {
        do throws(RepositoryError) {
            try check()
        } catch {
            throw CaptureError(error)
        }
    }
}
