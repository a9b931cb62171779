/// How the index is opened.
package enum LMDBAccess: Sendable {
    /// It is made if it is missing; with the writer's lock.
    case writing
    /// Nothing is made, and no lock of LMDB is waited for; its table of readers is written.
    case reading
    /// Nothing is written at all: what a writer changes meanwhile is noticed afterwards.
    case readingWithoutLocks
}
