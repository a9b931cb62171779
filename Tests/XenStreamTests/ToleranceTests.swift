import GuestModel
import Testing
import VarveTestSupport
import XenStream

/// Fields that Xen's specification says to ignore are ignored and counted; bytes after a stream are
/// reported.
@Suite struct ToleranceTests {
    private static let page = [UInt8](repeating: 3, count: 4096)

    /// A header or record of a whole guest.
    private struct Piece {
        let record: String
        let bytes: [UInt8]
        /// Its reserved fields: offsets in the piece, and the bits that are reserved there.
        let reserved: [[Int: UInt8]]
    }

    private static func whole(_ range: Range<Int>) -> [Int: UInt8] {
        Dictionary(uniqueKeysWithValues: range.map { ($0, 0xff) })
    }

    private static func piece(
        _ name: String, _ reserved: Range<Int>?, _ build: (inout StreamMaker) -> Void
    ) -> Piece {
        var maker = StreamMaker()
        build(&maker)
        return Piece(
            record: name, bytes: maker.bytes, reserved: reserved.map { [whole($0)] } ?? [])
    }

    private static func pieces(isPV: Bool, _ random: inout SeededGenerator) -> [Piece] {
        var maker = StreamMaker()
        maker.libxcHeaders(isPV: isPV)
        var result = [
            // Options above bit 0, and the six bytes after them.
            Piece(
                record: "libxc image header", bytes: Array(maker.bytes[..<24]),
                reserved: [[16: 0xff, 17: 0xfe], whole(18..<24)]),
            Piece(
                record: "libxc domain header", bytes: Array(maker.bytes[24...]),
                reserved: [whole(6..<8)]),
        ]
        if isPV {
            result.append(piece("X86_PV_INFO", 10..<16) { $0.record(2, [8, 4] + zeros(6)) })
        }
        result.append(piece("STATIC_DATA_END", nil) { $0.record(0x10) })
        if isPV {
            result.append(
                piece("X86_PV_P2M_FRAMES", nil) {
                    $0.record(3, little(UInt32(0)) + little(UInt32(511)) + little(UInt64(7)))
                })
        }
        // The header's second word, and bits 52 to 59 of the entry.
        result.append(
            Piece(
                record: "PAGE_DATA", bytes: piece("", nil) { $0.pages([(7, page)]) }.bytes,
                reserved: [whole(12..<16), [22: 0xf0, 23: 0x0f]]))
        result.append(
            piece("X86_TSC_INFO", 28..<32) { $0.record(8, StreamMaker.tsc(&random)) })
        guard isPV else {
            let params = little(UInt32(1)) + zeros(4) + some(16, &random)
            result.append(piece("HVM_PARAMS", 12..<16) { $0.record(0xa, params) })
            // Three bytes of padding at the end.
            let context = StreamMaker.hvmContext(&random) + some(5, &random)
            let end = 8 + context.count
            result.append(
                piece("HVM_CONTEXT", end..<(end + 7) / 8 * 8) { $0.record(9, context) })
            return result
        }
        result.append(piece("SHARED_INFO", nil) { $0.record(7, some(4096, &random)) })
        for (type, name, count) in [
            (UInt32(4), "BASIC", 5168), (5, "EXTENDED", 64), (6, "XSAVE", 848), (0xc, "MSRS", 32),
        ] {
            let body = some(count, &random)
            result.append(
                piece("X86_PV_VCPU_" + name, 12..<16) { $0.record(type, zeros(8) + body) })
        }
        return result
    }

