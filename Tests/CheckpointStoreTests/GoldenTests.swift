import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Foundation
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

/// Repositories of each format version, kept as bytes: all later versions must read them.
///
/// Golden files of a released version are added, never changed. `RECORD_GOLDEN=DIRECTORY` and
/// `RECORD_GOLDEN_PRUNED=DIRECTORY` write new ones.
@Suite struct GoldenTests {
    /// The golden guest's pages at each of its three checkpoints.
    private static func pages(step: Int) -> [UInt64: [UInt8]] {
        var random = SeededGenerator(seed: 42)
        var pages: [UInt64: [UInt8]] = [:]
        for frame in Array(0..<40) + Array(5000..<5010) as [UInt64] {
            var page = [UInt8](repeating: UInt8(frame % 7), count: 4096)
            if frame % 3 == 0 { page = page.map { _ in UInt8.random(in: 0...255, using: &random) } }
            if frame % 10 == 9 { page = [UInt8](repeating: 0, count: 4096) }
            pages[frame] = page
        }
        if step >= 1 {
            for frame in [3, 4, 17, 5001] as [UInt64] {
                pages[frame] = [UInt8](repeating: 200, count: 4096)
            }
            pages[0] = [UInt8](repeating: 0, count: 4096)
        }
        if step >= 2 {
            pages[5009] = nil
            pages[40] = pages[6]
        }
        return pages
    }

    /// The golden guest's disks at each of its checkpoints: one of odd size from the beginning, and
    /// one that is added, grows and shares blocks with the memory.
    private static func disks(step: Int) -> [String: [UInt8]] {
        var root = [UInt8](repeating: 0, count: 70 * 4096 + 512)
        let memory = pages(step: 0)
        for (block, frame) in [(2, 0), (3, 3), (66, 4), (67, 6)] as [(Int, UInt64)] {
            root.replaceSubrange(block * 4096..<block * 4096 + 4096, with: memory[frame] ?? [])
        }
        root[root.count - 1] = 9
        if step >= 1 {
            root.replaceSubrange(2 * 4096..<3 * 4096, with: [UInt8](repeating: 0, count: 4096))
        }
        if step == 0 { return ["xvda": root] }
        let other = [UInt8](repeating: UInt8(step), count: 4096 * (step + 2))
        return ["xvda": root, "xvdb": other]
    }

    private static func state(step: Int) -> GuestState {
        GuestState(records: [.init(kind: "golden", bytes: [1, 2, UInt8(step)])])
    }

    /// Requests under way at each of its checkpoints, of the disks of which that is known; more
    /// than can be stored at the last.
    static func requests(step: Int) -> [String: Int] {
        guard step > 0, let name = disks(step: step).keys.sorted().first else { return [:] }
        return [name: step == 1 ? 0 : 65_534]
    }

