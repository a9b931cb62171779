import SystemPackage
import Testing
import Varve
import VarveTestSupport

/// Xen streams in a repository: each epoch becomes a checkpoint, whatever happens to the stream.
@Suite struct XenImportTests {
    private let directory = TemporaryDirectory()

    private func repository() throws -> Repository {
        try Repository.create(at: directory.path.appending("store"))
    }

    private static func source(
        _ bytes: ArraySlice<UInt8>
    ) -> (UnsafeMutableRawBufferPointer) -> Int {
        var rest = bytes
        return { buffer in
            let count = min(buffer.count, rest.count)
            buffer.copyBytes(from: rest.prefix(count))
            rest = rest.dropFirst(count)
            return count
        }
    }

    /// A checkpoint written as a libxc stream.
    private func stream(_ checkpoint: Checkpoint, _ repository: Repository) throws -> NaiveStream {
        var output: [UInt8] = []
        try repository.export(checkpoint, as: .libxc) {
            $0.withUnsafeBytes { output.append(contentsOf: $0) }
        }
        return NaiveStream(output)
    }

    /// The parts that must be equal when one side was written as a bare libxc stream.
    private static func differences(
        _ checkpoint: NaiveStream, _ source: NaiveStream, _ epoch: Int
    ) -> [String] {
        checkpoint.differences(0, from: source, epoch).filter { !$0.contains("libxl.") }
    }

    @Test(arguments: [true, false])
    func eachEpochIsACheckpointWithTheMemoryOfThatInstant(_ isPV: Bool) throws {
        let repository = try repository()
        var random = TestSeed.generator(740)
        let maker = StreamMaker.guest(
            isPV: isPV, wrapper: .libxl, epochCount: 6, pageCount: 400, &random)
        let naive = NaiveStream(maker.bytes)
        var published: [CheckpointID] = []
        let result = try repository.importXenStream(
            .libxl, lineage: "web", label: "first", published: { published.append($0.id) },
            source: XenImportTests.source(maker.bytes[...]))
        #expect(result.cutShort?.code == .truncated)
        #expect(result.checkpoints.count == 6 && result.summary.epochCount == 6)
        #expect(published == result.checkpoints.map(\.id))
        #expect(try repository.checkpoint(named: "first").id == published[0])
        for (index, checkpoint) in result.checkpoints.enumerated() {
            let again = try stream(checkpoint, repository)
            #expect(XenImportTests.differences(again, naive, index).isEmpty)
        }
        try repository.close()
    }

    @Test func aSecondSaveCostsItsChanges() throws {
        let repository = try repository()
        var random = TestSeed.generator(741)
        var maker = StreamMaker()
        func save(changed: ClosedRange<UInt64>) -> [UInt8] {
            maker = StreamMaker()
            maker.libxcHeaders(isPV: false)
            maker.record(0x10)
            var contents = SeededGenerator(seed: 5)
            for start in stride(from: UInt64(0), to: 512, by: 64) {
                maker.pages(
                    (start..<start + 64).map { frame in
                        let old = some(64, &contents)
                        let pattern = changed.contains(frame) ? some(64, &random) : old
                        return (frame, Array((0..<64).map { _ in pattern }.joined()))
                    })
            }
            maker.hvmTail(&random)
            maker.record(0)
            return maker.bytes
        }
        var changes: [Int] = []
        for changed in [UInt64(0)...511, 3...5, 100...100] {
            let result = try repository.importXenStream(
                .libxc, lineage: "web", source: XenImportTests.source(save(changed: changed)[...]))
            changes.append(result.checkpoints[0].changedPageCount)
        }
        // The third differs from the second where either was changed.
        #expect(changes == [512, 512, 4])
        try repository.close()
    }

    @Test func framesThatAStreamLacksAreGone() throws {
        let repository = try repository()
        var random = TestSeed.generator(742)
        for frames in [[UInt64(0), 1, 2, 9], [0, 9, 10]] {
            var maker = StreamMaker()
            maker.libxcHeaders(isPV: false)
            maker.record(0x10)
            maker.pages(frames.map { ($0, [UInt8](repeating: UInt8($0 + 1), count: 4096)) })
            maker.hvmTail(&random)
            maker.record(0)
            let result = try repository.importXenStream(
                .libxc, lineage: "web", source: XenImportTests.source(maker.bytes[...]))
            let again = try stream(result.checkpoints[0], repository)
            #expect(again.epochs[0].pages.keys.sorted() == frames)
            #expect(result.checkpoints[0].pageCount == frames.count)
        }
        try repository.close()
    }

