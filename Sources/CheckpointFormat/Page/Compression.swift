import CZstd
import Synchronization

/// How hard to compress, in zstd's levels.
public struct CompressionLevel: RawRepresentable, Hashable, Sendable {
    /// The level: 1 to 19, or negative for zstd's `--fast` levels; the minimum value for `stored`.
    public let rawValue: Int32

    /// Wraps a level.
    public init(rawValue: Int32) {
        self.rawValue = rawValue
    }

    /// Level 1, but level -1 for blocks of one to three pages: about 460 MB/s per core on guest
    /// memory in blocks of 64 KiB; on single pages 1.7 times as fast as level 1 would be.
    public static let standard = CompressionLevel(rawValue: 1)

    /// Level -1: twice as fast as level 1, with output a ninth larger.
    public static let fast = CompressionLevel(rawValue: -1)

    /// Not compressed: pages are written as they are, which uses the least CPU time and the most
    /// disk space.
    public static let stored = CompressionLevel(rawValue: .min)
}

extension CompressionLevel: Comparable {
    /// A level is less than another if it is faster.
    public static func < (left: CompressionLevel, right: CompressionLevel) -> Bool {
        left.rawValue < right.rawValue
    }

    /// The next slower level.
    package var slower: CompressionLevel {
        // Level 0 is zstd's name for its default, which is level 3.
        guard self != .stored else { return CompressionLevel(rawValue: CompressionLevel.fastest) }
        return CompressionLevel(rawValue: rawValue == -1 ? 1 : rawValue + 1)
    }

    /// The last level before `stored`: lower ones save only an eleventh of the time and cost a
    /// quarter more bytes (down to level -40, measured on guest memory).
    private static let fastest: Int32 = -7

    /// The next faster level; `stored` after -7.
    package var faster: CompressionLevel {
        guard rawValue > CompressionLevel.fastest else { return .stored }
        return CompressionLevel(rawValue: rawValue == 1 ? -1 : rawValue - 1)
    }
}

/// There is no memory for zstd's tables.
package struct CompressionMemoryError: Error, Hashable, Sendable {
    /// Lets allocations fail, for tests: in the task that sets it and the calls that it makes.
    @TaskLocal package static var isForced = false
}

/// Idle zstd contexts, kept for reuse: creating one costs as much as compressing several pages, and
/// a restore or a checkpoint needs several.
private struct ContextPool: ~Copyable {
    /// A context with a single owner.
    struct Context: @unchecked Sendable {
        // Unchecked: the thread that took it from the pool has exclusive use of it.
        let pointer: OpaquePointer
    }

    /// Enough for all processors of most machines; a context takes some hundred kilobytes.
    private static let countMax = 32

    private let idle = Mutex<[Context]>([])

    /// An idle context, or a new one.
    func take(
        orCreate create: () -> OpaquePointer?
    ) throws(CompressionMemoryError) -> OpaquePointer {
        guard !CompressionMemoryError.isForced,
            let pointer = idle.withLock({ $0.popLast() })?.pointer ?? create()
        else { throw CompressionMemoryError() }
        return pointer
    }

    /// - Returns: false if the pool is full; the caller must then free the context.
    func giveBack(_ pointer: OpaquePointer) -> Bool {
        let context = Context(pointer: pointer)
        return idle.withLock { idle in
            guard idle.count < ContextPool.countMax else { return false }
            idle.append(context)
            return true
        }
    }
}

/// A zstd compressor with its tables; each worker has its own, used by one thread at a time.
package struct Compressor: ~Copyable {
    private static let pool = ContextPool()

    private let context: OpaquePointer
    /// The level for subsequent calls.
    package var level: CompressionLevel

    package init(level: CompressionLevel) throws(CompressionMemoryError) {
        context = try Compressor.pool.take { czstd_create_compressor() }
        self.level = level
    }

    deinit {
        if !Compressor.pool.giveBack(context) { ZSTD_freeCCtx(context) }
    }

    /// Maximum compressed size of `byteCount` bytes.
    package static func bound(_ byteCount: Int) -> Int {
        ZSTD_compressBound(byteCount)
    }

    /// Compresses `source` as one zstd frame; nil if the frame would not be shorter.
    ///
    /// - Parameter level: overrides the compressor's level.
    package borrowing func compress(
        _ source: UnsafeRawBufferPointer, at level: CompressionLevel? = nil,
        into destination: UnsafeMutableRawBufferPointer
    ) -> Int? {
        let level = level ?? self.level
        guard level != .stored else { return nil }
        let count = ZSTD_compressCCtx(
            context, destination.baseAddress, destination.count,
            source.baseAddress, source.count, level.rawValue)
        return ZSTD_isError(count) == 0 && count < source.count ? count : nil
    }
}

/// A zstd decompressor; each worker has its own, used by one thread at a time.
package struct Decompressor: ~Copyable {
    private static let pool = ContextPool()

    private let context: OpaquePointer

    package init() throws(CompressionMemoryError) {
        context = try Decompressor.pool.take { czstd_create_decompressor() }
    }

    deinit {
        if !Decompressor.pool.giveBack(context) { ZSTD_freeDCtx(context) }
    }

    /// Fills all of `destination` from one zstd frame.
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
                reason: "it decompresses to \(count) bytes instead of \(destination.count)")
        }
    }
}
