/// A run of consecutive frames, never empty.
public struct PageRange: Hashable, Sendable {
    /// The first frame of the run.
    public let first: PageFrameNumber
    /// How many frames; at least 1.
    public let count: Int

    /// Makes a run of `count` frames; `count` is at least 1 and the run ends below 2^52.
    public init(first: PageFrameNumber, count: Int) {
        precondition(count > 0, "a page range holds at least one page")
        precondition(first.rawValue < PageRange.frameLimit, "frame number beyond 2^52")
        precondition(
            UInt64(count) <= PageRange.frameLimit - first.rawValue, "range ends beyond 2^52")
        self.first = first
        self.count = count
    }

    /// Frame numbers are below 2^52, as in Xen's stream formats: a byte address fits 64 bits.
    public static let frameLimit: UInt64 = 1 << 52

    /// The frame after the last one.
    public var end: PageFrameNumber { PageFrameNumber(first.rawValue + UInt64(count)) }

    /// Bytes in the run.
    public var byteCount: Int { count * Page.byteCount }

    /// The frame numbers as integers, for loops.
    public var frames: Range<UInt64> { first.rawValue..<end.rawValue }

    /// True if `frame` lies in the run.
    public func contains(_ frame: PageFrameNumber) -> Bool {
        frame >= first && frame < end
    }
}

extension PageRange: CustomStringConvertible {
    /// `0x10+4`: first frame and count.
    public var description: String { "\(first)+\(count)" }
}

extension [PageRange] {
    /// Appends a run, or makes the last one longer if the run begins where that ends.
    @inlinable
    package mutating func appendJoining(_ run: PageRange) {
        guard let last, last.end == run.first else { return append(run) }
        self[count - 1] = PageRange(first: last.first, count: last.count + run.count)
    }
}
