import CheckpointFormat

/// What a prune may leave.
public struct PruneOptions: Hashable, Sendable {
    /// Unused bytes that may stay in sealed packs, in percent of all packs' bytes: 0 to 100.
    ///
    /// Rewriting a pack copies what stays of it: to free the last bytes costs most. A pack of which
    /// less than 4 KiB would be freed stays as it is, also with 0.
    public var unusedPercentMax: Double

    /// Bytes that must be freed for a pack to be rewritten.
    package var rewriteByteCountMin = 4 << 10

    /// Makes options.
    public init(unusedPercentMax: Double = 5) {
        self.unusedPercentMax = unusedPercentMax
    }
}

/// What a prune will do, pack by pack; nothing is done yet.
public struct PrunePlan: Sendable {
    /// What becomes of a sealed pack.
    public enum Fate: Hashable, Sendable {
        /// It stays as it is.
        case kept
        /// What is needed of it is written anew, in its place.
        case rewritten
        /// Nothing of it is needed.
        case removed
    }

    /// A sealed pack.
    public struct Pack: Hashable, Sendable {
        /// Its number.
        public let number: UInt32
        /// What becomes of it.
        public let fate: Fate
        /// Its bytes now.
        public let byteCount: Int
        /// Bytes in it that nobody needs.
        public let unusedByteCount: Int

        /// Its bytes afterwards.
        public var byteCountAfter: Int {
            fate == .kept ? byteCount : byteCount - unusedByteCount
        }
    }

    /// The sealed packs, ascending.
    ///
    /// The open pack is not among them, unless what is to be done is worth sealing it
    /// (`Repository.planPrune`). Of packs in which nothing was
    /// forgotten since they were sealed, the few bytes of records that say nothing any more are not
    /// counted as unused.
    public let packs: [Pack]
    /// Bytes of all packs, the open one's too.
    public let byteCount: Int
    /// Different pages that the index will lose.
    public let deadPageCount: Int
    let preparation: PrunePreparation

    /// Decides what becomes of each pack; looks at those that change and were not looked at.
    init(_ preparation: PrunePreparation) throws {
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

    /// Removes packs of which nothing is needed, and writes the sparsest others anew until little
    /// enough is unused.
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

    /// Bytes in sealed packs that nobody would need if no reader of a forgotten checkpoint held a
    /// lease, and no session went on from one: a prune after they have ended frees these too.
    public var leasedByteCount: Int { preparation.leasedByteCount }

    /// Bytes in sealed packs that nobody needs; without those that are held.
    public var unusedByteCount: Int { packs.reduce(0) { $0 + $1.unusedByteCount } }

    /// About how many bytes of the open pack are unused, if it is not among `packs`: the shares of
    /// the pages that died in it.
    ///
    /// They can be freed when it is sealed.
    public var openUnusedByteCount: Int { preparation.openUnusedByteCount }

    /// Bytes that the packs will have less.
    public var freedByteCount: Int { packs.reduce(0) { $0 + $1.byteCount - $1.byteCountAfter } }

    /// Bytes that will be written for it.
    public var copiedByteCount: Int {
        packs.reduce(0) { $0 + ($1.fate == .rewritten ? $1.byteCountAfter : 0) }
    }

    /// True if there is nothing to do.
    public var isEmpty: Bool { packs.allSatisfy { $0.fate == .kept } }
}
