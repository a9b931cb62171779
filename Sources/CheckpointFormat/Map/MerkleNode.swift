package import GuestModel

// The logical page map is a Merkle tree with fan-out 64 over frame numbers. The BLAKE3 input for
// one node:
//
//   offset size
//        0    4  "VNOD"
//        4    1  level: 0 covers 64 frames, level n covers 64 nodes of level n-1
//        5    3  zero
//        8    8  mask of children with a digest; level 0: frames that exist and are not zero
//       16    8  level 0: mask of frames that exist and are zero; higher levels: 0
//       24 32*n  the digests of the children in the first mask, in order
//
// A node without children is not hashed and stands for "nothing exists here". The root is the
// digest of the lowest node that begins at frame 0 and covers every frame that exists; for a guest
// without frames, of a node of level 0 with two empty masks. A node is at most 2,072 bytes long, so
// it cannot be mistaken for a page.

/// A node of the page map's Merkle tree, as hashed.
package enum MerkleNode {
    /// Number of children of a node.
    package static let fanOut = 64
    /// Size of the fields before the digests in bytes.
    package static let headByteCount = 24
    /// Maximum size of a node in bytes.
    package static let byteCountMax = headByteCount + fanOut * PageDigest.byteCount

    /// Writes the hash input of a node.
    ///
    /// - Parameters:
    ///   - buffer: space for `byteCountMax` bytes.
    ///   - children: the digests of the children, indexed by child number; those whose bit in
    ///     `present` is clear are not read.
    /// - Returns: the number of bytes written.
    package static func encode(
        level: Int, present: UInt64, zero: UInt64, children: UnsafeBufferPointer<PageDigest>,
        into buffer: UnsafeMutableRawBufferPointer
    ) -> Int {
        precondition(present & zero == 0, "a frame is zero or has a digest, not both")
        buffer.storeBytes(of: UInt32(0x444f_4e56).littleEndian, as: UInt32.self)
        buffer.storeBytes(of: UInt32(level).littleEndian, toByteOffset: 4, as: UInt32.self)
        buffer.storeBytes(of: present.littleEndian, toByteOffset: 8, as: UInt64.self)
        buffer.storeBytes(of: zero.littleEndian, toByteOffset: 16, as: UInt64.self)
        var end = headByteCount
        var rest = present
        while rest != 0 {
            // Present children form long runs: in guest memory mostly all 64.
            let first = rest.trailingZeroBitCount
            let count = (~(rest >> UInt64(first))).trailingZeroBitCount
            let run = UnsafeRawBufferPointer(
                UnsafeBufferPointer(rebasing: children[first..<first + count]))
            UnsafeMutableRawBufferPointer(rebasing: buffer[end..<end + run.count])
                .copyMemory(from: run)
            end += run.count
            rest = first + count == 64 ? 0 : rest & (UInt64.max << UInt64(first + count))
        }
        return end
    }

    /// The root of a guest without frames.
    package static let emptyRoot = withUnsafeTemporaryAllocation(
        byteCount: byteCountMax, alignment: 8
    ) { buffer in
        let end = encode(
            level: 0, present: 0, zero: 0, children: UnsafeBufferPointer(start: nil, count: 0),
            into: buffer)
        return PageDigest(hashing: UnsafeRawBufferPointer(rebasing: buffer[..<end]))
    }

    /// Number of levels of a tree over frames below `frameEnd`; at least 1.
    package static func levelCount(frameEnd: UInt64) -> Int {
        var levels = 1
        var covered: UInt64 = 64
        while covered < frameEnd {
            covered <<= 6
            levels += 1
        }
        return levels
    }
}
