import GuestModel
import Testing
import VarveTestSupport
import XenStream

/// Invalid streams are refused, with offset, record and reason; tolerable ones are accepted.
@Suite struct StrictnessTests {
    /// A stream that must be refused, and its expected error.
    private struct Case {
        let name: String
        let code: XenStreamError.Code
        let record: String
        let reason: String
        let format: XenStreamFormat
        let bytes: [UInt8]
        /// The offset of the record that is named; nil if the error is about the whole stream.
        let offset: Int?
    }

    private static func data(_ byte: UInt8 = 1) -> [UInt8] { [UInt8](repeating: byte, count: 4096) }

    /// A libxc stream whose invalid part `build` appends after the static data.
    private static func libxc(
        _ name: String, _ record: String, _ reason: String, isPV: Bool = false,
        version: UInt32 = 3, code: XenStreamError.Code = .malformed, hasStaticDataEnd: Bool = true,
        _ build: (inout StreamMaker) -> Void
    ) -> Case {
        var maker = StreamMaker()
        maker.libxcHeaders(isPV: isPV, version: version)
        if isPV { maker.record(2, [8, 4, 0, 0, 0, 0, 0, 0]) }
        if version == 3 && hasStaticDataEnd { maker.record(0x10) }
        build(&maker)
        return Case(
            name: name, code: code, record: record, reason: reason, format: .libxc,
            bytes: maker.bytes, offset: maker.boundaries.last)
    }

    private static var headers: [Case] {
        func header(
            _ name: String, _ reason: String, _ code: XenStreamError.Code = .malformed,
            domain: Bool = false, _ change: (inout [UInt8]) -> Void
        ) -> Case {
            var maker = StreamMaker()
            maker.libxcHeaders(isPV: false)
            var bytes = maker.bytes
            change(&bytes)
            return Case(
                name: name, code: code,
                record: domain ? "libxc domain header" : "libxc image header", reason: reason,
                format: .libxc, bytes: bytes, offset: domain ? 24 : 0)
        }
        return [
            header("legacy", "convert-legacy-stream", .legacy) { $0[3] = 0 },
            header("ident", "XENF") { $0[8] = 1 },
            header("version 1", "version 1", .unsupported) { $0[15] = 1 },
            header("version 4", "version 4", .unsupported) { $0[15] = 4 },
            header("big-endian", "big-endian", .unsupported) { $0[17] = 1 },
            header("domain type", "type 7", .unsupported, domain: true) { $0[24] = 7 },
            header("page shift", "page shift", domain: true) { $0[28] = 13 },
        ]
    }

    private static var pages: [Case] {
        let name = "PAGE_DATA"
        return [
            libxc("no page", name, "no page") { $0.record(1, little(UInt64(0))) },
            libxc("no head", name, "shorter") { $0.record(1, [1, 0, 0, 0]) },
            libxc("too many entries", name, "do not fit") {
                $0.record(1, little(UInt64(0xffff_ffff)) + little(UInt64(0)))
            },
            libxc("type 5", name, "invalid type 5") { $0.pages([(5 << 60 | 1, data())]) },
            libxc("type 8", name, "invalid type 8") { $0.pages([(8 << 60 | 1, data())]) },
            libxc("data for a type without", name, "need") { $0.pages([(15 << 60, data())]) },
            libxc("no data", name, "need") { $0.pages([(1, nil)]) },
            libxc("a frame far away", name, "far beyond") { $0.pages([(1 << 40, data())]) },
            libxc("before the static data's end", name, "STATIC_DATA_END", hasStaticDataEnd: false)
            {
                $0.pages([(1, data())])
            },
        ]
    }

