/// The directories of a repository, relative to it.
package enum StoreDirectory {
    /// The packs: the authoritative data.
    package static let packs = "packs"
    /// LMDB's files: derived from the packs.
    package static let index = "index"
    /// Leases: what readers in any process protect from prune.
    package static let leases = "leases"
    /// Where repair moves what it removes from the packs.
    package static let damaged = "damaged"
}
