import CheckpointFormat
package import PackStore

/// The numbers that transactions are given.
package enum TransactionNumbers {
    /// Numbers that one opening for writing may use.
    private static let roomMin: UInt64 = 1 << 32
    /// How far a number may lie above all that were seen before it: writers give them out one
    /// after the other, a hundred a second for 90,000 years.
    private static let leapMax: UInt64 = 1 << 48

    /// The highest number that writers have given out, when one more was seen.
    ///
    /// What leaps further was forged. It is passed over: counting on from it would end writing for
    /// ever, and no writer will come to it.
    package static func highest(_ known: UInt64, and seen: UInt64) -> UInt64 {
        seen > known && seen - known <= leapMax ? seen : known
    }

    /// True if enough numbers are left for a writer.
    static func hasRoom(after highest: UInt64) -> Bool {
        highest <= RecordHeader.transactions.upperBound
            && RecordHeader.transactions.upperBound - highest >= roomMin
    }

    /// Fails if too few numbers are left for a writer: only a store that somebody forged has used
    /// them up.
    package static func requireRoom(after highest: UInt64) throws(RepositoryError) {
        guard !hasRoom(after: highest) else { return }
        throw RepositoryError(
            .readOnly,
            "a record has transaction number \(highest), and too few numbers are left to write; "
                + "make a new repository, and import its checkpoints there")
    }
}
