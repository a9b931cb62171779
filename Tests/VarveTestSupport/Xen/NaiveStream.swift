/// A stream read in the simplest way, from the layouts in Xen's docs/specs: the reference for the
/// codec.
///
/// It holds everything in memory, expects a valid stream, and stops where the bytes end.
public struct NaiveStream {
    /// A frame's last entry.
    public struct Page: Equatable {
        /// The four bits of its type.
        public let type: UInt8
        /// The offset of its 4096 bytes in the stream; nil without content.
        public let data: Range<Int>?
    }

    /// The guest at one instant.
    public struct Epoch {
        /// Each frame's last entry.
        public var pages: [UInt64: Page]
        /// The last body of each record; the key is `layer.type.instance`.
        public var records: [String: [UInt8]]
    }

    /// The stream.
    public let bytes: [UInt8]
    /// The whole epochs; a plain stream has one.
    public private(set) var epochs: [Epoch] = []
    /// The configuration of an xl file, with its NUL.
    public private(set) var configuration: [UInt8]?
    /// 1 PV, 2 HVM.
    public private(set) var guestType: UInt32 = 0
    private var now = Epoch(pages: [:], records: [:])
    private var offset = 0

    /// Reads a stream.
    public init(_ bytes: [UInt8]) {
        self.bytes = bytes
        if bytes.starts(with: Array("Xen saved domain".utf8)) {
            let length = Int(u32(44))
            if length > 4 { configuration = Array(bytes[52..<52 + Int(u32(48))]) }
            offset = 48 + length
        }
        if bytes.starts(with: Array("XenSavedDomv2-\n".utf8)) {
            readXenopsd()
        } else if bytes[offset...].starts(with: Array("LibxlFmt".utf8)) {
            offset += 16
            readLibxl()
        } else if readLibxc(isInLibxl: false) {
            epochs.append(now)
        }
    }

    private func u32(_ at: Int) -> UInt32 {
        (0..<4).reduce(0) { $0 | UInt32(bytes[at + $1]) << UInt32($1 * 8) }
    }

    private func u64(_ at: Int) -> UInt64 { UInt64(u32(at)) | UInt64(u32(at + 4)) << 32 }

    private mutating func readXenopsd() {
        offset = 15
        while offset + 16 <= bytes.count {
            let (type, length) = (u64(offset), Int(u64(offset + 8)))
            offset += 16
            switch type {
            case 0xf0: guard readLibxc(isInLibxl: false) else { return }
            case 0xffff:
                epochs.append(now)
                return
            default:
                now.records["xenopsd.\(type).0"] = Array(bytes[offset..<offset + length])
                offset += length
            }
        }
    }

    /// A record's type and body, or nil at the end of the bytes.
    private mutating func next() -> (type: UInt32, body: Range<Int>)? {
        guard offset + 8 <= bytes.count else { return nil }
        let (type, length) = (u32(offset), Int(u32(offset + 4)))
        let padded = (length + 7) / 8 * 8
        guard offset + 8 + padded <= bytes.count else { return nil }
        let body = offset + 8..<offset + 8 + length
        offset += 8 + padded
        return (type, body)
    }

    private mutating func readLibxl() {
        while let (type, body) = next() {
            switch type {
            case 0:
                epochs.append(now)
                return
            case 1: guard readLibxc(isInLibxl: true) else { return }
            case 4:
                epochs.append(now)
                guard readLibxcRecords(isInLibxl: true) else { return }
            default: now.records["libxl.\(type).\(u64(body.lowerBound))"] = Array(bytes[body])
            }
        }
    }

    /// - Returns: true at the end of an image, or at a checkpoint inside libxl.
    private mutating func readLibxc(isInLibxl: Bool) -> Bool {
        guard offset + 40 <= bytes.count else { return false }
        guestType = u32(offset + 24)
        now.records["libxc.header.0"] = Array(bytes[offset + 24..<offset + 40])
        offset += 40
        return readLibxcRecords(isInLibxl: isInLibxl)
    }

    private mutating func readLibxcRecords(isInLibxl: Bool) -> Bool {
        while let (type, body) = next() {
            switch type {
            case 0: return epochs.isEmpty
            case 1: readPages(body)
            case 0xe:
                if isInLibxl { return true }
                epochs.append(now)
            case 0x10: break
            case 4, 5, 6, 0xc:
                now.records["libxc.\(type).\(u32(body.lowerBound))"] = Array(bytes[body])
            default: now.records["libxc.\(type).0"] = Array(bytes[body])
            }
        }
        return false
    }

    private mutating func readPages(_ body: Range<Int>) {
        let count = Int(u32(body.lowerBound))
        var data = body.lowerBound + 8 + count * 8
        for index in 0..<count {
            let entry = u64(body.lowerBound + 8 + index * 8)
            let type = UInt8(entry >> 60)
            let hasData = type < 13
            now.pages[entry & ((1 << 52) - 1)] = Page(
                type: type, data: hasData ? data..<data + 4096 : nil)
            if hasData { data += 4096 }
        }
    }

    // MARK: - Equality

    /// A frame's content; nil if there is no page.
    ///
    /// A page that is only allocated is zero.
    public func content(_ page: Page) -> ArraySlice<UInt8>? {
        if let data = page.data { return bytes[data] }
        return page.type == 14 ? NaiveStream.zeros[...] : nil
    }

    private static let zeros = [UInt8](repeating: 0, count: 4096)

    /// The differences between an epoch of this stream and one of another.
    ///
    /// None, if both are the same guest. A frame that does not exist is equal to one that was never
    /// named.
    public func differences(_ epoch: Int, from other: NaiveStream, _ otherEpoch: Int) -> [String] {
        var found: [String] = []
        let (mine, theirs) = (epochs[epoch], other.epochs[otherEpoch])
        for frame in Set(mine.pages.keys).union(theirs.pages.keys) {
            let (left, right) = (mine.pages[frame], theirs.pages[frame])
            let (leftType, rightType) = (left?.type ?? 15, right?.type ?? 15)
            if leftType != rightType {
                found.append("frame \(frame) has type \(leftType) and \(rightType)")
            } else if left.flatMap({ content($0) }) != right.flatMap({ other.content($0) }) {
                found.append("frame \(frame) differs")
            }
        }
        for key in Set(mine.records.keys).union(theirs.records.keys)
        where mine.records[key] != theirs.records[key] {
            found.append("record \(key) differs")
        }
        return found.sorted()
    }
}
