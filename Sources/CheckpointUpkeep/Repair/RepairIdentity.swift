import CheckpointFormat
import PackStore

// Which repository it is, in spite of the file `repository`. That is 64 bytes, and a store is all
// of its packs: a file that was copied from elsewhere must not make strangers of them.

/// Which repository packs say that they belong to.
struct RepairIdentity {
    private var votes: [RepositoryID: Int] = [:]

    /// Reads the envelopes of all packs; one that cannot be read says nothing.
    init(_ files: any RepositoryFiles) {
        for name in (try? files.list(StoreDirectory.packs)) ?? [] where PackName.number(name) != nil
        {
            vote("\(StoreDirectory.packs)/\(name)", .pack, files)
        }
    }

    private mutating func vote(
        _ path: String, _ kind: Envelope.Kind, _ files: any RepositoryFiles
    ) {
        guard
            let head = try? files.open(path, .read).readBytes(Envelope.byteCount, at: 0),
            let envelope = try? Envelope.decode(head, kind: kind)
        else { return }
        votes[envelope.repository, default: 0] += 1
    }

    /// What more than half say; nil without.
    var majority: RepositoryID? {
        guard let best = votes.max(by: { $0.value < $1.value }),
            best.value * 2 > votes.values.reduce(0, +)
        else { return nil }
        return best.key
    }

    /// What most packs say, against a whole file `repository`; nil if they do not.
    ///
    /// The head is heard too, so that the only pack of a store, replaced by another store's, does
    /// not make it that one.
    static func contradicting(
        _ id: RepositoryID, _ files: any RepositoryFiles
    ) -> RepositoryID? {
        var identity = RepairIdentity(files)
        guard let packs = identity.majority, packs != id else { return nil }
        identity.vote(StoreHead.path, .head, files)
        return identity.majority == packs ? packs : nil
    }

    /// The words for a file `repository` that packs contradict.
    static func sentence(_ id: RepositoryID, _ packs: RepositoryID) -> String {
        "it says that this is repository \(id), and the packs are of \(packs)"
    }
}
