import CZstd

/// How hard to compress; zstd's own levels.
public struct CompressionLevel: RawRepresentable, Hashable, Sendable {
    /// The level: 1 to 19, or negative for zstd's `--fast` levels.
    public let rawValue: Int32

    /// Wraps a level.
    public init(rawValue: Int32) {
        self.rawValue = rawValue
    }

    /// Level 1: about 460 MB/s a core on guest memory.
    public static let standard = CompressionLevel(rawValue: 1)
}

/// A zstd compressor with its tables; one for each worker, used by one thread at a time.
package struct Compressor: ~Copyable {
    private let context: OpaquePointer
    private let level: CompressionLevel

    package init(level: CompressionLevel) {
        guard let context = ZSTD_createCCtx() else {
            preconditionFailure("zstd has no memory for a compressor")
        }
        self.context = context
        self.level = level
    }

    deinit {
        ZSTD_freeCCtx(context)
    }

    /// Room that any result for `byteCount` bytes fits in.
    package static func bound(_ byteCount: Int) -> Int {
        ZSTD_compressBound(byteCount)
    }

    /// Compresses `source` as one zstd frame; nil when the frame would not be shorter.
    package borrowing func compress(
        _ source: UnsafeRawBufferPointer, into destination: UnsafeMutableRawBufferPointer
    ) -> Int? {
        let count = ZSTD_compressCCtx(
            context, destination.baseAddress, destination.count,
            source.baseAddress, source.count, level.rawValue)
        return ZSTD_isError(count) == 0 && count < source.count ? count : nil
    }
}

/// A zstd decompressor; one for each worker, used by one thread at a time.
package struct Decompressor: ~Copyable {
    private let context: OpaquePointer

    package init() {
        guard let context = ZSTD_createDCtx() else {
            preconditionFailure("zstd has no memory for a decompressor")
        }
        self.context = context
    }

    deinit {
        ZSTD_freeDCtx(context)
    }

    /// Fills `destination` exactly from one zstd frame.
    package borrowing func decompress(
        _ source: UnsafeRawBufferPointer, into destination: UnsafeMutableRawBufferPointer
    ) throws(FormatError) {
        let count = ZSTD_decompressDCtx(
            context, destination.baseAddress, destination.count, source.baseAddress, source.count)
        if ZSTD_isError(count) != 0 {
            let name = String(cString: ZSTD_getErrorName(count))
            throw FormatError(offset: 0, reason: "zstd cannot decompress it (\(name))")
        }
        guard count == destination.count else {
            throw FormatError(
                offset: 0,
                reason: "it decompresses to \(count) bytes and should to \(destination.count)")
        }
    }
}
