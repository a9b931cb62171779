import CPageKernels
public import GuestModel

/// The page kernels, one at a time.
public enum Kernels {
    /// The paths of the digest that this processor can take.
    public static var paths: [String] {
        let chosen = path
        defer { select(chosen) }
        return ["portable", "sse41", "neon", "avx2", "avx512"].filter { select($0) }
    }

    /// The digest's path in use.
    public static var path: String { String(cString: ckernels_path()) }

    /// Forces a path; false if there is none of that name here.
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

    /// How many of the pages are all zero.
    public static func zeroPageCount(_ pages: UnsafeRawBufferPointer) -> Int {
        var flags = [UInt8](repeating: 0, count: pages.count / Page.byteCount)
        ckernels_zero_pages(pages.baseAddress, flags.count, &flags)
        return flags.reduce(0) { $0 + Int($1) }
    }
}
