/// BLAKE3-256 as in the paper: one word at a time, the tree by recursion.
enum ReferenceBLAKE3 {
    private static let initial: [UInt32] = [
        0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab,
        0x5be0_cd19,
    ]
    private static let permutation = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]

    /// The digest.
    static func hash(_ bytes: [UInt8]) -> [UInt8] {
        let words = subtree(bytes[...], 0, isRoot: true)
        return words.flatMap { word in (0..<4).map { UInt8(word >> ($0 * 8) & 0xff) } }
    }

    private static func subtree(
        _ bytes: ArraySlice<UInt8>, _ firstChunk: UInt64, isRoot: Bool
    ) -> [UInt32] {
        if bytes.count <= 1024 { return chunk(bytes, firstChunk, isRoot: isRoot) }
        // The left subtree is the largest power of two of chunks that leaves a remainder.
        var left = 1024
        while left * 2 < bytes.count { left *= 2 }
        let middle = bytes.startIndex + left
        let words =
            subtree(bytes[..<middle], firstChunk, isRoot: false)
            + subtree(bytes[middle...], firstChunk + UInt64(left / 1024), isRoot: false)
        return compress(initial, words, 0, 64, 4 | (isRoot ? 8 : 0))
    }

    private static func chunk(
        _ bytes: ArraySlice<UInt8>, _ counter: UInt64, isRoot: Bool
    ) -> [UInt32] {
        var value = initial
        var start = bytes.startIndex
        var flags: UInt32 = 1
        repeat {
            let end = min(start + 64, bytes.endIndex)
            if end == bytes.endIndex { flags |= 2 | (isRoot ? 8 : 0) }
            let block = Array(bytes[start..<end])
            let padded = block + [UInt8](repeating: 0, count: 64 - block.count)
            let words = (0..<16).map { index in
                (0..<4).reduce(UInt32(0)) { $0 | UInt32(padded[index * 4 + $1]) << ($1 * 8) }
            }
            value = compress(value, words, counter, UInt32(block.count), flags)
            flags = 0
            start = end
        } while start < bytes.endIndex
        return value
    }

    private static func compress(
        _ value: [UInt32], _ block: [UInt32], _ counter: UInt64, _ length: UInt32,
        _ flags: UInt32
    ) -> [UInt32] {
        var state =
            value + initial[..<4] + [
                UInt32(truncatingIfNeeded: counter), UInt32(truncatingIfNeeded: counter >> 32),
                length, flags,
            ]
        var words = block
        func rotate(_ word: UInt32, _ bits: UInt32) -> UInt32 { word >> bits | word << (32 - bits) }
        func mix(_ a: Int, _ b: Int, _ c: Int, _ d: Int, _ x: UInt32, _ y: UInt32) {
            state[a] = state[a] &+ state[b] &+ x
            state[d] = rotate(state[d] ^ state[a], 16)
            state[c] = state[c] &+ state[d]
            state[b] = rotate(state[b] ^ state[c], 12)
            state[a] = state[a] &+ state[b] &+ y
            state[d] = rotate(state[d] ^ state[a], 8)
            state[c] = state[c] &+ state[d]
            state[b] = rotate(state[b] ^ state[c], 7)
        }
        for _ in 0..<7 {
            for column in 0..<4 {
                mix(
                    column, column + 4, column + 8, column + 12, words[2 * column],
                    words[2 * column + 1])
            }
            for diagonal in 0..<4 {
                mix(
                    diagonal, (diagonal + 1) % 4 + 4, (diagonal + 2) % 4 + 8,
                    (diagonal + 3) % 4 + 12, words[8 + 2 * diagonal], words[9 + 2 * diagonal])
            }
            words = permutation.map { words[$0] }
        }
        return (0..<8).map { state[$0] ^ state[$0 + 8] }
    }
}