    private static func zeros(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

    private static let end = [UInt8](repeating: 0, count: 8)

    @Test(arguments: [true, false])
    func reservedFieldsAreIgnoredAndCounted(_ isPV: Bool) throws {
        var random = TestSeed.generator(740)
        let pieces = ToleranceTests.pieces(isPV: isPV, &random)
        let clean = pieces.flatMap(\.bytes) + ToleranceTests.end
        let (expected, summary) = try read(clean, as: .libxc)
        #expect(summary.ignoredReservedFields.count == 0)
        let cleanAgain = try write(expected.epochs[0], as: .libxc)
        var (fieldCount, caseCount, start) = (0, 0, 0)
        var all: [UInt8] = []
        for piece in pieces {
            var everyField = piece.bytes
            for field in piece.reserved {
                fieldCount += 1
                for (byte, mask) in field.sorted(by: { $0.key < $1.key }) {
                    let bits = UInt8.random(in: .min ... .max, using: &random) & mask
                    everyField[byte] |= mask
                    var bytes = clean
                    bytes[start + byte] |= bits == 0 ? mask : bits
                    let (got, summary) = try read(bytes, as: .libxc, pieceByteCountMax: 4093)
                    let name = "\(piece.record), byte \(byte)"
                    #expect(got.epochs[0].state == expected.epochs[0].state, "\(name)")
                    #expect(got.epochs[0].pages == expected.epochs[0].pages, "\(name)")
                    let ignored = summary.ignoredReservedFields
                    #expect(ignored.count == 1, "\(name)")
                    #expect(ignored.firstRecord == piece.record, "\(name)")
                    #expect(ignored.firstOffset == UInt64(start), "\(name)")
                    // The written stream has zeros there.
                    #expect(try write(got.epochs[0], as: .libxc) == cleanAgain, "\(name)")
                    caseCount += 1
                }
            }
            start += piece.bytes.count
            all += everyField
        }
        let (got, whole) = try read(all + ToleranceTests.end, as: .libxc)
        #expect(got.epochs[0].state == expected.epochs[0].state)
        #expect(whole.ignoredReservedFields.count == fieldCount)
        print("\(isPV ? "PV" : "HVM"): \(caseCount) reserved bytes in \(fieldCount) fields ignored")
    }

    /// The endianness and the version are not reserved, and the specification of libxl streams has
    /// no fields to ignore.
    @Test func whatIsNotReservedIsRefused() throws {
        var maker = StreamMaker()
        maker.libxcHeaders(isPV: false)
        for (offset, value) in [(17, UInt8(1)), (15, 4), (8, 0), (28, 13)] {
            var bytes = maker.bytes
            bytes[offset] = value
            #expect(throws: XenStreamError.self) { try read(bytes, as: .libxc) }
        }
        var outer = StreamMaker()
        outer.libxlHeader(options: 4)
        let error = #expect(throws: XenStreamError.self) { try read(outer.bytes, as: .libxl) }
        #expect(error?.message.contains("reserved bits") == true)
    }

    @Test func optionalRecordsAreSkippedAndCounted() throws {
        var random = TestSeed.generator(741)
        let maker = StreamMaker.guest(
            isPV: false, wrapper: .libxl, epochCount: 0, pageCount: 20, &random)
        let (expected, _) = try read(maker.bytes, as: .libxl)
        var extra = StreamMaker()
        extra.record(1 << 31 | 0x77, some(3 << 20, &random), padding: 9)
        // Within the libxc stream, after its headers; and among the records of libxl, at the end.
        let inner = maker.boundaries[4]
        var bytes = Array(maker.bytes[..<inner]) + extra.bytes
        bytes += maker.bytes[inner..<maker.bytes.count - 8] + extra.bytes + ToleranceTests.end
        let (got, summary) = try read(bytes, as: .libxl)
        #expect(got.epochs[0].pages == expected.epochs[0].pages)
        #expect(got.epochs[0].state == expected.epochs[0].state)
        #expect(summary.skippedRecords.count == 2)
        #expect(summary.skippedRecords.firstRecord == "0x80000077")
        #expect(summary.skippedRecords.firstOffset == UInt64(inner))
        #expect(summary.ignoredReservedFields.count == 0)
    }

    // MARK: - Trailing bytes

    private func trailer(
        _ bytes: [UInt8], _ format: XenStreamFormat, readsOn: Bool = true, step: Int = .max
    ) throws -> XenStreamTrailer? {
        var position = 0
        let source = { (buffer: UnsafeMutableRawBufferPointer) -> Int in
            let count = min(buffer.count, bytes.count - position, step)
            buffer.copyBytes(from: bytes[position..<position + count])
            position += count
            return count
        }
        var reader = XenStreamReader(format: format, source: source)
        try reader.run(Collector())
        return try reader.trailer(from: readsOn ? source : nil)
    }

    @Test(arguments: [
        (StreamMaker.Wrapper.xl, XenStreamFormat.xl), (.libxl, .libxl), (.libxc, .libxc),
        (.xenopsd, .xenopsd),
    ])
    func whatFollowsAStreamIsTold(
        _ wrapper: StreamMaker.Wrapper, _ format: XenStreamFormat
    ) throws {
        var random = TestSeed.generator(742)
        let bytes = StreamMaker.guest(
            isPV: false, wrapper: wrapper, epochCount: 0, pageCount: 30, &random
        ).bytes
        for step in [1, 4093, Int.max] {
            #expect(try trailer(bytes, format, step: step) == nil)
            let second = try trailer(bytes + bytes, format, step: step)
            #expect(second?.offset == UInt64(bytes.count) && second?.format == format)
            for more in [1, 47, 5000] {
                let other = try trailer(
                    bytes + [UInt8](repeating: 0, count: more), format, step: step)
                #expect(other?.offset == UInt64(bytes.count), "\(step) \(more)")
                #expect(other != nil && other?.format == nil)
            }
        }
        // Without a source nothing is read: if read byte by byte, the end comes last.
        #expect(try trailer(bytes + [1], format, readsOn: false, step: 1) == nil)
        #expect(try trailer(bytes + [1], format, readsOn: false) != nil)
    }

    // MARK: - Configurations

    @Test func configurationsAreToldFromOtherText() throws {
        let good: [(String, Bool)] = [
            ("{\"c_info\":{}}", true), (" \n{\"a\":[1,-2.5e+3,true,null],\"c_info\":{}}\n", true),
            ("{\"c_info\":{\"name\":\"\\u00e9\\n\"}}\0", true), ("name=\"web\"", false),
            (
                "# remark\nname = 'web'; memory = 0x40 # more\n\nvif = [ 'a', # one\n \"b\",\n]\n",
                false
            ),
            ("disk = [ [\"a\", 1], [ ] ]\nextra += \"x\"\n", false), ("a=-1", false),
            ("#x\nname=\"it\\\"s\"\n#end", false),
        ]
        for (text, isJSON) in good {
            let configuration = try XenConfigurationText(Array(text.utf8))
            #expect(configuration.isJSON == isJSON, "\(text)")
            #expect(!configuration.bytes.contains(0))
        }
        let bad: [(String, String)] = [
            ("", "empty"), (" \n", "empty"), ("\0", "empty"),
            ("# nothing\n", "no assignments"),
            ("hello world", "line 1"), ("name = \"web\nmemory = 1", "line 1"),
            ("name = \"web\"\nmemory = lots", "line 2"), ("name = 'a' 'b'", "line 1"),
            ("Name = 1", "line 1"), ("a = 1\r\n", "line 1"), ("a = [ 1,, 2 ]", "line 1"),
            ("a = [ 1\n", "line 2"), ("<domain type='xen'>", "line 1"), ("a\0b", "not text"),
            ("{\"c_info\":{}", "JSON"), ("{\"c_info\":{}}}", "JSON"), ("{c_info:{}}", "JSON"),
            ("{\"c_info\":{},}", "JSON"), ("{\"c_info\":01}", "JSON"),
            ("{\"c_info\":\"\n\"}", "JSON"),
            ("{\"c_info\":\"\\x\"}", "JSON"), ("{\"c_info\":nul}", "JSON"), ("{}", "c_info"),
            ("{\"c_info\":1}", "c_info"), ("[{\"c_info\":{}}]", "c_info"),
            (String(repeating: "[", count: 100_000), "JSON"),
            ("a = " + String(repeating: "[", count: 100_000), "line 1"),
            ("a = '" + String(repeating: "x", count: 1 << 20) + "'", "1 MiB"),
        ]
        for (text, reason) in bad {
            let error = #expect(throws: XenStreamError.self, "\(text.prefix(40))") {
                try XenConfigurationText(Array(text.utf8))
            }
            #expect(error?.message.contains(reason) == true, "\(text.prefix(40)): \(error as Any)")
        }
        #expect(throws: XenStreamError.self) { try XenConfigurationText([0x61, 0x3d, 0xff]) }
        #expect(throws: XenStreamError.self) {
            try XenConfigurationText([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0])
        }
        // A writer refuses before its first byte.
        var random = TestSeed.generator(743)
        let maker = StreamMaker.guest(
            isPV: false, wrapper: .xl, epochCount: 0, pageCount: 9, &random)
        let epoch = try read(maker.bytes, as: .xl).0.epochs[0]
        let error = #expect(throws: XenStreamError.self) {
            try write(epoch, as: .xl, configuration: Array("hello".utf8))
        }
        #expect(error?.code == .malformed)
    }
}
