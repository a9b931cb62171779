import CheckpointFormat

/// The numbers that transactions are given.
enum TransactionNumbers {
    /// Numbers that one opening for writing may use.
    private static let roomMin: UInt64 = 1 << 32

    /// Fails if too few numbers are left for a writer: only a store that somebody forged has used
    /// them up.
    static func requireRoom(after highest: UInt64) throws(RepositoryError) {
        guard RecordHeader.transactions.upperBound - highest < roomMin else { return }
        throw RepositoryError(
            .readOnly,
            "a record has transaction number \(highest), and too few numbers are left to write; "
                + "make a new repository, and import its checkpoints there")
    }
}
