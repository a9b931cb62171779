/// Builds Xen streams byte by byte, from the layouts in Xen's docs/specs, without the module under
/// test.
public struct StreamMaker {
    /// The format around the libxc stream.
    public enum Wrapper: CaseIterable, Sendable {
        case libxc
        case libxl
        case xl
        case xenopsd
    }

    /// The stream so far.
    public private(set) var bytes: [UInt8] = []
    /// The offset of each header and record.
    public private(set) var boundaries: [Int] = []

    /// Creates an empty stream.
    public init() {}

    // MARK: - Pieces

    /// Appends bytes as they are.
    public mutating func append(_ raw: [UInt8]) {
        boundaries.append(bytes.count)
        bytes += raw
    }

    /// Appends a libxc or libxl record and its padding.
    public mutating func record(_ type: UInt32, _ body: [UInt8] = [], padding: UInt8 = 0) {
        let count = (8 - body.count % 8) % 8
        append(
            little(type) + little(UInt32(body.count)) + body
                + [UInt8](repeating: padding, count: count))
    }

    /// The header of a libxc stream, and its domain header.
    public mutating func libxcHeaders(
        isPV: Bool, version: UInt32 = 3, options: UInt16 = 0, shift: UInt16 = 12,
        type: UInt32? = nil
    ) {
        append(
            big(UInt64.max) + big(UInt32(0x5845_4e46)) + big(version) + big(options)
                + big(UInt16(0)) + big(UInt32(0)))
        append(
            little(type ?? (isPV ? 1 : 2)) + little(shift) + little(UInt16(0)) + little(UInt32(4))
                + little(UInt32(17)))
    }

    /// The header of a libxl stream.
    public mutating func libxlHeader(version: UInt32 = 2, options: UInt32 = 0) {
        append(big(UInt64(0x4c69_6278_6c46_6d74)) + big(version) + big(options))
    }

    /// The header of an xl save file, with its configuration.
    public mutating func xlHeader(
        configuration: [UInt8]?, mandatory: UInt32 = 3, order: UInt32 = 0x0102_0304
    ) {
        let data = configuration.map { little(UInt32($0.count)) + $0 } ?? []
        append(
            Array("Xen saved domain, xl format\n \0 \r".utf8) + little(order) + little(mandatory)
                + little(UInt32(0)) + little(UInt32(data.count)))
        if !data.isEmpty { append(data) }
    }

    /// A PAGE_DATA record; an entry without data has nil for it.
    public mutating func pages(_ entries: [(entry: UInt64, data: [UInt8]?)]) {
        record(
            1,
            little(UInt32(entries.count)) + little(UInt32(0)) + entries.flatMap { little($0.entry) }
                + entries.flatMap { $0.data ?? [] })
    }

    /// The records that end an HVM guest's epoch.
    public mutating func hvmTail(_ random: inout SeededGenerator, paramsFirst: Bool = false) {
        record(8, StreamMaker.tsc(&random))
        let params = little(UInt32(2)) + little(UInt32(0)) + some(32, &random)
        if paramsFirst { record(0xa, params) }
        record(9, StreamMaker.hvmContext(&random))
        if !paramsFirst { record(0xa, params) }
    }

    /// The records that end a PV guest's epoch.
    public mutating func pvTail(_ random: inout SeededGenerator, vcpuCount: UInt32 = 2) {
        record(8, StreamMaker.tsc(&random))
        record(7, some(4096, &random))
        for vcpu in 0..<vcpuCount {
            let head = little(vcpu) + little(UInt32(0))
            record(4, head + some(5168, &random))
            record(5, head + some(64, &random))
            record(6, head + some(848, &random))
            record(0xc, head + some(32, &random))
        }
    }

    /// The body of an X86_TSC_INFO record.
    public static func tsc(_ random: inout SeededGenerator) -> [UInt8] {
        some(20, &random) + [0, 0, 0, 0]
    }

    /// A context with HEADER, CPU and END.
    public static func hvmContext(_ random: inout SeededGenerator) -> [UInt8] {
        func entry(_ type: UInt16, _ body: [UInt8]) -> [UInt8] {
            little(type) + little(UInt16(0)) + little(UInt32(body.count)) + body
        }
        return entry(1, little(UInt32(0x5438_1286)) + little(UInt32(1)) + some(16, &random))
            + entry(2, some(1032, &random)) + entry(0, [])
    }

    // MARK: - Whole guests

