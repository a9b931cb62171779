import CheckpointFormat
import CheckpointStore
import Glibc
import PackStore

/// How much of a repository to verify.
public enum VerifyDepth: Hashable, Sendable {
    /// Every byte of every pack.
    case full
    /// Everything but the contents of pages: envelopes, pack indexes, all records except page
    /// groups, manifests, page maps with their roots, states, and that each page has a location.
    case structure
    /// The structure, and the pages of a random sample of blocks: each is read with this
    /// probability, the same ones for the same seed.
    case sample(share: Double, seed: UInt64)

    /// True if the pages of a block are read.
    func includes(_ location: PageLocation) -> Bool {
        switch self {
        case .full: return true
        case .structure: return false
        case .sample(let share, let seed):
            // SplitMix64 over the block's location: pages of one block are all read or all skipped.
            let place = UInt64(location.pack) << 32 | UInt64(location.blockOffset)
            var z = seed &+ place &* 0x9e37_79b9_7f4a_7c15
            z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
            z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
            return Double((z ^ (z >> 31)) >> 11) < share * Double(1 << 53)
        }
    }

    /// The probability of finding at least one of `count` damaged blocks of pages.
    ///
    /// Each block is read independently with probability p, so m of them are all missed with
    /// probability (1 - p)^m.
    public func probabilityOfFinding(damagedBlocks count: Int) -> Double {
        switch self {
        case .full: 1
        case .structure: 0
        case .sample(let share, _): 1 - pow(1 - min(max(share, 0), 1), Double(count))
        }
    }
}

extension VerifyDepth {
    func check() throws(RepositoryError) {
        guard case .sample(let share, _) = self else { return }
        try OptionCheck.check("the share of a sample", share, in: 0...1)
    }
}