    private static func write(to path: FilePath) throws {
        try Repository.create(at: path).close()
        let repository = try Repository.open(
            at: path, .writing, files: PosixFiles(root: path), packByteCountMax: 288 << 10)
        let guest = SimulatedGuest(layout: .empty)
        let group = SimulatedDisks()
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "golden", disks: group)
        for step in 0..<3 {
            group.set(disks(step: step))
            group.setRequestsUnderWay(requests(step: step).mapValues { $0 * 2 })
            let pages = GoldenTests.pages(step: step)
            guest.with { guest in
                guest.state = GoldenTests.state(step: step)
                for frame in Set(pages.keys).union(guest.pages.keys)
                where pages[frame] != guest.pages[frame] {
                    if let page = pages[frame] {
                        guest.write(frame, page)
                    } else {
                        guest.pages[frame] = nil
                    }
                }
            }
            _ = try session.capture(label: step == 1 ? "middle" : nil)
        }
        session.close()
        try repository.close()
    }

    private static func check(_ path: FilePath) throws {
        let independent = try IndependentReader(path: path.string)
        #expect(independent.checkpoints.count == 3)
        let repository = try Repository.open(at: path, .reading)
        let checkpoints = try repository.checkpoints(lineage: "golden")
        #expect(checkpoints.map(\.label) == [nil, "middle", nil])
        for (step, checkpoint) in checkpoints.enumerated() {
            let read = independent.checkpoints[step]
            #expect(read.pages == pages(step: step), "independent reader, step \(step)")
            #expect(read.disks == disks(step: step), "independent reader, step \(step)")
            #expect(read.requests == requests(step: step), "independent reader, step \(step)")
            for disk in checkpoint.disks {
                #expect(disk.requestsUnderWay == requests(step: step)[disk.name])
            }
            for (name, content) in disks(step: step) {
                let image = SimulatedGuest(layout: .empty)
                _ = try repository.restore(checkpoint, volume: name, into: image)
                #expect(image.bytes(content.count) == content, "\(name), step \(step)")
            }
            #expect(read.id == checkpoint.id.digest.bytes)
            #expect(read.root == checkpoint.root.bytes)
            #expect(read.lineage == "golden")
            let guest = SimulatedGuest(layout: .empty)
            _ = try repository.restore(checkpoint, into: guest)
            #expect(guest.with { $0.pages } == pages(step: step), "library, step \(step)")
            #expect(guest.with { $0.state } == state(step: step))
        }
        #expect(try repository.verify().isClean)
    }

    @Test func whatIsWrittenNowReadsIndependently() throws {
        let directory = TemporaryDirectory()
        let path = directory.path.appending("store")
        try GoldenTests.write(to: path)
        try GoldenTests.check(path)
        if let record = ProcessInfo.processInfo.environment["RECORD_GOLDEN"] {
            try FileManager.default.removeItem(atPath: path.appending("index").string)
            try FileManager.default.copyItem(atPath: path.string, toPath: record)
        }
    }

    @Test(arguments: ["v2"])
    func goldenRepositoriesAreRead(version: String) throws {
        let golden = try #require(
            Bundle.module.url(forResource: "Golden", withExtension: nil)?
                .appendingPathComponent(version))
        let directory = TemporaryDirectory()
        let path = directory.path.appending("store")
        try FileManager.default.copyItem(atPath: golden.path, toPath: path.string)
        try GoldenTests.check(path)
    }

    // MARK: - Forgotten and pruned

    /// Steps whose checkpoints are kept.
    private static let keptSteps = [3, 6, 7, 9]

    /// The pruned golden guest's pages at each of its ten checkpoints.
    private static func prunedPages(step: Int) -> [UInt64: [UInt8]] {
        var pages: [UInt64: [UInt8]] = [:]
        for frame in 0..<30 as Range<UInt64> {
            // Each frame changes at a fixed interval of steps; it is sometimes zero.
            let version = UInt64(step) / (frame % 5 + 1)
            var random = SeededGenerator(seed: frame * 1000 + version)
            var page = [UInt8](repeating: 0, count: 4096)
            if version % 4 != 3 {
                for index in 0..<1024 {
                    page[index * 4] = UInt8.random(in: 0...255, using: &random)
                }
            }
            pages[frame] = page
        }
        return pages
    }

    /// The pruned golden guest's disk: pages of its memory, and others of its own.
    private static func prunedDisk(step: Int) -> [UInt8] {
        let pages = prunedPages(step: step)
        return (0..<12 as Range<UInt64>).flatMap { block in
            let page = pages[block * 2] ?? []
            return block % 3 == 0 ? page.map { ~$0 } : page
        }
    }

    private static func writePruned(to path: FilePath) throws {
        try Repository.create(at: path).close()
        let repository = try Repository.open(
            at: path, .writing, files: PosixFiles(root: path), packByteCountMax: 288 << 10)
        // A checkpoint that fills the first pack, and is forgotten.
        let brief = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 30)]))
        for (frame, page) in prunedPages(step: 0) {
            brief.with { $0.write(frame, page.reversed()) }
        }
        let first = try CaptureSession(of: brief, in: repository, lineage: "brief").capture()
        try repository.forget([first.checkpoint.id])
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 30)]))
        let group = SimulatedDisks()
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "golden", disks: group)
        var ids: [CheckpointID] = []
        for step in 0..<10 {
            group.set(["xvda": prunedDisk(step: step)])
            for (frame, page) in prunedPages(step: step) {
                guest.with { if $0.pages[frame] != page { $0.write(frame, page) } }
            }
            guest.with { $0.state = GoldenTests.state(step: step) }
            ids.append(try session.capture(label: Label("step\(step)")).checkpoint.id)
        }
        session.close()
        for steps in [[0, 1, 2], [4, 5, 8]] {
            try repository.forget(steps.map { ids[$0] })
            try repository.planPrune(PruneOptions(unusedPercentMax: 0)).execute()
        }
        try repository.close()
    }

    private static func checkPruned(_ path: FilePath) throws {
        let independent = try IndependentReader(path: path.string)
        #expect(independent.checkpoints.map(\.label) == keptSteps.map { "step\($0)" })
        #expect(!independent.rewrittenPacks.isEmpty)
        let packs = try FileManager.default.contentsOfDirectory(
            atPath: path.appending("packs").string)
        #expect(!packs.contains("00000001.pack"), "a pack was removed")
        let repository = try Repository.open(at: path, .reading)
        let checkpoints = try repository.checkpoints()
        #expect(checkpoints.map(\.label?.text) == keptSteps.map { "step\($0)" })
        for (index, step) in keptSteps.enumerated() {
            #expect(independent.checkpoints[index].pages == prunedPages(step: step))
            #expect(independent.checkpoints[index].disks == ["xvda": prunedDisk(step: step)])
            #expect(independent.checkpoints[index].id == checkpoints[index].id.digest.bytes)
            let guest = SimulatedGuest(layout: .empty)
            _ = try repository.restore(checkpoints[index], into: guest)
            #expect(guest.with { $0.pages } == prunedPages(step: step))
            #expect(guest.with { $0.state } == state(step: step))
        }
        #expect(try repository.verify().isClean)
    }

    @Test func whatPruneWritesReadsIndependently() throws {
        let directory = TemporaryDirectory()
        let path = directory.path.appending("store")
        try GoldenTests.writePruned(to: path)
        try GoldenTests.checkPruned(path)
        if let record = ProcessInfo.processInfo.environment["RECORD_GOLDEN_PRUNED"] {
            for derived in ["index", "leases"] {
                try? FileManager.default.removeItem(atPath: path.appending(derived).string)
            }
            try FileManager.default.copyItem(atPath: path.string, toPath: record)
        }
    }

    @Test(arguments: ["v2-pruned"])
    func goldenPrunedRepositoriesAreRead(version: String) throws {
        let golden = try #require(
            Bundle.module.url(forResource: "Golden", withExtension: nil)?
                .appendingPathComponent(version))
        let directory = TemporaryDirectory()
        let path = directory.path.appending("store")
        try FileManager.default.copyItem(atPath: golden.path, toPath: path.string)
        try GoldenTests.checkPruned(path)
    }

    @Test func everyFlippedByteOfAPackIsFound() throws {
        let directory = TemporaryDirectory()
        let path = directory.path.appending("store")
        try GoldenTests.write(to: path)
        let packs = path.appending("packs").string
        var random = TestSeed.generator(300)
        var count = 0
        for name in try FileManager.default.contentsOfDirectory(atPath: packs).sorted() {
            let url = URL(fileURLWithPath: "\(packs)/\(name)")
            let whole = try Data(contentsOf: url)
            // Each of the first 600 bytes and the last 1200, a sample of the rest.
            let offsets = (0..<whole.count).filter { offset in
                TestSeed.isLong || offset < 600 && offset % 3 == 0
                    || offset >= whole.count - 1200 && offset % 5 == 0
                    || Int.random(in: 0..<400, using: &random) == 0
            }
            for offset in offsets {
                var damaged = whole
                damaged[offset] ^= UInt8.random(in: 1...255, using: &random)
                try damaged.write(to: url)
                let report = try Repository.open(at: path, .reading).verify()
                #expect(!report.isClean, "byte \(offset) of \(name)")
                #expect(report.corruptions.contains { $0.file == "packs/\(name)" })
                count += 1
            }
            try whole.write(to: url)
        }
        print("flipped \(count) bytes one at a time, each found")
        #expect(try Repository.open(at: path, .reading).verify().isClean)
    }
}
