import CheckpointFormat
import CheckpointIndex
import GuestModel
import LMDBTables
import PackStore

/// Determines which checkpoints give up their owned frames, and which pages become garbage.
///
/// Reads the index entries of the forgotten checkpoints and their successors, and the page maps
/// that contain pages which lose a reference: nothing of other checkpoints.
struct PruneSurvey: Sendable {
    /// The transfers, in the order in which they must be done.
    private(set) var steps: [OwnershipTransfer] = []
    /// Pages without references afterwards, and their locations.
    private(set) var dead: [PageDigest: PageLocation] = [:]
    /// Forgotten checkpoints that are in the index but whose manifests are gone.
    let vanished: [CheckpointID: PendingPrune]
    /// Forgotten checkpoints without owned frames whose pages must be kept nevertheless, because
    /// they are being read.
    let guarded: Set<CheckpointID>
    /// Packs that were removed earlier.
    let pruned: PrunedRecord
    /// The checkpoints of `steps`.
    let leaving: Set<CheckpointID>

    private var ownedFrames: [CheckpointID: OwnedFrames] = [:]
    private var successors: [CheckpointID: Set<CheckpointID>] = [:]
    private var changes: [PageDigest: Int] = [:]

    /// - Parameters:
    ///   - pending: forgotten checkpoints that prune has not finished removing.
    ///   - kept: checkpoints that are leased.
    init(
        _ pending: [CheckpointID: PendingPrune], kept: Set<CheckpointID>, repository: Repository,
        _ control: WorkControl
    ) throws(IndexError) {
        var (forgotten, vanished): ([CatalogEntry], [CheckpointID: PendingPrune]) = ([], [:])
        let index = try IndexError.ofPacks(repository.withIndex { $0 })
        pruned = try index.pruned()
        for (id, state) in pending {
            guard let entry = try index.entry(id), entry.isForgotten else { continue }
            if state == .hasOwnedFrames {
                if !kept.contains(id) { forgotten.append(entry) }
            } else if try IndexError.ofPacks(
                repository.reader.isPruned(entry.location, pruned))
            {
                vanished[id] = state
            }
        }
        self.vanished = vanished
        var guarded: Set<CheckpointID> = []
        for id in kept where try index.entry(id)?.isForgotten == true {
            if try !index.hasOwnedFrames(id) { guarded.insert(id) }
        }
        self.guarded = guarded
        // Newest first: then none receives owned frames from another before it gives away its own,
        // and the pages in its owned frames are all in its own page map.
        forgotten.sort { $0.order > $1.order }
        leaving = Set(forgotten.map(\.id))
        var chain = MapChainReader(index: index, reader: repository.reader)
        for entry in forgotten {
            try IndexError.ofPacks(control.check())
            try transferOwnership(entry.id, index, &chain)
        }
        ownedFrames = [:]
        successors = [:]
        dead = try index.unreferencedPages()
        for (digest, location) in try index.pagesWithoutReferences(after: changes) {
            dead[digest] = location
        }
        for (digest, change) in changes where change > 0 { dead[digest] = nil }
        changes = [:]
        for id in guarded {
            try chain.forEachPage(of: id) { _, digest in dead[digest] = nil }
        }
    }

    /// Keeps only those pages dead that an earlier survey also lists.
    mutating func restrict(to other: PruneSurvey) {
        dead = dead.filter { other.dead[$0.key] != nil }
    }

    /// Plans the transfer of one checkpoint.
    private mutating func transferOwnership(
        _ id: CheckpointID, _ index: Index, _ chain: inout MapChainReader
    ) throws(IndexError) {
        guard let own = try ownedFrames(of: id, index) else { return }
        let following = try successors(of: id, index)
        var lost = own.frames
        var inherited = FrameSet()
        // One for each further successor that inherits one of its references.
        var copies: [FrameSet] = []
        for successor in following {
            guard let theirs = try ownedFrames(of: successor, index) else {
                throw IndexError.contradiction(in: "owned frames")
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
        var step = OwnershipTransfer(id: id, predecessor: own.predecessor, successors: following)
        try chain.forEachPage(of: id, in: copies.reduce(lost) { $0.union($1) }) { frame, digest in
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
        for successor in following {
            ownedFrames[successor]?.frames.formUnion(own.frames)
            ownedFrames[successor]?.predecessor = own.predecessor
        }
        if let predecessor = own.predecessor {
            var others = try successors(of: predecessor, index)
            others.remove(id)
            successors[predecessor] = others.union(following)
        }
        ownedFrames[id] = nil
        successors[id] = nil
    }

    /// A checkpoint's owned frames after the steps so far.
    private mutating func ownedFrames(of id: CheckpointID, _ index: Index) throws(IndexError)
        -> OwnedFrames?
    {
        if let known = ownedFrames[id] { return known }
        let found = try index.ownedFrames(id)
        ownedFrames[id] = found
        return found
    }

    /// A checkpoint's successors after the steps so far.
    private mutating func successors(
        of id: CheckpointID, _ index: Index
    ) throws(IndexError) -> Set<CheckpointID> {
        if let known = successors[id] { return known }
        let found = try index.successors(of: id)
        successors[id] = found
        return found
    }
}
