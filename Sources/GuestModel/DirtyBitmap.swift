/// A set of frames as one bit a frame, from frame 0 up.
///
/// 32 KiB for each GiB of guest. Bit `n` of word `n / 64` is frame `n`, least significant first:
/// the order of Xen's `XEN_DOMCTL_SHADOW_OP_CLEAN` and of KVM's `KVM_GET_DIRTY_LOG`.
public struct DirtyBitmap: Sendable, Equatable {
    /// The bits, 64 frames a word, least significant bit first.
    public private(set) var words: [UInt64]

    /// An empty set, with room for frames below `frameEnd`.
    ///
    /// It grows by itself when needed.
    public init(frameEnd: UInt64 = 0) {
        words = [UInt64](repeating: 0, count: Int((frameEnd + 63) / 64))
    }

    /// A set of all frames of a layout.
    public init(_ layout: GuestLayout) {
        self.init(frameEnd: layout.frameEnd)
        for run in layout.runs { insert(run) }
    }

    /// How many frames are in the set.
    ///
    /// O(words).
    public var count: Int { words.reduce(0) { $0 + $1.nonzeroBitCount } }

    /// True if no frame is in the set.
    ///
    /// O(words).
    public var isEmpty: Bool { words.allSatisfy { $0 == 0 } }

    /// True if the frame is in the set.
    public func contains(_ frame: PageFrameNumber) -> Bool {
        let word = Int(frame.rawValue / 64)
        return word < words.count && words[word] & (1 << (frame.rawValue % 64)) != 0
    }

    /// Adds one frame.
    public mutating func insert(_ frame: PageFrameNumber) {
        reserve(wordCount: Int(frame.rawValue / 64) + 1)
        words[Int(frame.rawValue / 64)] |= 1 << (frame.rawValue % 64)
    }

    /// Adds a run of frames.
    ///
    /// O(words touched).
    public mutating func insert(_ range: PageRange) {
        reserve(wordCount: Int((range.end.rawValue + 63) / 64))
        DirtyBitmap.forEachWord(of: range) { index, mask in words[index] |= mask }
    }

    /// Adds the frames that are set in one word of 64.
    package mutating func insert(wordIndex: Int, mask: UInt64) {
        reserve(wordCount: wordIndex + 1)
        words[wordIndex] |= mask
    }

    /// Removes a run of frames.
    ///
    /// O(words touched).
    public mutating func remove(_ range: PageRange) {
        DirtyBitmap.forEachWord(of: range) { index, mask in
            if index < words.count { words[index] &= ~mask }
        }
    }

    /// Adds all frames of another set.
    ///
    /// O(words).
    public mutating func formUnion(_ other: DirtyBitmap) {
        reserve(wordCount: other.words.count)
        for index in other.words.indices { words[index] |= other.words[index] }
    }

    /// The frames of both sets.
    public func union(_ other: DirtyBitmap) -> DirtyBitmap {
        var result = self
        result.formUnion(other)
        return result
    }

    /// Adds the frames whose bits are set in raw words, the first of which is word
    /// `firstWord` of the set: merges a bitmap that was read from a hypervisor.
    public mutating func formUnion(words other: Span<UInt64>, firstWord: Int = 0) {
        reserve(wordCount: firstWord + other.count)
        for index in other.indices { words[firstWord + index] |= other[index] }
    }

    /// Removes all frames of another set.
    ///
    /// O(words).
    public mutating func subtract(_ other: DirtyBitmap) {
        for index in 0..<min(words.count, other.words.count) {
            words[index] &= ~other.words[index]
        }
    }

    /// Keeps only frames that are in both sets.
    ///
    /// O(words).
    public mutating func formIntersection(_ other: DirtyBitmap) {
        for index in words.indices {
            words[index] &= index < other.words.count ? other.words[index] : 0
        }
    }

    /// Empties the set and keeps its storage.
    public mutating func removeAll() {
        for index in words.indices { words[index] = 0 }
    }

    /// The set as ascending runs, each as long as possible but at most `limit` frames.
    public func runs(limit: Int = .max) -> [PageRange] {
        var result: [PageRange] = []
        forEachRun(limit: limit) { result.append($0) }
        return result
    }

    /// Calls `body` with each maximal run in ascending order, split at `limit` frames.
    ///
    /// O(words + runs).
    public func forEachRun(limit: Int = .max, _ body: (PageRange) -> Void) {
        precondition(limit > 0, "a run holds at least one frame")
        var start: UInt64?
        func flush(to end: UInt64) {
            guard var first = start else { return }
            while first < end {
                let count = min(end - first, UInt64(limit))
                body(PageRange(first: PageFrameNumber(first), count: Int(count)))
                first += count
            }
            start = nil
        }
        for index in words.indices {
            let base = UInt64(index) * 64
            var word = words[index]
            if word == .max {
                if start == nil { start = base }
                continue
            }
            if word & 1 == 0 { flush(to: base) }
            var position: UInt64 = 0
            while word != 0 {
                let zeros = UInt64(word.trailingZeroBitCount)
                position += zeros
                word >>= zeros
                let ones = UInt64((~word).trailingZeroBitCount)
                if start == nil { start = base + position }
                position += ones
                word = ones == 64 ? 0 : word >> ones
                if position < 64 { flush(to: base + position) }
            }
        }
        flush(to: UInt64(words.count) * 64)
    }

    /// Two sets are equal if they hold the same frames, whatever their capacity.
    public static func == (left: DirtyBitmap, right: DirtyBitmap) -> Bool {
        let shared = min(left.words.count, right.words.count)
        return left.words[..<shared] == right.words[..<shared]
            && left.words[shared...].allSatisfy { $0 == 0 }
            && right.words[shared...].allSatisfy { $0 == 0 }
    }

    /// Makes room for frames below an end, so that inserting them allocates nothing.
    public mutating func reserveCapacity(frameEnd: UInt64) {
        reserve(wordCount: Int((frameEnd + 63) / 64))
    }

    private mutating func reserve(wordCount: Int) {
        if wordCount > words.count {
            words.append(contentsOf: repeatElement(0, count: wordCount - words.count))
        }
    }

    /// Calls `body` with each word that a run of frames overlaps, and the bits of that overlap.
    package static func forEachWord(of range: PageRange, _ body: (Int, UInt64) -> Void) {
        var frame = range.first.rawValue
        while frame < range.end.rawValue {
            let bit = frame % 64
            let count = min(64 - bit, range.end.rawValue - frame)
            let mask = (count == 64 ? UInt64.max : (1 << count) - 1) << bit
            body(Int(frame / 64), mask)
            frame += count
        }
    }
}
