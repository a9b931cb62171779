import CheckpointFormat
import GuestModel

/// Nodes of one level on their way to the digest kernel, which takes inputs of equal length side by
/// side: most nodes of a map are full, and so equally long.
final class NodeBatch {
    private static let nodeCountMax = 64

    private let buffer = UnsafeMutableRawBufferPointer.allocate(
        byteCount: nodeCountMax * MerkleNode.byteCountMax, alignment: 8)
    private var waiting: [(node: Int, place: Int, byteCount: Int)] = []
    private var inputs: [UnsafeRawPointer?] = []
    private var digests = [PageDigest](repeating: .none, count: nodeCountMax)

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
        waiting.append((node, start, encode(place)))
    }

    /// Digests the nodes, and empties the batch.
    func flush(_ deliver: (_ node: Int, PageDigest) -> Void) {
        // Nodes of equal length go together; their order does not matter.
        waiting.sort { $0.byteCount < $1.byteCount }
        var start = 0
        while start < waiting.count {
            let byteCount = waiting[start].byteCount
            inputs.removeAll(keepingCapacity: true)
            while start + inputs.count < waiting.count,
                waiting[start + inputs.count].byteCount == byteCount
            {
                let place = waiting[start + inputs.count].place
                inputs.append(UnsafeRawPointer(buffer.baseAddress).map { $0 + place })
            }
            digests.withUnsafeMutableBufferPointer { digests in
                inputs.withUnsafeBufferPointer {
                    PageDigest.hash($0, byteCount: byteCount, into: digests)
                }
            }
            for index in inputs.indices { deliver(waiting[start + index].node, digests[index]) }
            start += inputs.count
        }
        waiting.removeAll(keepingCapacity: true)
    }
}