    private static var records: [Case] {
        let vcpu = little(UInt64(0))
        return [
            libxc("unknown mandatory", "0x55", "no such record") { $0.record(0x55) },
            libxc("over 128 MiB", "HVM_CONTEXT", "128 MiB") {
                $0.append(little(UInt32(9)) + little(UInt32(128 << 20 | 1)))
            },
            libxc("end with a body", "END", "must have none") { $0.record(0, [1]) },
            libxc("end without context", "END", "HVM_CONTEXT") { $0.record(0) },
            libxc("checkpoint with a body", "CHECKPOINT", "must have none") { $0.record(0xe, [1]) },
            libxc("checkpoint without context", "CHECKPOINT", "HVM_CONTEXT") { $0.record(0xe) },
            libxc("toolstack", "TOOLSTACK", "convert", code: .unsupported) { $0.record(0xb, [1]) },
            libxc("COLO", "CHECKPOINT_DIRTY_PFN_LIST", "COLO", code: .unsupported) {
                $0.record(0xf, [1])
            },
            libxc("static data twice", "STATIC_DATA_END", "twice") { $0.record(0x10) },
            libxc("static data in version 2", "STATIC_DATA_END", "version 2", version: 2) {
                $0.record(0x10)
            },
            libxc("policy in version 2", "X86_CPUID_POLICY", "version 2", version: 2) {
                $0.record(0x11, [UInt8](repeating: 0, count: 24))
            },
            libxc("policy length", "X86_CPUID_POLICY", "24") {
                $0.record(0x11, [UInt8](repeating: 0, count: 25))
            },
            libxc("empty MSR policy", "X86_MSR_POLICY", "16") { $0.record(0x12) },
            libxc("TSC length", "X86_TSC_INFO", "24") { $0.record(8, [1]) },
            libxc("empty context", "HVM_CONTEXT", "empty") { $0.record(9) },
            libxc("parameters", "HVM_PARAMS", "do not make") {
                $0.record(0xa, little(UInt32(2)) + little(UInt32(0)))
            },
            libxc("PV record in HVM", "SHARED_INFO", "HVM stream has no") { $0.record(7, data()) },
            libxc("HVM record in PV", "HVM_CONTEXT", "PV stream has no", isPV: true) {
                $0.record(9, [1])
            },
            libxc("PV info twice", "X86_PV_INFO", "twice", isPV: true) {
                $0.record(2, [8, 4, 0, 0, 0, 0, 0, 0])
            },
            libxc("p2m length", "X86_PV_P2M_FRAMES", "need", isPV: true) {
                $0.record(3, little(UInt32(0)) + little(UInt32(1023)) + little(UInt64(1)))
            },
            libxc("p2m backwards", "X86_PV_P2M_FRAMES", "before it starts", isPV: true) {
                $0.record(3, little(UInt32(9)) + little(UInt32(8)))
            },
            libxc("shared info length", "SHARED_INFO", "4096", isPV: true) { $0.record(7, [1]) },
            libxc("vCPU head", "X86_PV_VCPU_BASIC", "shorter", isPV: true) { $0.record(4, [1]) },
            libxc("vCPU context", "X86_PV_VCPU_BASIC", "5168 or 2800", isPV: true) {
                $0.record(4, vcpu + [1])
            },
            libxc("vCPU extended", "X86_PV_VCPU_EXTENDED", "128", isPV: true) {
                $0.record(5, vcpu + [UInt8](repeating: 1, count: 129))
            },
            libxc("vCPU xsave", "X86_PV_VCPU_XSAVE", "16", isPV: true) { $0.record(6, vcpu + [1]) },
            libxc("vCPU MSRs", "X86_PV_VCPU_MSRS", "16", isPV: true) {
                $0.record(0xc, vcpu + [1])
            },
            libxc("end of a PV stream", "END", "X86_PV_P2M_FRAMES", isPV: true) { $0.record(0) },
        ]
    }

