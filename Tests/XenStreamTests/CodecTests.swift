import GuestModel
import Testing
import VarveTestSupport
import XenStream

/// The codec agrees with a naive reader on streams of every kind.
@Suite struct CodecTests {
    private static let formats: [StreamMaker.Wrapper: XenStreamFormat] = [
        .libxc: .libxc, .libxl: .libxl, .xl: .xl, .xenopsd: .xenopsd,
    ]

    @Test(arguments: StreamMaker.Wrapper.allCases)
    func readsWhatANaiveReaderReads(_ wrapper: StreamMaker.Wrapper) throws {
        let format = try #require(CodecTests.formats[wrapper])
        for (salt, isPV) in [(UInt64(1), true), (2, false)] {
            for version in [UInt32(2), 3] {
                for epochCount in wrapper == .xenopsd ? [0] : [0, 1, 4] {
                    var random = TestSeed.generator(700 + salt)
                    let maker = StreamMaker.guest(
                        isPV: isPV, wrapper: wrapper, version: version, epochCount: epochCount,
                        pageCount: 120, &random)
                    try check(maker, format, isPlain: epochCount == 0, &random)
                }
            }
        }
    }

    private func check(
        _ maker: StreamMaker, _ format: XenStreamFormat, isPlain: Bool,
        _ random: inout SeededGenerator
    ) throws {
        let bytes = maker.bytes
        #expect(bytes.withUnsafeBytes { XenStreamFormat(detecting: $0) } == format)
        let naive = NaiveStream(bytes)
        let collector = Collector()
        var position = 0
        var pieces = random
        var reader = XenStreamReader(format: format) { buffer in
            let most = Int.random(in: 1...9000, using: &pieces)
            let count = min(buffer.count, bytes.count - position, most)
            buffer.copyBytes(from: bytes[position..<position + count])
            position += count
            return count
        }
        if isPlain {
            try reader.run(collector)
        } else {
            let error = #expect(throws: XenStreamError.self) { try reader.run(collector) }
            #expect(error?.code == .truncated)
        }
        #expect(reader.summary.epochCount == naive.epochs.count)
        #expect(reader.summary.isCheckpointed == !isPlain)
        #expect(!reader.summary.hasPartialEpoch)
        #expect(collector.epochs.count == naive.epochs.count)
        for (index, epoch) in collector.epochs.enumerated() {
            let pages = naive.epochs[index].pages.compactMapValues { naive.content($0) }
            #expect(epoch.pages.keys.sorted() == pages.keys.sorted())
            #expect(pages.allSatisfy { epoch.pages[$0.key]?[...] == $0.value })
            // Rewritten, it is the same guest.
            let again = NaiveStream(try write(epoch, as: .libxc))
            let differences = again.differences(0, from: naive, index).filter {
                !$0.contains("libxl.") && !$0.contains("xenopsd.")
            }
            #expect(differences.isEmpty, "\(differences.prefix(5))")
            guard naive.configuration != nil else { continue }
            let whole = NaiveStream(try write(epoch, as: .xl))
            #expect(whole.differences(0, from: naive, index).isEmpty)
            #expect(whole.configuration == naive.configuration)
        }
    }

    @Test func twoWritesAreTheSameBytes() throws {
        var random = TestSeed.generator(710)
        let maker = StreamMaker.guest(
            isPV: true, wrapper: .xl, epochCount: 0, pageCount: 80, &random)
        let (first, _) = try read(maker.bytes, as: .xl)
        let once = try write(first.epochs[0], as: .xl)
        let (second, _) = try read(once, as: .xl)
        #expect(try write(second.epochs[0], as: .xl) == once)
        #expect(second.epochs[0].state == first.epochs[0].state)
    }

    @Test func aConfigurationCanBeReplaced() throws {
        var random = TestSeed.generator(711)
        let maker = StreamMaker.guest(
            isPV: false, wrapper: .libxc, epochCount: 0, pageCount: 40, &random)
        let (collector, _) = try read(maker.bytes, as: .libxc)
        let error = #expect(throws: XenStreamError.self) {
            try write(collector.epochs[0], as: .xl)
        }
        #expect(error?.code == .noState)
        let json = try write(
            collector.epochs[0], as: .xl, configuration: Array(" {\"c_info\":{}}".utf8))
        #expect(NaiveStream(json).configuration == Array(" {\"c_info\":{}}\0".utf8))
        #expect(json[36] == 3)
        let text = try write(
            collector.epochs[0], as: .xl, configuration: Array("name = \"web\"".utf8))
        #expect(text[36] == 2)
        let (again, _) = try read(text, as: .xl)
        #expect(
            again.epochs[0].state.bytes(ofKind: XenStateKind.configurationText)
                == Array("name = \"web\"\0".utf8))
    }

    @Test func otherStateIsNoGuestOfXen() {
        let state = GuestState(records: [.init(kind: "process.state", bytes: [1])])
        let error = #expect(throws: XenStreamError.self) {
            _ = try XenStreamWriter(.libxc, state: state) { _ in }
        }
        #expect(error?.code == .noState)
        #expect(XenGuestDescription(state) == nil)
    }

    @Test func aGuestIsDescribed() throws {
        var random = TestSeed.generator(712)
        let pv = try read(
            StreamMaker.guest(isPV: true, wrapper: .xl, epochCount: 0, pageCount: 30, &random)
                .bytes, as: .xl
        ).0.epochs[0]
        let description = try #require(XenGuestDescription(pv.state))
        #expect(description.kind == .pv)
        #expect(description.vcpuCount == 2)
        #expect(description.xenMajor == 4 && description.xenMinor == 17)
        #expect(description.hasDeviceModel)
        #expect(description.configurationJSON == Array("{\"c_info\":{\"name\":\"web\"}}".utf8))
        let hvm = try read(
            StreamMaker.guest(isPV: false, wrapper: .libxc, epochCount: 0, pageCount: 30, &random)
                .bytes, as: .libxc
        ).0.epochs[0]
        #expect(XenGuestDescription(hvm.state)?.vcpuCount == 1)
        #expect(XenGuestDescription(hvm.state)?.configurationJSON == nil)
    }
}
