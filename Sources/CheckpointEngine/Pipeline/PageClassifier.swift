import CPageKernels
import CheckpointFormat
import GuestModel

/// Determines the contents of pages: zero, or a digest.
///
/// Its buffers are reused.
struct PageClassifier {
    private var zeroFlags = [UInt8](repeating: 0, count: StagingPool.slotPageCount)
    private var digests: [PageDigest] = []
    /// The contents of the pages appended since `removeAll`, in order.
    private(set) var contents: [PageContent] = []
    /// The content of a page that is zero.
    var zero = PageContent.zero

    /// Removes all pages, and keeps the buffers.
    mutating func removeAll() {
        contents.removeAll(keepingCapacity: true)
    }

    /// Replaces `contents` by those of the pages; at most 256 pages.
    mutating func classify(_ pages: UnsafeRawBufferPointer) {
        removeAll()
        append(pages)
    }

    /// Appends the contents of pages to `contents`; at most 256 pages a call.
    mutating func append(_ pages: UnsafeRawBufferPointer) {
        let count = pages.count / Page.byteCount
        precondition(count <= StagingPool.slotPageCount, "a batch has at most 256 pages")
        ckernels_zero_pages(pages.baseAddress, count, &zeroFlags)
        digests.removeAll(keepingCapacity: true)
        digests.append(contentsOf: repeatElement(.none, count: count))
        withUnsafeTemporaryAllocation(of: UnsafeRawPointer?.self, capacity: count) { inputs in
            var inputCount = 0
            for position in 0..<count where zeroFlags[position] == 0 {
                inputs[inputCount] = pages.baseAddress.map { $0 + position * Page.byteCount }
                inputCount += 1
            }
            digests.withUnsafeMutableBufferPointer {
                PageDigest.hash(
                    UnsafeBufferPointer(rebasing: inputs[..<inputCount]),
                    byteCount: Page.byteCount, into: $0)
            }
        }
        var next = 0
        for position in 0..<count {
            if zeroFlags[position] != 0 {
                contents.append(zero)
            } else {
                contents.append(.present(digests[next]))
                next += 1
            }
        }
    }
}
