/// What may end an import before its checkpoint exists.
struct Interruption: Sendable {
    /// The longest time that a thread waits before it checks again.
    static let interval = Duration.milliseconds(50)

    /// Throws if the import is to end; nil: it never is.
    let ask: (@Sendable () throws -> Void)?

    /// Throws `cancelled` if the import is to end.
    func check() throws(CaptureError) {
        do {
            try ask?()
        } catch let error as CaptureError {
            throw error
        } catch {
            throw CaptureError(
                .cancelled, "the import was ended before its checkpoint was whole: \(error)")
        }
    }
}