    /// A guest's stream with random pages.
    ///
    /// Batches in several rounds, frames that are sent again, frames without content, and the
    /// requested number of epochs; 0 makes a plain stream.
    public static func guest(
        isPV: Bool, wrapper: Wrapper, version: UInt32 = 3, epochCount: Int, pageCount: Int,
        _ random: inout SeededGenerator
    ) -> StreamMaker {
        var maker = StreamMaker()
        if wrapper == .xl {
            maker.xlHeader(configuration: Array("{\"c_info\":{\"name\":\"web\"}}\0".utf8))
        }
        if wrapper == .xenopsd {
            maker.append(Array("XenSavedDomv2-\n".utf8))
            maker.append(little(Int64(0xf)) + little(Int64(5)) + Array("(vm!)".utf8))
            maker.append(little(Int64(0xf0)) + little(Int64(0)))
        }
        let isInLibxl = wrapper == .xl || wrapper == .libxl
        if isInLibxl {
            maker.libxlHeader()
            maker.record(1)
        }
        maker.statics(isPV: isPV, version: version, &random)
        for epoch in 0..<max(1, epochCount) {
            maker.rounds(isPV: isPV, isFirst: epoch == 0, pageCount: pageCount, &random)
            if isPV { maker.pvTail(&random) } else { maker.hvmTail(&random) }
            if epochCount > 0 {
                maker.record(0xe)
                if isInLibxl {
                    maker.record(2, emulator() + Array("key\0value\0".utf8))
                    maker.record(3, emulator() + some(33, &random))
                    maker.record(4)
                }
            }
        }
        // A checkpointed stream ends where its sender does.
        if epochCount > 0 { return maker }
        maker.record(0)
        if isInLibxl {
            maker.record(3, emulator() + some(33, &random))
            maker.record(0)
        }
        if wrapper == .xenopsd { maker.append(little(Int64(0xffff)) + little(Int64(0))) }
        return maker
    }

    private static func emulator() -> [UInt8] { little(UInt32(2)) + little(UInt32(0)) }

    private mutating func statics(
        isPV: Bool, version: UInt32, _ random: inout SeededGenerator
    ) {
        libxcHeaders(isPV: isPV, version: version)
        if isPV { record(2, [8, 4, 0, 0, 0, 0, 0, 0]) }
        if version == 3 {
            record(0x11, some(48, &random))
            record(0x12, some(32, &random))
            record(0x10)
        }
        // Frames 0 to 1023 of p2m entries: 1024 / 512 frames hold them.
        if isPV { record(3, little(UInt32(0)) + little(UInt32(1023)) + some(16, &random)) }
    }

    private mutating func rounds(
        isPV: Bool, isFirst: Bool, pageCount: Int, _ random: inout SeededGenerator
    ) {
        let types: [UInt64] = isPV ? [0, 0, 0, 1, 2, 3, 4, 9, 12, 13, 14, 15] : [0, 0, 0, 0, 15]
        var frames: [UInt64] = []
        if isFirst {
            // A hole, and frames far above, like a PVH guest's special pages.
            frames =
                (0..<UInt64(pageCount)).filter { !(20..<30).contains($0) } + [0xfeff8, 0xfeff9]
        }
        for _ in 0..<pageCount / 2 {
            frames.append(.random(in: 0..<UInt64(pageCount), using: &random))
        }
        var start = 0
        while start < frames.count {
            let count = min(frames.count - start, Int.random(in: 1...40, using: &random))
            pages(
                frames[start..<start + count].map { frame in
                    let type = types.randomElement(using: &random) ?? 0
                    let data: [UInt8]? = type < 13 ? StreamMaker.page(&random) : nil
                    return (frame | type << 60, data)
                })
            start += count
        }
    }

    private static func page(_ random: inout SeededGenerator) -> [UInt8] {
        if UInt.random(in: 0..<4, using: &random) == 0 { return [UInt8](repeating: 0, count: 4096) }
        let pattern = some(64, &random)
        return Array((0..<64).map { _ in pattern }.joined())
    }
}

/// Random bytes.
public func some(_ count: Int, _ random: inout SeededGenerator) -> [UInt8] {
    (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
}

/// A number's bytes in little-endian order.
public func little(_ value: some FixedWidthInteger) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
}

/// A number's bytes in big-endian order.
public func big(_ value: some FixedWidthInteger) -> [UInt8] {
    withUnsafeBytes(of: value.bigEndian) { Array($0) }
}
