import CheckpointFormat
import GuestModel
import PackStore
import Synchronization

/// The findings of a verification so far; thread-safe.
final class VerifyFindings: Sendable {
    private struct Place: Hashable {
        let file: String
        let offset: UInt64
        let object: String
    }

    private struct State: Sendable {
        var findings: [VerifyFinding] = []
        /// Where damaged records end, so that damage to their pages is known to be the same.
        var ends: [Int: UInt64] = [:]
        var places: [Place: Int] = [:]
        /// The damaged places of each page.
        var digests: [PageDigest: Set<Int>] = [:]
        var affected: [CheckpointID: Set<Int>] = [:]

        /// The index of a finding; each place is reported once.
        mutating func position(_ corruption: Corruption) -> Int {
            let place = Place(
                file: corruption.file, offset: corruption.offset, object: corruption.object)
            if let known = places[place] { return known }
            places[place] = findings.count
            findings.append(VerifyFinding(corruption: corruption))
            return findings.count - 1
        }
    }

    private let state = Mutex(State())

    /// Records a damaged record or file.
    ///
    /// - Parameter end: where the record ends.
    func note(_ corruption: Corruption, end: UInt64? = nil) {
        state.withLock { state in
            let position = state.position(corruption)
            if let end { state.ends[position] = end }
        }
    }

    /// Records what made a checkpoint unreadable.
    func note(_ corruption: Corruption, for checkpoint: CheckpointID) {
        state.withLock { state in
            // The record may have been reported when its pack was read, under another name.
            let known = state.findings.firstIndex {
                $0.corruption.file == corruption.file && $0.corruption.offset == corruption.offset
            }
            let position = known ?? state.position(corruption)
            state.affected[checkpoint, default: []].insert(position)
        }
    }

    /// Records a damaged page.
    func note(_ corruption: Corruption, _ digest: PageDigest, storedBy checkpoint: CheckpointID) {
        var named = corruption
        named.checkpoint = checkpoint
        state.withLock { [named] state in
            let position = state.position(named)
            state.digests[digest, default: []].insert(position)
        }
    }

    /// True if nothing was found yet.
    var isEmpty: Bool { state.withLock { $0.findings.isEmpty } }

    /// Pages that are unavailable.
    var damagedDigests: Set<PageDigest> { state.withLock { Set($0.digests.keys) } }

    /// Records that a checkpoint contains damaged pages.
    func note(_ digests: Set<PageDigest>, heldBy checkpoint: CheckpointID) {
        state.withLock { state in
            for digest in digests {
                state.affected[checkpoint, default: []].formUnion(state.digests[digest] ?? [])
            }
        }
    }

    /// All findings; checkpoints in order of publication.
    func result(
        _ catalog: [CheckpointID]
    ) -> (findings: [VerifyFinding], affected: [CheckpointID]) {
        state.withLock { state in
            var findings = state.findings
            var affected: [CheckpointID] = []
            for id in catalog {
                guard var positions = state.affected[id] else { continue }
                affected.append(id)
                // Damage within a damaged record: both list the checkpoint.
                for (outer, end) in state.ends {
                    let record = findings[outer].corruption
                    let isHit = positions.contains { position in
                        let inner = findings[position].corruption
                        return inner.file == record.file && inner.offset >= record.offset
                            && inner.offset < end
                    }
                    if isHit { positions.insert(outer) }
                }
                for position in positions {
                    findings[position].affectedCheckpoints.append(id)
                }
            }
            return (findings, affected)
        }
    }
}
