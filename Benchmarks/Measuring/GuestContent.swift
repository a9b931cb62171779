import Foundation
import Glibc

/// A guest's memory: pages of the images in `Settings.images`, without the zero ones.
///
/// Without images, pages that are half random and half one byte, which zstd compresses to half.
public struct GuestContent {
    private static let pageByteCount = 4096

    /// The origin of the pages, in words.
    public static var source: String {
        Settings.images.isEmpty
            ? "made: half of each page random, half one byte" : "images of a real Linux guest"
    }

    /// Fills memory with distinct pages: each is stamped with its number.
    public static func fill(_ bytes: UnsafeMutableRawBufferPointer) throws {
        guard let base = bytes.baseAddress else { return }
        let pageCount = bytes.count / pageByteCount
        var page = 0
        while page < pageCount {
            let before = page
            for path in Settings.images {
                try forEachPage(of: path) { source in
                    guard page < pageCount else { return false }
                    memcpy(base + page * pageByteCount, source, pageByteCount)
                    stamp(bytes, page, UInt64(page))
                    page += 1
                    return true
                }
            }
            if page > before { continue }
            var random = UInt64(88_172_645_463_325_252)
            for number in 0..<pageCount {
                for offset in stride(from: 0, to: pageByteCount / 2, by: 8) {
                    random = next(random)
                    bytes.storeBytes(
                        of: random, toByteOffset: number * pageByteCount + offset, as: UInt64.self)
                }
                memset(base + number * pageByteCount + 2048, Int32(number & 0xff), 2048)
            }
            page = pageCount
        }
    }

    /// Fills memory by repeating the same 16,384 distinct pages, so that its repository is small
    /// and is created quickly.
    public static func fillRepeating(_ bytes: UnsafeMutableRawBufferPointer) throws {
        let part = min(bytes.count, 16_384 * pageByteCount)
        try fill(UnsafeMutableRawBufferPointer(rebasing: bytes[..<part]))
        for offset in stride(from: part, to: bytes.count, by: part) {
            let count = min(part, bytes.count - offset)
            UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + count]).copyMemory(
                from: UnsafeRawBufferPointer(rebasing: bytes[..<count]))
        }
    }

    /// Makes a page different from its previous contents and from every other page.
    ///
    /// Writes 8 bytes.
    public static func stamp(
        _ bytes: UnsafeMutableRawBufferPointer, _ page: Int, _ number: UInt64
    ) {
        // A bijection, so that no two numbers give equal bytes; they are spread as in real data.
        bytes.storeBytes(
            of: (number &+ 1) &* 0x9e37_79b9_7f4a_7c15,
            toByteOffset: page * pageByteCount + 1024, as: UInt64.self)
    }

    private static func next(_ random: UInt64) -> UInt64 {
        random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    }

    /// Calls `body` with each page that is not zero, until it returns false.
    private static func forEachPage(
        of path: String, _ body: (UnsafeRawPointer) -> Bool
    ) throws {
        let file = open(path, O_RDONLY)
        guard file >= 0 else { throw CocoaError(.fileReadNoSuchFile) }
        defer { close(file) }
        let chunk = UnsafeMutableRawPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        let zeros = UnsafeMutableRawPointer.allocate(byteCount: pageByteCount, alignment: 4096)
        memset(zeros, 0, pageByteCount)
        defer {
            chunk.deallocate()
            zeros.deallocate()
        }
        while true {
            let count = read(file, chunk, 1 << 20)
            guard count > 0 else { return }
            for offset in stride(from: 0, to: count, by: pageByteCount)
            where memcmp(chunk + offset, zeros, pageByteCount) != 0 {
                guard body(chunk + offset) else { return }
            }
        }
    }
}

/// Page-aligned memory, already touched.
public final class Memory {
    /// The memory; freed with this object.
    public let bytes: UnsafeMutableRawBufferPointer

    /// Allocates, and touches every page.
    public init(byteCount: Int) {
        bytes = .allocate(byteCount: byteCount, alignment: 4096)
        bytes.initializeMemory(as: UInt8.self, repeating: 1)
    }

    deinit { bytes.deallocate() }

    /// Memory with a guest's pages.
    public static func guest(byteCount: Int) throws -> Memory {
        let memory = Memory(byteCount: byteCount)
        try GuestContent.fill(memory.bytes)
        return memory
    }

    /// Copies the beginning of other memory over its own, up to the shorter length.
    ///
    /// Uses `memmove`, which in glibc is the same as `memcpy`.
    public func copy(from source: UnsafeMutableRawBufferPointer) {
        let count = min(source.count, bytes.count)
        bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: source[..<count]))
    }

    /// Sets all bytes to zero.
    public func clear() { bytes.initializeMemory(as: UInt8.self, repeating: 0) }

    /// Writes it to a file, which is then in the page cache.
    public func write(to path: String) throws {
        guard let base = bytes.baseAddress else { return }
        let data = Data(bytesNoCopy: base, count: bytes.count, deallocator: .none)
        try data.write(to: URL(fileURLWithPath: path))
    }
}
