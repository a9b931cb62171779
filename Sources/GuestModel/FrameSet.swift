// Frames as one bit each, in chunks of 32,768 frames (4 KiB). Only chunks with a frame exist, so a
// set costs what it holds, wherever that lies: a disk of 4 TiB of which one block changed costs one
// chunk.

/// A sparse set of frames.
///
/// `DirtyBitmap` is one bit for each frame from 0 up, as hypervisors report it; this is for frames
/// of all volumes of a checkpoint.
package struct FrameSet: Sendable, Equatable {
    private static let wordCount = 512
    private static let none = [UInt64](repeating: 0, count: wordCount)
    private static let all = [UInt64](repeating: .max, count: wordCount)

    /// The numbers of the chunks, ascending.
    private var keys: [UInt64] = []
    private var chunks: [[UInt64]] = []
    /// The position of the chunk that was used last: most calls are for the same one.
    private var last = 0

    /// An empty set.
    package init() {}

    /// The frames of a bitmap.
    package init(_ bitmap: DirtyBitmap) {
        for index in bitmap.words.indices where bitmap.words[index] != 0 {
            insert(wordIndex: index, mask: bitmap.words[index])
        }
    }

    /// The frames of a layout.
    package init(_ layout: GuestLayout) {
        for run in layout.runs { insert(run) }
    }

    /// Number of frames in the set.
    ///
    /// O(chunks).
    package var count: Int {
        chunks.reduce(0) { $1.reduce($0) { $0 + $1.nonzeroBitCount } }
    }

    /// Number of frames in the set from one on, below an end.
    package func count(in range: Range<UInt64>) -> Int {
        var result = 0
        var index = place(range.lowerBound / UInt64(FrameSet.wordCount * 64))
        while index < keys.count {
            let first = keys[index] * UInt64(FrameSet.wordCount * 64)
            guard first < range.upperBound else { break }
            let end = first + UInt64(FrameSet.wordCount * 64)
            if first >= range.lowerBound, end <= range.upperBound {
                result += chunks[index].reduce(0) { $0 + $1.nonzeroBitCount }
            } else {
                for frame in max(first, range.lowerBound)..<min(end, range.upperBound)
                where contains(PageFrameNumber(frame)) { result += 1 }
            }
            index += 1
        }
        return result
    }

    /// True if no frame is in the set.
    package var isEmpty: Bool { chunks.allSatisfy { $0.allSatisfy { $0 == 0 } } }

    /// The position of a chunk, or nil.
    private func position(_ key: UInt64) -> Int? {
        if last < keys.count, keys[last] == key { return last }
        let place = place(key)
        return place < keys.count && keys[place] == key ? place : nil
    }

    /// The position of the first chunk whose number is at least `key`.
    private func place(_ key: UInt64) -> Int {
        var (low, high) = (0, keys.count)
        while low < high {
            let middle = (low + high) / 2
            if keys[middle] < key { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// The position of a chunk, which is created if it does not exist.
    private mutating func demand(_ key: UInt64) -> Int {
        if last < keys.count, keys[last] == key { return last }
        last = place(key)
        if last == keys.count || keys[last] != key {
            keys.insert(key, at: last)
            chunks.insert(FrameSet.none, at: last)
        }
        return last
    }

    /// True if the frame is in the set.
    package func contains(_ frame: PageFrameNumber) -> Bool {
        let word = frame.rawValue / 64
        guard let position = position(word / UInt64(FrameSet.wordCount)) else { return false }
        return chunks[position][Int(word) % FrameSet.wordCount] & 1 << (frame.rawValue % 64) != 0
    }

    /// Adds one frame.
    package mutating func insert(_ frame: PageFrameNumber) {
        insert(wordIndex: Int(frame.rawValue / 64), mask: 1 << (frame.rawValue % 64))
    }

    /// Adds the frames that are set in one word of 64.
    package mutating func insert(wordIndex: Int, mask: UInt64) {
        let position = demand(UInt64(wordIndex / FrameSet.wordCount))
        chunks[position][wordIndex % FrameSet.wordCount] |= mask
    }

    /// Adds a run of frames.
    package mutating func insert(_ range: PageRange) {
        FrameSet.forEachChunk(of: range) { key, part in
            let position = demand(key)
            guard part != 0..<FrameSet.wordCount * 64 else {
                chunks[position] = FrameSet.all
                return
            }
            FrameSet.forEachWord(of: part) { chunks[position][$0] |= $1 }
        }
    }

    /// Removes a run of frames.
    package mutating func remove(_ range: PageRange) {
        guard !keys.isEmpty else { return }
        // Ranges may be far longer than the set.
        let end = range.end.rawValue
        let chunkFrames = UInt64(FrameSet.wordCount * 64)
        var index = place(range.first.rawValue / chunkFrames)
        while index < keys.count, keys[index] * chunkFrames < end {
            let start = keys[index] * chunkFrames
            let part =
                Int(
                    max(start, range.first.rawValue) - start)..<Int(
                    min(start + chunkFrames, end) - start)
            FrameSet.forEachWord(of: part) { chunks[index][$0] &= ~$1 }
            index += 1
        }
    }

    /// Adds all frames of another set.
    package mutating func formUnion(_ other: FrameSet) {
        guard !keys.isEmpty else {
            self = other
            return
        }
        for (key, words) in zip(other.keys, other.chunks) {
            let position = demand(key)
            for index in words.indices { chunks[position][index] |= words[index] }
        }
    }

    /// The frames of both sets.
    package func union(_ other: FrameSet) -> FrameSet {
        var result = self
        result.formUnion(other)
        return result
    }

    /// Removes all frames of another set.
    package mutating func subtract(_ other: FrameSet) {
        for (index, key) in keys.enumerated() {
            guard let position = other.position(key) else { continue }
            for word in chunks[index].indices {
                chunks[index][word] &= ~other.chunks[position][word]
            }
        }
    }

    /// Keeps only frames that are in both sets.
    package mutating func formIntersection(_ other: FrameSet) {
        for (index, key) in keys.enumerated() {
            guard let position = other.position(key) else {
                chunks[index] = FrameSet.none
                continue
            }
            for word in chunks[index].indices {
                chunks[index][word] &= other.chunks[position][word]
            }
        }
        dropEmptyChunks()
    }

    private mutating func dropEmptyChunks() {
        let kept = chunks.indices.filter { index in chunks[index].contains { $0 != 0 } }
        guard kept.count < chunks.count else { return }
        keys = kept.map { keys[$0] }
        chunks = kept.map { chunks[$0] }
        last = 0
    }

    /// The set as ascending runs, each as long as possible.
    package func runs() -> [PageRange] {
        var result: [PageRange] = []
        forEachRun { result.append($0) }
        return result
    }

    /// Calls `body` with each maximal run in ascending order.
    ///
    /// O(chunks + runs).
    package func forEachRun<E: Error>(_ body: (PageRange) throws(E) -> Void) throws(E) {
        var open: Range<UInt64>?
        func add(_ run: Range<UInt64>) throws(E) {
            if let before = open, before.upperBound == run.lowerBound {
                open = before.lowerBound..<run.upperBound
                return
            }
            try close()
            open = run
        }
        func close() throws(E) {
            guard let run = open else { return }
            try body(PageRange(first: PageFrameNumber(run.lowerBound), count: run.count))
            open = nil
        }
        for (key, words) in zip(keys, chunks) {
            for index in words.indices {
                let base = (key * UInt64(FrameSet.wordCount) + UInt64(index)) * 64
                var word = words[index]
                if word == .max {
                    try add(base..<base + 64)
                    continue
                }
                while word != 0 {
                    let first = UInt64(word.trailingZeroBitCount)
                    let count = UInt64((~(word >> first)).trailingZeroBitCount)
                    try add(base + first..<base + first + count)
                    word &= ~(((1 << count) - 1) << first)
                }
            }
        }
        try close()
    }

    /// Two sets are equal if they hold the same frames.
    package static func == (left: FrameSet, right: FrameSet) -> Bool {
        var (left, right) = (left, right)
        left.dropEmptyChunks()
        right.dropEmptyChunks()
        return left.keys == right.keys && left.chunks == right.chunks
    }

    /// Calls `body` with each chunk that a run overlaps, and the overlap within the chunk.
    private static func forEachChunk(of range: PageRange, _ body: (UInt64, Range<Int>) -> Void) {
        let chunkFrames = UInt64(wordCount * 64)
        var frame = range.first.rawValue
        while frame < range.end.rawValue {
            let key = frame / chunkFrames
            let end = min(range.end.rawValue, (key + 1) * chunkFrames)
            body(key, Int(frame % chunkFrames)..<Int(end - key * chunkFrames))
            frame = end
        }
    }

    /// Calls `body` with each word of a chunk that frames of it overlap, and the bits of that.
    private static func forEachWord(of part: Range<Int>, _ body: (Int, UInt64) -> Void) {
        guard !part.isEmpty else { return }
        let run = PageRange(first: PageFrameNumber(UInt64(part.lowerBound)), count: part.count)
        DirtyBitmap.forEachWord(of: run, body)
    }
}
