/// The unit of guest memory in checkpoints.
public enum Page {
    /// Bytes in a page: 4096, whatever larger mappings the guest uses.
    public static let byteCount = 4096
}

/// A guest pseudo-physical frame number.
///
/// The name and meaning are Xen's (`xen/include/xen/mm.h`): for HVM and PVH guests it equals the
/// GFN. For the process's own memory it is the page's position, counted in the order in which
/// regions were registered.
public struct PageFrameNumber: RawRepresentable, Hashable, Comparable, Sendable {
    /// The frame number; byte address divided by 4096.
    public let rawValue: UInt64

    /// Wraps a raw frame number.
    public init(rawValue: UInt64) {
        self.rawValue = rawValue
    }

    /// Wraps a raw frame number.
    public init(_ rawValue: UInt64) {
        self.rawValue = rawValue
    }

    /// Orders by frame number.
    public static func < (left: PageFrameNumber, right: PageFrameNumber) -> Bool {
        left.rawValue < right.rawValue
    }
}

extension PageFrameNumber: CustomStringConvertible {
    /// The number in hexadecimal, as Xen prints it.
    public var description: String { "0x" + String(rawValue, radix: 16) }
}