    /// Truncated at every boundary of a record and at random places: whole epochs only, each
    /// correct.
    @Test func aStreamThatIsCutLeavesWholeEpochs() throws {
        let repository = try repository()
        var random = TestSeed.generator(743)
        let maker = StreamMaker.guest(
            isPV: false, wrapper: .libxl, epochCount: 4, pageCount: 40, &random)
        let bytes = maker.bytes
        let naive = NaiveStream(bytes)
        var roots: [PageDigest] = []
        var cuts = maker.boundaries + [maker.bytes.count]
        for _ in 0..<1000 { cuts.append(.random(in: 0...bytes.count, using: &random)) }
        let whole = try repository.importXenStream(
            .libxl, lineage: "whole", source: XenImportTests.source(bytes[...]))
        for (index, checkpoint) in whole.checkpoints.enumerated() {
            let again = try stream(checkpoint, repository)
            #expect(XenImportTests.differences(again, naive, index).isEmpty)
            roots.append(checkpoint.memory.root)
        }
        var counts = [Int](repeating: 0, count: 5)
        for (number, cut) in cuts.enumerated() {
            let lineage = try LineageName("cut-\(number)")
            let expected = NaiveStream(Array(bytes[..<cut])).epochs.count
            var published: [Checkpoint] = []
            var message = ""
            do throws(CheckpointError) {
                let result = try repository.importXenStream(
                    .libxl, lineage: lineage, published: { published.append($0) },
                    source: XenImportTests.source(bytes[..<cut]))
                message = result.cutShort?.message ?? ""
                #expect(result.summary.hasPartialEpoch || expected > 0)
            } catch {
                let cause = error.cause as? XenStreamError
                #expect(error.code == .invalidStream && cause?.code == .truncated)
                #expect(expected == 0)
                message = error.message
            }
            #expect(message.hasPrefix("the stream ends at offset \(cut), within "), "\(message)")
            #expect(published.map(\.memory.root) == Array(roots[..<expected]), "cut at \(cut)")
            #expect(try repository.checkpoints(lineage: lineage).count == expected)
            counts[expected] += 1
        }
        print("cut \(cuts.count) times; whole epochs left, by number of cuts: \(counts)")
        #expect(try repository.verify().isClean)
        try repository.close()
    }

    /// A wrong record after whole epochs: they are kept, and the error is reported.
    @Test func aDamagedStreamLeavesWholeEpochs() throws {
        let repository = try repository()
        var random = TestSeed.generator(744)
        var maker = StreamMaker.guest(
            isPV: false, wrapper: .libxc, epochCount: 2, pageCount: 40, &random)
        maker.record(0x55)
        let error = #expect(throws: CheckpointError.self) {
            try repository.importXenStream(
                .libxc, lineage: "web", source: XenImportTests.source(maker.bytes[...]))
        }
        #expect(error?.code == .invalidStream && error?.cause is XenStreamError)
        #expect(try repository.checkpoints(lineage: "web").count == 2)
        try repository.close()
    }

    /// The records after the last CHECKPOINT of a stream that ends are not an epoch.
    @Test func aPartEpochBeforeTheEndIsDropped() throws {
        let repository = try repository()
        var random = TestSeed.generator(745)
        var maker = StreamMaker.guest(
            isPV: false, wrapper: .libxc, epochCount: 2, pageCount: 40, &random)
        maker.pages([(3, [UInt8](repeating: 0xee, count: 4096))])
        maker.record(0)
        let result = try repository.importXenStream(
            .libxc, lineage: "web", source: XenImportTests.source(maker.bytes[...]))
        #expect(result.cutShort == nil && result.checkpoints.count == 2)
        #expect(result.summary.hasPartialEpoch)
        try repository.close()
    }

    @Test func aCheckpointOfAnotherKindIsNoGuestOfXen() throws {
        let repository = try repository()
        var rest = 16 * Page.byteCount
        let checkpoint = try repository.importImage(lineage: "raw") { buffer in
            let count = min(rest, buffer.count)
            buffer.initializeMemory(as: UInt8.self, repeating: 3)
            rest -= count
            return count
        }
        for format in [ExportFormat.xl(configuration: nil), .libxc, .elf] {
            var isTouched = false
            let error = #expect(throws: CheckpointError.self) {
                try repository.export(checkpoint, as: format) { _ in
                    isTouched = true
                }
            }
            #expect(error?.code == .invalidStream && !isTouched)
            #expect((error?.cause as? XenStreamError)?.code == .noState)
        }
        var raw: [UInt8] = []
        try repository.export(checkpoint, as: .raw) {
            $0.withUnsafeBytes { raw.append(contentsOf: $0) }
        }
        #expect(raw == [UInt8](repeating: 3, count: 16 * Page.byteCount))
        try repository.close()
    }
}
