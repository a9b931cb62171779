extension Repository {
    /// Reads every byte of every pack and checks it.
    ///
    /// - Parameter progress: called now and then with bytes done and bytes in all.
    public func verify(
        progress: (@Sendable (_ done: Int, _ total: Int) -> Void)? = nil
    ) throws(RepositoryError) -> VerifyReport {
        VerifyReport()
    }
}
