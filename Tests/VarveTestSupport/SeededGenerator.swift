import Glibc

/// Random numbers that are repeatable by seed.
///
/// SplitMix64: G. Steele et al., OOPSLA 2014.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64

    /// Starts from a seed.
    public init(seed: UInt64) {
        state = seed
    }

    /// The next number.
    public mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

/// The seed of this run of the tests: VARVE_SEED, or a new one, printed once.
public enum TestSeed {
    /// The seed.
    public static let value: UInt64 = {
        if let text = getenv("VARVE_SEED"), let seed = UInt64(String(cString: text)) { return seed }
        let seed = UInt64.random(in: 1...999_999_999)
        print("seed of this run: \(seed) (repeat it with VARVE_SEED=\(seed))")
        return seed
    }()

    /// True for the long form of the tests: VARVE_LONG=1.
    public static let isLong = getenv("VARVE_LONG") != nil

    /// A generator for one case of the run.
    public static func generator(_ salt: UInt64) -> SeededGenerator {
        SeededGenerator(seed: value &+ salt &* 0x1_0000_0001)
    }
}
