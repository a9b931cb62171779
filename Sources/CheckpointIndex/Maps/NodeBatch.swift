import CheckpointFormat
import GuestModel

/// Collects nodes of one level for the digest kernel, which hashes inputs of equal length in
/// parallel: most nodes of a map are full, and so of equal length.
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

    /// True if it must be flushed before another node is added.
    var isFull: Bool { waiting.count == NodeBatch.nodeCountMax }

    /// Adds a node; `encode` writes the hash input and returns its length.
    func append(_ node: Int, encode: (UnsafeMutableRawBufferPointer) -> Int) {
        precondition(!isFull, "a full batch must be flushed first")
        let start = waiting.count * MerkleNode.byteCountMax
        let place = UnsafeMutableRawBufferPointer(
            rebasing: buffer[start..<start + MerkleNode.byteCountMax])
        waiting.append((node, start, encode(place)))
    }

    /// Hashes the nodes, and empties the batch.
    func flush(_ deliver: (_ node: Int, PageDigest) -> Void) {
        // Nodes of equal length are hashed together; their order does not matter.
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
