/// How to open the index.
package enum LMDBAccess: Sendable {
    /// Creates a missing index; requires the writer's lock.
    case writing
    /// Creates nothing and never waits for LMDB's locks; writes only LMDB's reader table.
    case reading
    /// Writes nothing at all: a writer's changes in the meantime are detected afterwards.
    case readingWithoutLocks
}
