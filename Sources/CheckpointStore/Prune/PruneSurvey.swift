import CheckpointFormat
import GuestModel

// Which checkpoints prune must keep, and which pages die.
//
// A root is a checkpoint that exists, is leased, or is held by a session. Its page map is that of a
// series of stored maps, each over the one that it builds on; so the stored maps are a tree. A root
// sees a frame that a map names unless every way from there to a root comes by a map that names the
// frame again:
//
//   shadow(root)  = nothing                     a root sees all of its own map
//   shadow(other) = intersection over the maps that build on it, and lead to a root,
//                   of (their frames + their shadow)
//
// Maps that build on a map come after it. So one way back through the catalog makes all shadows,
// reads each stored map once, and has a bitmap open for each level of each branch only. No page map
// is ever put together.
//
// A page dies if a forgotten checkpoint names it and no root sees it. Candidates are what roots do
// not see of forgotten maps; a second way back takes out of them what is seen anywhere.

/// The catalog at one moment, and what of it must be kept.
struct PruneSurvey: Sendable {
    /// A checkpoint whose manifest is in the packs.
    struct Member: Sendable {
        let checkpoint: Checkpoint
        /// True if its pages must stay.
        let isRoot: Bool
        /// True if a root's page map builds on its own.
        var isNeeded = false
    }

    /// In the order of the packs.
    private(set) var members: [Member]
    /// Forgotten checkpoints that the index knows and whose manifests are gone.
    let vanished: [CheckpointID]
    /// Pages that no root has, and where they lie.
    private(set) var dead: [PageDigest: PageLocation] = [:]
    /// Packs that were removed before.
    let pruned: PrunedRecord
    private let reader: PackReader
    private let index: Index
    private let roots: Set<CheckpointID>
    private(set) var known: Set<CheckpointID>

    /// Reads the manifests, and finds out which pages die.
    init(
        _ entries: [CatalogEntry], kept: Set<CheckpointID>, repository: Repository
    ) throws {
        reader = repository.reader
        (index, pruned) = try repository.withIndex { ($0, try $0.pruned()) }
        known = Set(entries.map(\.id))
        var members: [Member] = []
        var vanished: [CheckpointID] = []
        var roots: Set<CheckpointID> = []
        for entry in entries {
            let isRoot = !entry.isForgotten || kept.contains(entry.id)
            if !isRoot, try reader.isPruned(entry.location, pruned) {
                vanished.append(entry.id)
                continue
            }
            if isRoot { roots.insert(entry.id) }
            members.append(Member(checkpoint: try repository.read(entry), isRoot: isRoot))
        }
        self.members = members
        self.vanished = vanished
        self.roots = roots
        markNeeded()
        if members.contains(where: { !$0.isRoot }) { try findDead() }
    }

    /// Takes in checkpoints that were published since: what they name does not die.
    ///
    /// - Returns: true if there are any.
    mutating func add(_ entries: [CatalogEntry], of repository: Repository) throws -> Bool {
        let new = entries.filter { !known.contains($0.id) }
        for entry in new {
            let checkpoint = try repository.read(entry)
            members.append(Member(checkpoint: checkpoint, isRoot: true))
            known.insert(entry.id)
            for location in checkpoint.manifest.mapParts {
                let part = try MapReader.part(reader, at: location)
                for digest in part.digests { dead[digest] = nil }
            }
        }
        return !new.isEmpty
    }

    private mutating func markNeeded() {
        var needed: Set<CheckpointID> = []
        for position in members.indices.reversed() {
            let member = members[position]
            members[position].isNeeded = needed.contains(member.checkpoint.id)
            guard member.isRoot || members[position].isNeeded,
                let ancestor = member.checkpoint.mapAncestor
            else { continue }
            needed.insert(ancestor)
        }
    }

    private mutating func findDead() throws {
        var batch: Set<PageDigest> = []
        var candidates: [PageDigest: PageLocation] = [:]
        func lookUp() throws {
            let digests = Array(batch)
            try index.locations(of: digests.span) { position, location in
                // What the index does not know died before.
                if let location { candidates[digests[position]] = location }
            }
            batch.removeAll(keepingCapacity: true)
        }
        try forEachDigest(withRoots: false) { digest, isSeen in
            guard !isSeen, candidates[digest] == nil else { return }
            batch.insert(digest)
            if batch.count >= 1 << 16 { try lookUp() }
        }
        try lookUp()
        guard !candidates.isEmpty else { return }
        try forEachDigest(withRoots: true) { digest, isSeen in
            if isSeen { candidates[digest] = nil }
        }
        dead = candidates
    }

    /// Calls `body` with the digests in the stored maps, and whether a root sees them there.
    ///
    /// - Parameter withRoots: false: those in the maps of roots, all of them seen, are left out.
    private func forEachDigest(
        withRoots: Bool, _ body: (PageDigest, _ isSeen: Bool) throws -> Void
    ) throws {
        var shadows: [CheckpointID: DirtyBitmap] = [:]
        for member in members.reversed() {
            let id = member.checkpoint.id
            guard member.isRoot || member.isNeeded else {
                if !withRoots { try forEachUnseen(of: member) { try body($0, false) } }
                continue
            }
            var hiding: CheckpointID?
            if let ancestor = member.checkpoint.mapAncestor, !roots.contains(ancestor) {
                hiding = ancestor
            }
            guard withRoots || !member.isRoot || hiding != nil else { continue }
            let shadow = shadows.removeValue(forKey: id) ?? DirtyBitmap()
            var frames = shadow
            for location in member.checkpoint.manifest.mapParts {
                try MapReader.part(reader, at: location).forEachRun { (run, digests) throws in
                    if hiding != nil { frames.insert(run.range) }
                    guard run.content.hasDigests, withRoots || !member.isRoot else { return }
                    for (frame, digest) in zip(run.range.frames, digests) {
                        try body(digest, !shadow.contains(PageFrameNumber(frame)))
                    }
                }
            }
            guard let hiding else { continue }
            if shadows[hiding] == nil {
                shadows[hiding] = frames
            } else {
                shadows[hiding]?.formIntersection(frames)
            }
        }
    }

    /// The digests in what is left of the map of a checkpoint that nobody needs.
    private func forEachUnseen(
        of member: Member, _ body: (PageDigest) throws -> Void
    ) throws {
        for location in member.checkpoint.manifest.mapParts
        where try !reader.isPruned(location, pruned) {
            for digest in try MapReader.part(reader, at: location).digests { try body(digest) }
        }
    }
}

extension Checkpoint {
    /// The checkpoint on whose page map its own builds.
    var mapAncestor: CheckpointID? {
        manifest.mapPosition == 0 ? nil : CheckpointID(manifest.mapAncestor)
    }
}