    private static var outer: [Case] {
        func outer(
            _ format: XenStreamFormat, _ record: String, _ reason: String,
            _ code: XenStreamError.Code = .malformed, _ build: (inout StreamMaker) -> Void
        ) -> Case {
            var maker = StreamMaker()
            build(&maker)
            return Case(
                name: "\(format) \(record) \(reason)", code: code, record: record, reason: reason,
                format: format, bytes: maker.bytes, offset: maker.boundaries.last)
        }
        return [
            outer(.xl, "xl header", "convert-legacy-stream", .legacy) {
                $0.xlHeader(configuration: nil, mandatory: 1)
            },
            outer(.xl, "xl header", "big-endian", .unsupported) {
                $0.xlHeader(configuration: nil, order: 0x0403_0201)
            },
            outer(.xl, "xl header", "mandatory", .unsupported) {
                $0.xlHeader(configuration: nil, mandatory: 7)
            },
            outer(.xl, "xl configuration", "longer") {
                $0.append(
                    Array("Xen saved domain, xl format\n \0 \r".utf8) + little(UInt32(0x0102_0304))
                        + little(UInt32(3)) + little(UInt64(8) << 32))
                $0.append(little(UInt32(5)) + [1, 2, 3, 4])
            },
            outer(.libxl, "libxl header", "version 3", .unsupported) { $0.libxlHeader(version: 3) },
            outer(.libxl, "libxl header", "big-endian", .unsupported) {
                $0.libxlHeader(options: 1)
            },
            outer(.libxl, "libxl header", "reserved") { $0.libxlHeader(options: 4) },
            outer(.libxl, "END", "where it must not") {
                $0.libxlHeader()
                $0.record(0)
            },
            outer(.libxl, "EMULATOR_CONTEXT", "where it must not") {
                $0.libxlHeader()
                $0.record(3, little(UInt64(2)))
            },
            outer(.libxl, "LIBXC_CONTEXT", "must have none") {
                $0.libxlHeader()
                $0.record(1, [1])
            },
            outer(.libxl, "CHECKPOINT_STATE", "COLO", .unsupported) {
                $0.libxlHeader()
                $0.record(5, [0, 0, 0, 0])
            },
            outer(.libxl, "0x77", "no such record") {
                $0.libxlHeader()
                $0.record(0x77)
            },
            outer(.xenopsd, "xenopsd header", "legacy", .legacy) {
                $0.append(Array("XenSavedDomain\n".utf8))
            },
            outer(.xenopsd, "xenopsd record 242", "convert-legacy-stream", .legacy) {
                $0.append(Array("XenSavedDomv2-\n".utf8))
                $0.append(little(Int64(0xf2)) + little(Int64(0)))
            },
            outer(.xenopsd, "xenopsd record 77", "no such record") {
                $0.append(Array("XenSavedDomv2-\n".utf8))
                $0.append(little(Int64(77)) + little(Int64(0)))
            },
            outer(.xenopsd, "xenopsd record 15", "length") {
                $0.append(Array("XenSavedDomv2-\n".utf8))
                $0.append(little(Int64(0xf)) + little(Int64(-1)))
            },
            outer(.xenopsd, "xenopsd record 65535", "without memory") {
                $0.append(Array("XenSavedDomv2-\n".utf8))
                $0.append(little(Int64(0xffff)) + little(Int64(0)))
            },
        ]
    }

