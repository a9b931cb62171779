import CheckpointFormat
import PackStore

// Determines the repository's identity if the file `repository` is wrong. That file has only 64
// bytes, while a store consists of all its packs: copying the file from another store must not turn
// all of them into foreign packs.

/// The repository to which the packs say that they belong.
struct RepairIdentity {
    private var votes: [RepositoryID: Int] = [:]

    /// Reads the envelopes of all packs; unreadable ones do not count.
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

    /// The ID that more than half state; nil if there is none.
    var majority: RepositoryID? {
        guard let best = votes.max(by: { $0.value < $1.value }),
            best.value * 2 > votes.values.reduce(0, +)
        else { return nil }
        return best.key
    }

    /// The ID that most packs state, if it contradicts a whole file `repository`; otherwise nil.
    ///
    /// The head counts too, so that the only pack of a store, replaced by another store's, does not
    /// change the store's identity.
    static func contradicting(
        _ id: RepositoryID, _ files: any RepositoryFiles
    ) -> RepositoryID? {
        var identity = RepairIdentity(files)
        guard let packs = identity.majority, packs != id else { return nil }
        identity.vote(StoreHead.path, .head, files)
        return identity.majority == packs ? packs : nil
    }

    /// The message for a file `repository` that contradicts the packs.
    static func sentence(_ id: RepositoryID, _ packs: RepositoryID) -> String {
        "it says that this is repository \(id), but the packs are of \(packs)"
    }
}
