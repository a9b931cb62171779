/// What may end an import before its checkpoint exists.
struct Interruption: Sendable {
    /// How long a thread waits at most before it asks again.
    static let interval = Duration.milliseconds(50)

    /// Throws if the import is to end; nil: it never is.
    let ask: (@Sendable () throws -> Void)?

    /// Fails with `cancelled` if the import is to end.
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
