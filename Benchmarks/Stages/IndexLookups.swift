import CheckpointIndex
public import CheckpointStore
public import GuestModel

/// Look-ups in a repository's index.
public enum IndexLookups {
    /// How many of the digests have a page, in one look at the index.
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
