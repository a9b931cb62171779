package import CheckpointFormat
package import CheckpointIndex
package import GuestModel
package import PackStore
import Synchronization

// The writing of one checkpoint to the packs.
//
//   begin -> append page groups (any thread, any order) -> prepare -> publish: it exists
//                                                       -> abandon: it is never visible
//
// `prepare` appends the page map and the state; the draft is then free for the next checkpoint.
// `publish` appends the manifest and syncs once; `index` makes it visible to every reader.
// Everything that the manifest refers to was appended before it, to the same pack or to one that is
// sealed and synced.
//
// A transaction may begin and append before its parent is published; the parent is passed to
// `prepare`, and must exist by then.

/// The names of a checkpoint and how it was taken.
package struct CheckpointFacts: Sendable {
    package var lineage: LineageName
    package var label: Label?
    package var timeNanoseconds: Int64
    package var pause: Duration
    /// What the pause spent on the disks.
    package var diskTimes = DiskCutTimes()
    package var precopyRounds: Int
    package var comparedAll: Bool
    /// True if the guest has disks that are not in the checkpoint.
    package var omitsDisks = false
    /// The name of the cut from which the disks were read; empty: none.
    package var cutName = ""

    package init(
        lineage: LineageName, label: Label?, timeNanoseconds: Int64, pause: Duration = .zero,
        precopyRounds: Int = 0, comparedAll: Bool
    ) {
        self.lineage = lineage
        self.label = label
        self.timeNanoseconds = timeNanoseconds
        self.pause = pause
        self.precopyRounds = precopyRounds
        self.comparedAll = comparedAll
    }
}

