import CheckpointFormat
import GuestModel

/// Nodes of one level on their way to the digest kernel, which takes inputs of equal length side by
/// side: most nodes of a map are full, and so equally long.
final class NodeBatch {
    private static let nodeCountMax = 64

    private let buffer = UnsafeMutableRawBufferPointer.allocate(
        byteCount: nodeCountMax * MerkleNode.byteCountMax, alignment: 8)
    private var waiting: [(node: Int, byteCount: Int)] = []

    deinit {
        buffer.deallocate()
    }

    /// True if it must be flushed before the next node.
    var isFull: Bool { waiting.count == NodeBatch.nodeCountMax }

    /// Adds a node; `encode` writes what is hashed and returns its length.
    func append(_ node: Int, encode: (UnsafeMutableRawBufferPointer) -> Int) {
        precondition(!isFull, "the batch is flushed when it is full")
        let start = waiting.count * MerkleNode.byteCountMax
        let place = UnsafeMutableRawBufferPointer(
            rebasing: buffer[start..<start + MerkleNode.byteCountMax])
        waiting.append((node, encode(place)))
    }

    /// Digests the nodes, and empties the batch.
    func flush(_ deliver: (_ node: Int, PageDigest) -> Void) {
        for byteCount in Set(waiting.map(\.byteCount)) {
            let members = waiting.indices.filter { waiting[$0].byteCount == byteCount }
            let inputs = members.map { index in
                UnsafeRawPointer(buffer.baseAddress).map { $0 + index * MerkleNode.byteCountMax }
            }
            var digests = [PageDigest](repeating: .none, count: members.count)
            digests.withUnsafeMutableBufferPointer { digests in
                inputs.withUnsafeBufferPointer {
                    PageDigest.hash($0, byteCount: byteCount, into: digests)
                }
            }
            for (index, digest) in zip(members, digests) { deliver(waiting[index].node, digest) }
        }
        waiting.removeAll(keepingCapacity: true)
    }
}