    @Test func whatIsWrongIsRefused() throws {
        let cases =
            StrictnessTests.headers + StrictnessTests.pages + StrictnessTests.records
            + StrictnessTests.outer
        for wrong in cases {
            let error = #expect(throws: XenStreamError.self, "\(wrong.name)") {
                _ = try XenStreamTests.read(wrong.bytes, as: wrong.format)
            }
            guard let error else { continue }
            #expect(error.code == wrong.code, "\(wrong.name): \(error)")
            #expect(error.record == wrong.record, "\(wrong.name): \(error)")
            #expect(error.message.contains(wrong.reason), "\(wrong.name): \(error)")
            #expect(error.offset == wrong.offset.map { UInt64($0) }, "\(wrong.name): \(error)")
        }
        print("refused \(cases.count) wrong streams")
    }

    // MARK: - Streams that must be accepted

    /// A whole HVM guest to which `build` may add records.
    private func hvm(
        version: UInt32 = 3, _ build: (inout StreamMaker, inout SeededGenerator) -> Void
    ) throws -> Collector.Epoch {
        var random = TestSeed.generator(720)
        var maker = StreamMaker()
        maker.libxcHeaders(isPV: false, version: version)
        if version == 3 { maker.record(0x10) }
        maker.pages([(0, StrictnessTests.data(1)), (1, StrictnessTests.data(2))])
        build(&maker, &random)
        maker.record(0)
        return try #require(XenStreamTests.read(maker.bytes, as: .libxc).0.epochs.first)
    }

    @Test func parametersMayComeFirst() throws {
        let first = try hvm { $0.hvmTail(&$1, paramsFirst: true) }
        let last = try hvm { $0.hvmTail(&$1) }
        #expect(
            Set(first.state.records.map(\.kind)) == Set(last.state.records.map(\.kind)))
    }

    @Test func emptyRecordsOfOldVersionsMeanNothing() throws {
        let epoch = try hvm { maker, random in
            maker.record(0xa, little(UInt64(0)))
            maker.record(9, StreamMaker.hvmContext(&random))
        }
        #expect(epoch.state.bytes(ofKind: "libxc.HVM_PARAMS") == nil)
        var random = TestSeed.generator(721)
        var maker = StreamMaker()
        maker.libxcHeaders(isPV: true, version: 2)
        maker.record(2, [8, 4, 0, 0, 0, 0, 0, 0])
        maker.record(3, little(UInt32(0)) + little(UInt32(511)) + little(UInt64(7)))
        maker.pages([(0, StrictnessTests.data())])
        maker.pvTail(&random, vcpuCount: 1)
        for type in [UInt32(5), 6, 0xc] { maker.record(type, little(UInt64(0))) }
        maker.record(0)
        let state = try #require(
            XenStreamTests.read(maker.bytes, as: .libxc).0.epochs.first
        ).state
        #expect(state.bytes(ofKind: "libxc.X86_PV_VCPU_XSAVE")?.count == 856)
    }

    @Test func theLastContentOfAFrameCounts() throws {
        let epoch = try hvm { maker, random in
            maker.pages([(1, StrictnessTests.data(3)), (1, StrictnessTests.data(4))])
            maker.pages([(0 | 15 << 60, nil), (5, StrictnessTests.data(5))])
            maker.pages([(5, StrictnessTests.data(6)), (7 | 15 << 60, nil)])
            maker.pages([(7, StrictnessTests.data(7)), (8 | 14 << 60, nil), (9 | 13 << 60, nil)])
            maker.hvmTail(&random)
        }
        #expect(
            epoch.pages.mapValues { $0[0] } == [1: 4, 5: 6, 7: 7, 8: 0])
    }

    @Test func unknownOptionalRecordsAreSkipped() throws {
        let epoch = try hvm { maker, random in
            maker.record(1 << 31 | 0x77, [1, 2, 3])
            maker.hvmTail(&random)
        }
        #expect(!epoch.state.records.contains { $0.kind.contains("77") })
    }

    @Test func pagesAfterVerifyAreNotTaken() throws {
        let epoch = try hvm { maker, random in
            maker.record(0xd)
            maker.pages([(0, StrictnessTests.data(9))])
            maker.hvmTail(&random)
        }
        #expect(epoch.pages[0]?[0] == 1)
    }

    @Test func version2HasItsStaticDataEndInferred() throws {
        let epoch = try hvm(version: 2) { $0.hvmTail(&$1) }
        let again = try write(epoch, as: .libxc)
        #expect(again[15] == 3)
        let (collector, _) = try XenStreamTests.read(again, as: .libxc)
        #expect(collector.epochs[0].pages == epoch.pages)
    }

    // MARK: - False lengths

    @Test func aLengthThatLiesCostsNothing() {
        // 128 MiB are stated, twice, and none are sent.
        for (type, head) in [(UInt32(9), [UInt8]()), (1, little(UInt64(1 << 23)))] {
            var maker = StreamMaker()
            maker.libxcHeaders(isPV: false)
            maker.record(0x10)
            maker.append(little(type) + little(UInt32(128 << 20)) + head)
            let error = #expect(throws: XenStreamError.self) {
                _ = try XenStreamTests.read(maker.bytes, as: .libxc)
            }
            #expect(error?.code == .truncated)
            #expect(error?.offset == UInt64(maker.bytes.count))
        }
    }

    @Test func moreStateThanAGuestHasIsRefused() {
        var random = TestSeed.generator(722)
        var maker = StreamMaker.guest(
            isPV: false, wrapper: .libxl, epochCount: 1, pageCount: 8, &random)
        maker.record(0)
        let head = maker.bytes
        let body = [UInt8](repeating: 7, count: 1 << 20)
        var (piece, number) = (head[...], UInt32(0))
        var reader = XenStreamReader(format: .libxl) { buffer in
            if piece.isEmpty {
                // Each from a different emulator, so that none replaces another.
                number += 1
                guard number < 300 else { return 0 }
                let length = little(UInt32(body.count + 8))
                piece =
                    (little(UInt32(3)) + length + little(UInt32(2)) + little(number) + body)[...]
            }
            let count = min(buffer.count, piece.count)
            buffer.copyBytes(from: piece.prefix(count))
            piece = piece.dropFirst(count)
            return count
        }
        let error = #expect(throws: XenStreamError.self) { try reader.run(Collector()) }
        #expect(error?.message.contains("256 MiB") == true, "\(String(describing: error))")
    }
}
