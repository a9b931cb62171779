/// The directories of a repository, relative to it.
package enum StoreDirectory {
    /// The packs: the truth.
    package static let packs = "packs"
    /// LMDB's files: derived from the packs.
    package static let index = "index"
    /// What readers in any process keep from prune.
    package static let leases = "leases"
    /// Where repair moves what it takes out of the packs.
    package static let damaged = "damaged"
}
