import CheckpointIndex
public import CheckpointStore
public import GuestModel

/// Look-ups in a repository's index.
public enum IndexLookups {
    /// The number of digests that have a page, found in one index txn.
    public static func foundCount(
        _ digests: [PageDigest], in repository: Repository
    ) throws -> Int {
        var count = 0
        try repository.withIndex { index in
            try index.locations(of: digests.span) { _, location in
                if location != nil { count += 1 }
            }
        }
        return count
    }
}
