import CheckpointFormat
package import PackStore

/// Assignment of transaction numbers.
package enum TransactionNumbers {
    /// Numbers available to a writer after each open.
    private static let roomMin: UInt64 = 1 << 32
    /// Maximum distance of a number from all seen before it: writers assign them consecutively, a
    /// hundred per second for 90,000 years.
    private static let leapMax: UInt64 = 1 << 48

    /// The highest number that writers have assigned, given one more that was seen.
    ///
    /// A number further ahead was forged. It is ignored: counting on from it could exhaust the
    /// numbers, and no writer will reach it.
    package static func highest(_ known: UInt64, and seen: UInt64) -> UInt64 {
        seen > known && seen - known <= leapMax ? seen : known
    }

    /// True if enough numbers are left for a writer.
    static func hasRoom(after highest: UInt64) -> Bool {
        highest <= RecordHeader.transactions.upperBound
            && RecordHeader.transactions.upperBound - highest >= roomMin
    }

    /// Fails if too few numbers are left for a writer, which only a forged store can cause.
    package static func requireRoom(after highest: UInt64) throws(RepositoryError) {
        guard !hasRoom(after: highest) else { return }
        throw RepositoryError(
            .readOnly,
            "a record has transaction number \(highest), and too few numbers are left to write; "
                + "create a new repository and import its checkpoints there")
    }
}
