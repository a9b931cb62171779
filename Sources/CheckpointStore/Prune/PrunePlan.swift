import CheckpointFormat
import LMDBTables

/// What a prune may leave unused.
public struct PruneOptions: Hashable, Sendable {
    /// Unused bytes that may remain in sealed packs, in percent of the size of all packs: 0 to 100.
    ///
    /// Rewriting a pack copies what is kept of it: the last bytes are the most expensive to free. A
    /// pack of which less than 4 KiB would be freed is kept as it is, even with 0.
    public var unusedPercentMax: Double

    /// Minimum number of bytes freed for a pack to be rewritten.
    package var rewriteByteCountMin = 4 << 10

    /// Creates options.
    public init(unusedPercentMax: Double = 5) {
        self.unusedPercentMax = unusedPercentMax
    }
}

/// What a prune will do, pack by pack; planning changes nothing.
public struct PrunePlan: Sendable {
    /// What happens to a sealed pack.
    public enum Fate: Hashable, Sendable {
        /// It is kept as it is.
        case kept
        /// It is replaced by a copy with only what is needed.
        case rewritten
        /// Nothing of it is needed.
        case removed
    }

    /// A sealed pack.
    public struct Pack: Hashable, Sendable {
        /// Its number.
        public let number: UInt32
        /// What happens to it.
        public let fate: Fate
        /// Its current size in bytes.
        public let byteCount: Int
        /// Number of unneeded bytes in it.
        public let unusedByteCount: Int

        /// Its size afterwards in bytes.
        public var byteCountAfter: Int {
            fate == .kept ? byteCount : byteCount - unusedByteCount
        }
    }

    /// The sealed packs, ascending.
    ///
    /// The open pack is included only if the planned changes are worth sealing it
    /// (`Repository.planPrune`). In packs in which nothing was forgotten since they were sealed,
    /// the few bytes of obsolete records are not counted as unused.
    public let packs: [Pack]
    /// Size of all packs in bytes, including the open one.
    public let byteCount: Int
    /// Number of distinct pages that the index will lose.
    public let deadPageCount: Int
    let preparation: PrunePreparation

    /// Decides what happens to each pack; examines those that change and were not examined yet.
    init(_ preparation: PrunePreparation) throws(IndexError) {
        var preparation = preparation
        byteCount = preparation.assessment.byteCount
        deadPageCount = preparation.survey.dead.count
        while true {
            let packs = PrunePlan.choose(
                preparation.assessment.packs, byteCount, preparation.options,
                openUnusedByteCount: preparation.countsOpenPack
                    ? preparation.openUnusedByteCount : 0)
            let unknown = packs.filter {
                $0.fate != .kept && !preparation.assessment.wasAssessed($0.number)
            }
            if unknown.isEmpty {
                self.packs = packs
                break
            }
            try preparation.assessment.assess(
                Set(unknown.map(\.number)), of: preparation.repository)
        }
        self.preparation = preparation
    }

    /// Removes packs of which nothing is needed, and rewrites the sparsest others until few enough
    /// bytes are unused.
    private static func choose(
        _ packs: [PruneAssessment.Pack], _ byteCount: Int, _ options: PruneOptions,
        openUnusedByteCount: Int
    ) -> [Pack] {
        let partly = packs.filter { $0.cutByteCount > 0 }
        let removedBytes = packs.reduce(0) { $0 + ($1.cutByteCount == 0 ? $1.byteCount : 0) }
        var unused = partly.reduce(openUnusedByteCount) { $0 + $1.unusedByteCount }
        var total = byteCount - removedBytes
        var rewritten: Set<UInt32> = []
        let sparsest = partly.sorted {
            let (left, right) = (
                $0.unusedByteCount * $1.byteCount, $1.unusedByteCount * $0.byteCount
            )
            return left == right ? $0.number < $1.number : left > right
        }
        for pack in sparsest where pack.unusedByteCount >= options.rewriteByteCountMin {
            if Double(unused) * 100 <= options.unusedPercentMax * Double(total) { break }
            rewritten.insert(pack.number)
            unused -= pack.unusedByteCount
            total -= pack.unusedByteCount
        }
        return packs.map { pack in
            let fate: Fate =
                pack.cutByteCount == 0
                ? .removed : rewritten.contains(pack.number) ? .rewritten : .kept
            return Pack(
                number: pack.number, fate: fate, byteCount: pack.byteCount,
                unusedByteCount: pack.unusedByteCount)
        }
    }

    /// Bytes in sealed packs that are needed only because of leases of readers and sessions on
    /// forgotten checkpoints: a prune after these have ended frees them too.
    public var leasedByteCount: Int { preparation.leasedByteCount }

    /// Unneeded bytes in sealed packs, without those that are leased.
    public var unusedByteCount: Int { packs.reduce(0) { $0 + $1.unusedByteCount } }

    /// Approximate number of unused bytes in the open pack, if it is not in `packs`: the shares of
    /// its pages that became garbage.
    ///
    /// They can be freed once it is sealed.
    public var openUnusedByteCount: Int { preparation.openUnusedByteCount }

    /// Number of bytes by which the packs will shrink.
    public var freedByteCount: Int { packs.reduce(0) { $0 + $1.byteCount - $1.byteCountAfter } }

    /// Number of bytes that will be written.
    public var copiedByteCount: Int {
        packs.reduce(0) { $0 + ($1.fate == .rewritten ? $1.byteCountAfter : 0) }
    }

    /// True if there is nothing to do.
    public var isEmpty: Bool { packs.allSatisfy { $0.fate == .kept } }
}
