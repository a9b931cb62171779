import CPageKernels
public import GuestModel

/// The page kernels, one at a time.
public enum Kernels {
    /// The implementations of the digest that this processor supports.
    public static var paths: [String] {
        let chosen = path
        defer { select(chosen) }
        return ["portable", "sse41", "neon", "avx2", "avx512"].filter { select($0) }
    }

    /// The digest's implementation in use.
    public static var path: String { String(cString: ckernels_path()) }

    /// Forces an implementation; false if there is none of that name here.
    @discardableResult
    public static func select(_ path: String) -> Bool { ckernels_select(path) }

    /// The digest of any bytes.
    public static func digest(_ bytes: UnsafeRawBufferPointer) -> PageDigest {
        var digest = [UInt8](repeating: 0, count: PageDigest.byteCount)
        ckernels_blake3(bytes.baseAddress, bytes.count, &digest)
        return PageDigest(bytes: digest)
    }

    /// The digest of each page, 256 at a time.
    public static func digestPages(
        _ pages: UnsafeRawBufferPointer, into digests: UnsafeMutableBufferPointer<PageDigest>
    ) {
        guard let base = pages.baseAddress, let room = digests.baseAddress else { return }
        let count = pages.count / Page.byteCount
        precondition(digests.count >= count, "room for every digest")
        let inputs = (0..<count).map { Optional(base + $0 * Page.byteCount) }
        inputs.withUnsafeBufferPointer { inputs in
            for first in stride(from: 0, to: count, by: 256) {
                let bytes = UnsafeMutableRawPointer(room + first)
                ckernels_blake3_many(
                    inputs.baseAddress.map { $0 + first }, Page.byteCount,
                    min(256, count - first), bytes.assumingMemoryBound(to: UInt8.self))
            }
        }
    }

    /// Copies bytes past the caches, as many as `target` has.
    public static func streamCopy(
        _ source: UnsafeRawBufferPointer, to target: UnsafeMutableRawBufferPointer
    ) {
        precondition(source.count >= target.count, "bytes for all of the target")
        ckernels_stream_copy(target.baseAddress, source.baseAddress, target.count)
    }

    /// Copies scattered pages past the caches, 32 at a time, one after another in the target.
    public static func streamCopy(
        pages: [Int], of source: UnsafeRawBufferPointer, to target: UnsafeMutableRawBufferPointer
    ) {
        guard let from = source.baseAddress, var to = target.baseAddress else { return }
        precondition(target.count >= pages.count * Page.byteCount, "room for every page")
        var pieces = [ckernels_piece](repeating: ckernels_piece(), count: 32)
        for first in stride(from: 0, to: pages.count, by: pieces.count) {
            let count = min(pieces.count, pages.count - first)
            for index in 0..<count {
                pieces[index] = ckernels_piece(
                    from: from + pages[first + index] * Page.byteCount, length: Page.byteCount)
            }
            ckernels_stream_copy_pieces(to, pieces, count)
            to += count * Page.byteCount
        }
    }

    /// The number of pages that are all zero.
    public static func zeroPageCount(_ pages: UnsafeRawBufferPointer) -> Int {
        var flags = [UInt8](repeating: 0, count: pages.count / Page.byteCount)
        ckernels_zero_pages(pages.baseAddress, flags.count, &flags)
        return flags.reduce(0) { $0 + Int($1) }
    }
}
