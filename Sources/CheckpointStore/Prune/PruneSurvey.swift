import CheckpointFormat
import CheckpointIndex
import GuestModel
import LMDBTables
import PackStore

/// Which checkpoints give up their stakes, and which pages die of it.
///
/// Reads what the index says of the forgotten ones and of those that follow them, and the page maps
/// that name the pages which lose a reference: nothing of the others.
struct PruneSurvey: Sendable {
    /// In the order in which they are to be done.
    private(set) var steps: [OwnershipTransfer] = []
    /// Pages that nobody refers to afterwards, and where they lie.
    private(set) var dead: [PageDigest: PageLocation] = [:]
    /// Forgotten checkpoints that the index knows and whose manifests are gone.
    let vanished: [CheckpointID: PendingPrune]
    /// Forgotten checkpoints without stakes whose pages must stay all the same, because somebody
    /// reads them.
    let guarded: Set<CheckpointID>
    /// Packs that were removed before.
    let pruned: PrunedRecord
    /// The checkpoints of `steps`.
    let leaving: Set<CheckpointID>

    private var stakes: [CheckpointID: Stakes] = [:]
    private var followers: [CheckpointID: Set<CheckpointID>] = [:]
    private var changes: [PageDigest: Int] = [:]

    /// - Parameters:
    ///   - pending: forgotten checkpoints that prune is not done with.
    ///   - kept: checkpoints that somebody holds or reads.
    init(
        _ pending: [CheckpointID: PendingPrune], kept: Set<CheckpointID>, repository: Repository
    ) throws {
        var (forgotten, vanished): ([CatalogEntry], [CheckpointID: PendingPrune]) = ([], [:])
        let index = try repository.withIndex { $0 }
        pruned = try index.pruned()
        for (id, state) in pending {
            guard let entry = try index.entry(id), entry.isForgotten else { continue }
            if state == .hasStakes {
                if !kept.contains(id) { forgotten.append(entry) }
            } else if try repository.reader.isPruned(entry.location, pruned) {
                vanished[id] = state
            }
        }
        self.vanished = vanished
        guarded = try kept.filter { id in
            try index.entry(id)?.isForgotten == true && !index.hasStakes(id)
        }
        // The newest first: then none is given stakes by another before it gives away its own, and
        // the pages in its own stakes are named by its own page map.
        forgotten.sort { $0.order > $1.order }
        leaving = Set(forgotten.map(\.id))
        var series = MapSeriesReader(index: index, reader: repository.reader)
        for entry in forgotten { try resign(entry.id, index, &series) }
        stakes = [:]
        followers = [:]
        dead = try index.unreferencedPages()
        for (digest, location) in try index.pagesWithoutReferences(after: changes) {
            dead[digest] = location
        }
        for (digest, change) in changes where change > 0 { dead[digest] = nil }
        changes = [:]
        for id in guarded {
            try series.forEachPage(of: id) { _, digest in dead[digest] = nil }
        }
    }

    /// Leaves only pages dead that an earlier survey said of.
    mutating func restrict(to other: PruneSurvey) {
        dead = dead.filter { other.dead[$0.key] != nil }
    }

    /// Makes the step of one checkpoint.
    private mutating func resign(
        _ id: CheckpointID, _ index: Index, _ series: inout MapSeriesReader
    ) throws {
        guard let own = try stakes(of: id, index) else { return }
        let following = try followers(of: id, index)
        var lost = own.frames
        var inherited = DirtyBitmap()
        // For each follower but the first that goes on from one of its references.
        var copies: [DirtyBitmap] = []
        for follower in following {
            guard let theirs = try stakes(of: follower, index) else {
                throw LMDBError.contradiction(in: "stakes")
            }
            lost.formIntersection(theirs.frames)
            guard following.count > 1 else { break }
            var here = own.frames
            here.subtract(theirs.frames)
            var again = here
            again.formIntersection(inherited)
            if !again.isEmpty { copies.append(again) }
            inherited.formUnion(here)
        }
        var step = OwnershipTransfer(id: id, forerunner: own.forerunner, followers: following)
        try series.forEachPage(of: id, in: copies.reduce(lost) { $0.union($1) }) { frame, digest in
            if lost.contains(frame) {
                step.lost.append(digest)
                changes[digest, default: 0] -= 1
            }
            let count = copies.count { $0.contains(frame) }
            guard count > 0 else { return }
            step.gained[digest, default: 0] += UInt32(count)
            changes[digest, default: 0] += count
        }
        steps.append(step)
        for follower in following {
            stakes[follower]?.frames.formUnion(own.frames)
            stakes[follower]?.forerunner = own.forerunner
        }
        if let forerunner = own.forerunner {
            var others = try followers(of: forerunner, index)
            others.remove(id)
            followers[forerunner] = others.union(following)
        }
        stakes[id] = nil
        followers[id] = nil
    }

    /// Stakes as the steps so far leave them.
    private mutating func stakes(of id: CheckpointID, _ index: Index) throws -> Stakes? {
        if let known = stakes[id] { return known }
        let found = try index.stakes(id)
        stakes[id] = found
        return found
    }

    /// Followers as the steps so far leave them.
    private mutating func followers(
        of id: CheckpointID, _ index: Index
    ) throws -> Set<CheckpointID> {
        if let known = followers[id] { return known }
        let found = try index.followers(of: id)
        followers[id] = found
        return found
    }
}