/// Appends a checkpoint's pages to the packs, and publishes it.
package final class CheckpointTransaction: Sendable {
    private struct State {
        var groups = TransactionGroups()
        var claims = DigestSet()
        var nextOrdinal: UInt32 = 0
        var storedPages: UInt64 = 0
        var appendedBytes: UInt64 = 0
        var blockBytes: UInt64 = 0
        var isOpen = true
        /// Packs to which it appended.
        var packs: Set<UInt32> = []
    }

    /// Maximum number of digests remembered as stored by this transaction; beyond that, a duplicate
    /// page may be stored twice.
    private static let claimCountMax = 1 << 19

    package let number: UInt64
    private let repository: Repository
    private let writer: PackWriter
    private let epoch: UInt64
    private let state = Mutex(State())

    init(
        number: UInt64, repository: Repository, writer: PackWriter
    ) throws(RepositoryError) {
        self.number = number
        self.repository = repository
        self.writer = writer
        epoch = try writer.begin()
    }

    deinit {
        abandon()
    }

    /// Determines which of the given pages must be stored: those that are neither in the repository
    /// nor already claimed by this transaction.
    ///
    /// This claims them.
    ///
    /// - Parameter mustStore: receives the index of each.
    package func claim(
        _ digests: Span<PageDigest>, mustStore: inout [Int]
    ) throws(RepositoryError) {
        var unknown: [Int] = []
        unknown.reserveCapacity(digests.count)
        let condemned = repository.activity.read { $0.condemned }
        try repository.withIndex { index in
            try index.locations(of: digests) { position, location in
                // A page that prune is about to remove is stored again.
                let isGoing = condemned.contains(digests[position])
                if location == nil || isGoing { unknown.append(position) }
            }
        }
        state.withLock { state in
            for position in unknown {
                if state.claims.count >= CheckpointTransaction.claimCountMax {
                    state.claims.removeAll()
                }
                if state.claims.insert(digests[position]) { mustStore.append(position) }
            }
        }
    }

    /// Reserves ordinals for pages to be encoded.
    package func reserveOrdinals(_ count: Int) throws(RepositoryError) -> UInt32 {
        let first = state.withLock { state -> UInt32? in
            let first = state.nextOrdinal
            guard UInt64(first) + UInt64(count) < UInt64(UInt32.max) else { return nil }
            state.nextOrdinal += UInt32(count)
            return first
        }
        guard let first else {
            throw RepositoryError(
                .limitExceeded, "one checkpoint cannot store more than 16 TiB of new pages")
        }
        return first
    }

    /// Appends encoded page groups.
    ///
    /// Thread-safe; blocks for the write.
    package func append(
        _ frames: [PendingRecord], of bytes: UnsafeRawBufferPointer
    ) throws(RepositoryError) {
        let locations = try writer.append(frames, of: bytes, epoch: epoch)
        state.withLock { state in
            for (record, location) in zip(frames, locations) {
                state.packs.insert(location.pack)
                guard let table = record.frame else { continue }
                state.groups.append(table, at: location)
                state.storedPages += UInt64(table.pageCount)
                state.blockBytes += UInt64(table.payloadCount - table.headByteCount)
            }
            state.appendedBytes += frames.reduce(0) { $0 + UInt64($1.range.count) }
        }
    }

    /// A checkpoint of which all but the manifest is in the packs.
    package struct Prepared: Sendable {
        fileprivate let manifest: Manifest
        fileprivate let changed: FrameSet
        fileprivate let parentLease: SessionLease?

        /// Releases the parent to prune: the checkpoint is in the index, which keeps what it needs.
        package func releaseParent() { parentLease?.release() }
    }

    /// Appends the page map and the state; this is the last use of the draft.
    ///
    /// - Parameters:
    ///   - parent: an existing checkpoint; the draft began with its page map.
    ///   - lease: protects the parent from prune while this page map is being based on its own.
    ///   - disks: the disks, ascending by number, with their sizes.
    ///   - table: the numbers of disks, these included.
    ///   - goesOn: called before each part of the page map; if it returns false, nothing more is
    ///     appended, and this fails with `cancelled`.
    package func prepare(
        _ draft: CheckpointDraft, parent: Checkpoint?, lease: SessionLease?,
        disks: [VolumeRecord] = [], table: VolumeTable = VolumeTable(),
        state guestState: GuestState, _ facts: CheckpointFacts,
        while goesOn: @escaping () -> Bool = { true }
    ) throws(RepositoryError) -> Prepared {
        var manifest = manifest(facts, parent)
        manifest.volumeNumberEnd = table.numberEnd
        manifest.volumes = [.memory] + disks
        draft.adopt(disks, after: parent?.manifest)
        var changed = FrameSet()
        try draft.withState { (state) throws(RepositoryError) in
            changed = state.changed
            for index in manifest.volumes.indices { manifest.volumes[index].count(in: state) }
            let memory = manifest.memory
            guard MapBounds.allow(frameEnd: memory.frameEnd, pageCount: memory.pageCount)
            else {
                throw RepositoryError(
                    .abandoned,
                    "a guest of \(memory.pageCount) pages has a page at frame "
                        + "\(memory.frameEnd - 1), but a repository supports guests with larger "
                        + "holes only below frame \(MapBounds.holeEndMax); move its memory there")
            }
            let frames = try chooseMap(&manifest, parent, state)
            manifest.maps = try appendMap(frames, &state, while: goesOn)
        }
        let stateBytes = GuestStateCoding.encode(guestState)
        manifest.stateDigest = stateBytes.withUnsafeBytes { PageDigest(hashing: $0) }
        manifest.stateParts = try appendState(stateBytes)
        state.withLock { state in
            manifest.storedPageCount = state.storedPages
            manifest.addedByteCount = state.appendedBytes
            manifest.metadataByteCount = state.appendedBytes - state.blockBytes
        }
        return Prepared(manifest: manifest, changed: changed, parentLease: lease)
    }

    /// A published checkpoint.
    package struct Published: Sendable {
        package let checkpoint: Checkpoint
        /// Protects it from prune for a session that continues from it.
        package let lease: SessionLease
    }

    /// Publishes the checkpoint: when this returns, it exists and is durable.
    ///
    /// `index` must follow: until then no reader finds it. On failure the transaction ends, and
    /// nothing of it is ever visible.
    package func publish(_ prepared: Prepared) throws(RepositoryError) -> Published {
        let payload = prepared.manifest.encoded
        let location = try writer.publish(payload, transaction: number, epoch: epoch)
        let id = CheckpointID(payload.withUnsafeBytes { PageDigest(hashing: $0) })
        let publication = Publication(
            id: id, manifest: prepared.manifest, location: location, changed: prepared.changed)
        let groups = state.withLock { state in
            state.isOpen = false
            return state.groups
        }
        writer.end(wasPublished: true)
        // Leased before the index contains it, so before it can be forgotten.
        let lease = SessionLease(unchecked: id, in: repository)
        repository.didPublish(publication, transaction: number, groups: groups)
        return Published(checkpoint: publication.checkpoint, lease: lease)
    }

    /// Adds what was published to the index, so that every reader finds it.
    ///
    /// Call after `publish`, from any thread. Waits for earlier publications.
    package func index() {
        repository.indexPublished(by: number)
    }

    /// Abandons the transaction.
    ///
    /// Does nothing after `publish`.
    package func abandon() {
        let (wasOpen, packs) = state.withLock { state in
            defer { state.isOpen = false }
            return (state.isOpen, state.packs)
        }
        guard wasOpen else { return }
        writer.end(wasPublished: false)
        let last = writer.openPack
        repository.didEnd(transaction: number, leaving: packs.filter { $0 <= last })
    }

    private static let cancelled = RepositoryError(
        .cancelled, "the checkpoint was cancelled before it was complete; nothing of it is stored")

    private func manifest(_ facts: CheckpointFacts, _ parent: Checkpoint?) -> Manifest {
        var manifest = Manifest()
        manifest.parent = parent?.id.digest ?? .none
        manifest.timeNanoseconds = facts.timeNanoseconds
        manifest.transaction = number
        manifest.comparedAll = facts.comparedAll
        manifest.pauseNanoseconds = facts.pause.nanoseconds
        manifest.drainNanoseconds = facts.diskTimes.drain.nanoseconds
        manifest.cutNanoseconds = facts.diskTimes.cut.nanoseconds
        manifest.omitsDisks = facts.omitsDisks
        // A name is only of use if it is whole.
        if facts.cutName.utf8.count <= Manifest.cutNameByteCountMax {
            manifest.cutName = facts.cutName
        }
        manifest.precopyRounds = UInt32(facts.precopyRounds)
        manifest.lineage = facts.lineage.text
        manifest.label = facts.label?.text ?? ""
        return manifest
    }

    // MARK: - The page map

    /// Chooses base or delta, and returns the frames that the map must contain.
    private func chooseMap(
        _ manifest: inout Manifest, _ parent: Checkpoint?,
        _ draft: borrowing CheckpointDraft.State
    ) throws(RepositoryError) -> FrameSet {
        if let parent {
            let position = parent.manifest.mapPosition + 1
            let chain = try repository.mapChain(
                from: parent, to: MapChain.ancestor(of: position))
            var frames = draft.changed
            frames.formUnion(chain.frames)
            frames = manifest.framesOfItsVolumes(among: frames)
            if frames.count * 2 <= Int(manifest.pageCount) {
                manifest.mapPosition = position
                manifest.mapAncestor = chain.ancestor.digest
                return frames
            }
        }
        manifest.mapPosition = 0
        return draft.map.frames(of: manifest.volumes.map(\.number))
    }

    private func appendMap(
        _ frames: FrameSet, _ draft: inout CheckpointDraft.State,
        while goesOn: @escaping () -> Bool
    ) throws(RepositoryError) -> [MapPlace] {
        var places: [MapPlace] = []
        let compressor = try Compressor.allocate(level: .standard)
        var builder = MapBuilder { (part) throws(RepositoryError) in
            guard goesOn() else { throw CheckpointTransaction.cancelled }
            places.append(
                MapPlace(
                    firstFrame: part.runs[0].range.first,
                    location: try self.append(
                        .mapPart, payload: part.encoded(compressor: compressor))))
        }
        let memory = draft.map.memory
        try frames.forEachRun { (run) throws(RepositoryError) in
            let map = run.volume == .memory ? memory : draft.map[run.volume]
            var number = run.first.rawValue
            while number < run.end.rawValue {
                let frame = PageFrameNumber(number)
                let content = map[frame.inVolume]
                guard case .present(let digest) = content else {
                    let rest = Int(run.end.rawValue - number)
                    let count =
                        content == .zero
                        ? map.zeroCount(from: frame.inVolume, atMost: rest)
                        : map.absentCount(from: frame.inVolume, atMost: rest)
                    try builder.append(
                        PageRange(first: frame, count: count), content == .zero ? .zero : .absent)
                    number += UInt64(count)
                    continue
                }
                number += 1
                let ordinal = draft.stored.ordinal(frame) ?? draft.stored.adopt(digest)
                try builder.append(frame, content, ordinal: ordinal)
            }
        }
        try builder.finish()
        return places
    }

    private func appendState(_ bytes: [UInt8]) throws(RepositoryError) -> [RecordLocation] {
        var locations: [RecordLocation] = []
        var start = 0
        while start < bytes.count {
            let end = min(bytes.count, start + GuestStateCoding.partByteCountMax)
            locations.append(try append(.guestState, payload: Array(bytes[start..<end])))
            start = end
        }
        return locations
    }

    private func append(
        _ type: RecordType, payload: [UInt8]
    ) throws(RepositoryError) -> RecordLocation {
        var record = RecordWriter()
        let range = record.append(type, transaction: number, payload: payload)
        let pending = PendingRecord(range: range, type: type, transaction: number)
        let locations = try record.withUnsafeBytes {
            (bytes) throws(RepositoryError) -> [RecordLocation] in
            try writer.append([pending], of: bytes, epoch: epoch)
        }
        state.withLock { state in
            state.appendedBytes += UInt64(range.count)
            state.packs.insert(locations[0].pack)
        }
        return locations[0]
    }
}

extension VolumeRecord {
    /// Sets root and counts to those of a draft.
    fileprivate mutating func count(in draft: borrowing CheckpointDraft.State) {
        let map = draft.map[number]
        root = map.root()
        frameEnd = map.frameEnd
        pageCount = UInt64(map.pageCount)
        zeroPageCount = UInt64(map.zeroPageCount)
        changedPageCount = UInt64(draft.changed.count(of: number))
    }
}

extension Duration {
    /// Not negative: a provider of disks may measure with a clock that was set back.
    fileprivate var nanoseconds: UInt64 {
        let (seconds, attoseconds) = min(max(self, .zero), .seconds(1_000_000_000)).components
        return UInt64(seconds) * 1_000_000_000 + UInt64(attoseconds / 1_000_000_000)
    }
}
