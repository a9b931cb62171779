import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Foundation
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointEngine

/// Checkpoints of memory and disks, against copies that were kept beside them.
@Suite struct VolumeTests {
    private let directory = TemporaryDirectory()
    private static let names = ["xvda", "xvdb", "xvdc"]

    /// What a checkpoint must hold.
    private struct Expected {
        let pages: [UInt64: [UInt8]]
        let disks: [String: [UInt8]]
    }

    private static func block(_ random: inout SeededGenerator) -> [UInt8] {
        switch Int.random(in: 0..<4, using: &random) {
        case 0: [UInt8](repeating: 0, count: 4096)
        case 1: [UInt8](repeating: .random(in: 1...3, using: &random), count: 4096)
        default: (0..<4096).map { _ in .random(in: 0...255, using: &random) }
        }
    }

    /// Changes the disks: writes, and now and then another size, one more or one fewer.
    private static func change(
        _ disks: [String: [UInt8]], _ random: inout SeededGenerator
    ) -> [String: [UInt8]] {
        var disks = disks
        for name in names {
            guard var content = disks[name] else {
                if Int.random(in: 0..<6, using: &random) == 0 {
                    let count = 512 * Int.random(in: 1...600, using: &random)
                    disks[name] = [UInt8](repeating: 0, count: count)
                }
                continue
            }
            switch Int.random(in: 0..<24, using: &random) {
            case 0: disks[name] = nil
            case 1:
                content = Array(content.prefix(512 * Int.random(in: 1...600, using: &random)))
                disks[name] = content
            case 2:
                content += [UInt8](
                    repeating: 0, count: 512 * Int.random(in: 1...100, using: &random))
                disks[name] = content
            default:
                for _ in 0..<Int.random(in: 0...8, using: &random) {
                    let start =
                        Int.random(in: 0..<(content.count + 4095) / 4096, using: &random) * 4096
                    let count = min(4096, content.count - start)
                    content.replaceSubrange(
                        start..<start + count, with: block(&random).prefix(count))
                }
                disks[name] = content
            }
        }
        return disks
    }

    private func check(
        _ checkpoint: Checkpoint, _ expected: Expected, _ repository: Repository, _ note: String
    ) throws {
        #expect(
            checkpoint.disks.map { $0.name }.sorted() == expected.disks.keys.sorted(), "\(note)")
        let guest = SimulatedGuest(layout: .empty)
        try repository.restore(checkpoint, into: guest)
        #expect(guest.with { $0.pages } == expected.pages, "\(note)")
        for (name, content) in expected.disks {
            let volume = try checkpoint.volume(named: name)
            #expect(volume.byteCount == UInt64(content.count), "\(note), \(name)")
            let image = SimulatedGuest(layout: .empty)
            let result = try repository.restore(checkpoint, volume: name, into: image)
            #expect(image.bytes(content.count) == content, "\(note), \(name)")
            #expect(result.root == volume.root)
            let reader = try VolumeReader(checkpoint, from: repository, volume: name)
            var read = [UInt8](repeating: 0, count: (content.count + 4095) / 4096 * 4096)
            try reader.read { runs, contents in
                var start = 0
                for run in runs {
                    let first = Int(run.first.rawValue) * 4096
                    read.replaceSubrange(
                        first..<first + run.byteCount,
                        with: contents[start..<start + run.byteCount])
                    start += run.byteCount
                }
            }
            #expect(Array(read.prefix(content.count)) == content, "\(note), \(name), read")
        }
    }

    @Test(arguments: 0..<6)
    func everyVolumeOfEveryCheckpointComesBack(round: Int) throws {
        var random = TestSeed.generator(1600 + UInt64(round))
        let path = directory.path.appending("store")
        var repository = try Repository.create(at: path)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 40))
        let group = SimulatedDisks()
        group.set(["xvda": [UInt8](repeating: 0, count: 100 * 4096)])
        var session = try CaptureSession(
            of: guest, in: repository, lineage: "web", disks: group)
        var expected: [(CheckpointID, Expected)] = []
        var failures = 0
        for step in 0..<60 {
            group.set(VolumeTests.change(group.contents, &random))
            for _ in 0..<Int.random(in: 0...6, using: &random) {
                let page = VolumeTests.block(&random)
                guest.with { $0.write(.random(in: 0..<40, using: &random), page) }
            }
            group.setKnowsChanges(Int.random(in: 0..<4, using: &random) > 0)
            let calls: [SimulatedDisks.Call] = [
                .disks, .prepare, .cut, .changed, .stored, .read, .release,
            ]
            if Int.random(in: 0..<3, using: &random) == 0,
                let call = calls.randomElement(using: &random)
            {
                group.fail(call, after: .random(in: 0...2, using: &random))
            }
            do {
                let checkpoint = try session.capture().checkpoint
                expected.append(
                    (
                        checkpoint.id,
                        Expected(pages: guest.with { $0.pages }, disks: group.contents)
                    ))
            } catch {
                failures += 1
            }
            #expect(!guest.with { $0.isPaused })
            if step % 7 == 3, expected.count > 3 {
                // Forgets some, and takes their space.
                let gone = expected.remove(at: .random(in: 0..<expected.count - 1, using: &random))
                try repository.forget([gone.0])
                if Bool.random(using: &random) {
                    try repository.planPrune(PruneOptions(unusedPercentMax: 0)).execute()
                }
            }
            if step % 20 == 19 {
                session.close()
                try repository.close()
                if Bool.random(using: &random) {
                    try FileManager.default.removeItem(atPath: "\(path)/index")
                }
                repository = try Repository.open(at: path, .writing)
                session = try CaptureSession(
                    of: guest, in: repository, lineage: "web", disks: group)
            }
        }
        session.close()
        #expect(group.standing.isEmpty, "no cut is left")
        for (id, content) in expected {
            try check(
                repository.checkpoint(id: id), content, repository, "round \(round), \(id.short)")
        }
        let report = try repository.verify()
        #expect(report.isClean, "\(report.findings)")
        #expect(expected.count > 10 && failures > 0)
        try repository.close()
    }

    @Test func theCutIsOfTheInstantOfThePause() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let group = SimulatedDisks()
        group.set(["xvda": [UInt8](repeating: 1, count: 8192)])
        group.inCut { #expect(guest.with { $0.isPaused }, "the guest is paused in the cut") }
        let session = try CaptureSession(of: guest, in: repository, lineage: "web", disks: group)
        let pending = try session.begin()
        // The guest runs on and writes; the checkpoint has what was there.
        group.set(["xvda": [UInt8](repeating: 2, count: 8192)])
        let result = try pending.wait()
        let image = SimulatedGuest(layout: .empty)
        try repository.restore(result.checkpoint, volume: "xvda", into: image)
        #expect(image.bytes(8192) == [UInt8](repeating: 1, count: 8192))
        #expect(result.diskTimes.cut == .microseconds(30))
        #expect(result.checkpoint.cutTime == .microseconds(30))
        #expect(result.checkpoint.drainTime == .microseconds(20))
        session.close()
    }

    @Test func aCheckpointSaysHowManyRequestsWereUnderWay() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let disk = [UInt8](repeating: 1, count: 8192)
        let group = SimulatedDisks()
        group.set(["a": disk, "b": disk])
        let session = try CaptureSession(of: guest, in: repository, lineage: "web", disks: group)
        var ids: [CheckpointID] = []
        for requests in [["b": 16], [:], ["a": 0, "b": 65_534], ["a": 70_000]] as [[String: Int]] {
            group.setRequestsUnderWay(requests)
            ids.append(try session.capture().checkpoint.id)
        }
        session.close()
        let found = try ids.map { id in
            try repository.checkpoint(id: id).volumes.map(\.requestsUnderWay)
        }
        #expect(
            found == [
                [nil, nil, 16], [nil, nil, nil], [nil, 0, 65_534], [nil, 65_534, nil],
            ])
    }

    @Test func aDiskBlockThatMemoryHoldsIsStoredOnce() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        var random = TestSeed.generator(1610)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 64))
        var disk: [UInt8] = []
        for frame in 0..<64 as Range<UInt64> {
            let page = (0..<4096).map { _ in UInt8.random(in: 1...255, using: &random) }
            guest.with { $0.write(frame, page) }
            disk += page
        }
        let group = SimulatedDisks()
        group.set(["xvda": disk])
        let session = try CaptureSession(of: guest, in: repository, lineage: "web", disks: group)
        let checkpoint = try session.capture().checkpoint
        #expect(checkpoint.storedPageCount == 64)
        #expect(checkpoint.changedPageCount == 128)
        #expect(checkpoint.disks[0].pageCount == 64)
        session.close()
    }

    @Test func anUnchangedDiskCostsNothing() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let group = SimulatedDisks()
        group.set(["xvda": [UInt8](repeating: 7, count: 512 * 4096)])
        for knows in [true, false] {
            group.setKnowsChanges(knows)
            let session = try CaptureSession(
                of: guest, in: repository, lineage: "web", disks: group)
            _ = try session.capture()
            let second = try session.capture().checkpoint
            #expect(second.disks[0].changedPageCount == 0 && second.storedPageCount == 0)
            #expect(second.addedByteCount < 1024)
            session.close()
        }
    }

    /// What a cut knows of changes need not contain the block in which a disk ends: what is cut off
    /// there reads as zeros.
    @Test func theBlockInWhichAResizedDiskEndsIsRead() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let group = SimulatedDisks()
        group.set(["xvda": [UInt8](repeating: 7, count: 4 * 4096)])
        let session = try CaptureSession(of: guest, in: repository, lineage: "web", disks: group)
        defer { session.close() }
        _ = try session.capture()
        for count in [2 * 4096 + 512, 2 * 4096, 4096 + 1024, 512, 6 * 4096 - 512, 6 * 4096] {
            var disk = Array((group.contents["xvda"] ?? []).prefix(count))
            disk += [UInt8](repeating: 0, count: count - disk.count)
            group.set(["xvda": disk])
            let checkpoint = try session.capture().checkpoint
            let image = SimulatedGuest(layout: .empty)
            try repository.restore(checkpoint, volume: "xvda", into: image)
            #expect(checkpoint.disks[0].byteCount == UInt64(count))
            #expect(image.bytes(6 * 4096).prefix(count) == disk[...], "\(count)")
            #expect(image.bytes(6 * 4096).dropFirst(count).allSatisfy { $0 == 0 }, "\(count)")
        }
    }

    @Test func memoryAloneIsRefusedUnlessThatIsWanted() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let group = SimulatedDisks()
        group.set(["xvda": [UInt8](repeating: 1, count: 4096)])
        let session = try CaptureSession(of: guest, in: repository, lineage: "web", disks: group)
        _ = try session.capture()
        session.close()
        let error = try #require(throws: CheckpointError.self) {
            _ = try CaptureSession(of: guest, in: repository, lineage: "web")
        }
        #expect(error.code == .invalidOption && error.message.contains("omitsDisks"))
        var options = CaptureOptions()
        options.omitsDisks = true
        let other = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        let checkpoint = try other.capture().checkpoint
        #expect(checkpoint.omitsDisks && checkpoint.disks.isEmpty)
        other.close()
        #expect(throws: CheckpointError.self) {
            _ = try CaptureSession(of: guest, in: repository, lineage: "web")
        }
        #expect(try repository.verify().isClean)
    }

    /// An image in an array.
    private struct Bytes: ImageSource {
        let bytes: [UInt8]
        var byteCount: Int { bytes.count }

        func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) {
            buffer.copyBytes(from: bytes[offset..<offset + buffer.count])
        }

        func checkUnchanged() {}
    }

    @Test func memoryIsLeftOutOnlyOnPurpose() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let image = Bytes(bytes: [UInt8](repeating: 1, count: 8192))
        let disks = [RawDiskImage(name: "xvda", source: image)]
        func add(_ memory: Bytes?, _ options: CaptureOptions = .init()) throws -> Checkpoint {
            try repository.importVolumes(
                memory: memory, disks: disks, lineage: "web", options: options)
        }
        #expect(try add(nil).memory.pageCount == 0)
        // Memory may come, with any size.
        #expect(try add(image).memory.pageCount == 2)
        let error = #expect(throws: CheckpointError.self) { try add(nil) }
        #expect(error?.code == .invalidOption)
        #expect(error?.message.contains("--accept-guest-change") == true)
        var options = CaptureOptions()
        options.acceptsGuestChange = true
        #expect(try add(nil, options).memory.pageCount == 0)
        let larger = Bytes(bytes: [UInt8](repeating: 2, count: 12288))
        #expect(try add(larger).memory.pageCount == 3)
        #expect(throws: CheckpointError.self) { try add(image) }
        #expect(try repository.checkpoints().count == 4 && repository.verify().isClean)
    }

    /// A clock that was set back, and a number that cannot be.
    @Test func negativeFactsOfACutTrapNothing() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let group = BackwardDisks()
        let session = try CaptureSession(of: guest, in: repository, lineage: "web", disks: group)
        let taken = try session.capture().checkpoint
        #expect(taken.cutTime == .zero && taken.drainTime == .zero)
        #expect(taken.disks.map(\.requestsUnderWay) == [nil])
        session.close()
        #expect(try repository.verify().isClean)
    }

    private final class BackwardDisks: DiskGroup {
        private final class Cut: DiskCut {
            let inner: any DiskCut
            init(_ inner: any DiskCut) { self.inner = inner }
            var disks: [GuestDisk] { inner.disks }
            var name: String { inner.name }
            func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
                _ = try inner.cut(within: budget)
                return DiskCutTimes(drain: .seconds(-3), cut: .nanoseconds(-1))
            }
            func requestsUnderWay(ofDisk index: Int) -> Int? { -3 }
            func changedBlocks(
                ofDisk index: Int, since earlier: any DiskCut
            ) throws(GuestError) -> [BlockRange]? { nil }
            func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
                try inner.storedBlocks(ofDisk: index)
            }
            func read(
                _ blocks: BlockRange, ofDisk index: Int,
                into destination: UnsafeMutableRawBufferPointer
            ) throws(GuestError) {
                try inner.read(blocks, ofDisk: index, into: destination)
            }
            func release() throws(GuestError) { try inner.release() }
        }

        private let inner = SimulatedDisks()
        init() { inner.set(["xvda": [UInt8](repeating: 1, count: 8192)]) }
        func disks() throws(GuestError) -> [GuestDisk] { try inner.disks() }
        func prepareCut() throws(GuestError) -> any DiskCut { Cut(try inner.prepareCut()) }
        func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? { nil }
    }

    @Test func namesThatLookEqualAreTwoDisks() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        // The letter, and the sign of the unit: equal for Swift, and other bytes.
        let names = ["\u{c5}", "\u{212b}"]
        let images = names.enumerated().map { index, name in
            RawDiskImage(
                name: name, source: Bytes(bytes: [UInt8](repeating: UInt8(index + 1), count: 8192)))
        }
        let checkpoint = try repository.importVolumes(
            memory: nil, disks: images, lineage: "web")
        for (index, name) in names.enumerated() {
            let image = SimulatedGuest(layout: .empty)
            try repository.restore(checkpoint, volume: name, into: image)
            #expect(image.bytes(8192) == [UInt8](repeating: UInt8(index + 1), count: 8192))
        }
        #expect(try repository.verify().isClean)
    }

    @Test func aGuestWithDisksIsNotRevertedInPlace() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let group = SimulatedDisks()
        group.set(["xvda": [UInt8](repeating: 1, count: 4096)])
        let session = try CaptureSession(of: guest, in: repository, lineage: "web", disks: group)
        let checkpoint = try session.capture().checkpoint
        let page = [UInt8](repeating: 5, count: Page.byteCount)
        guest.with { $0.write(1, page) }
        let error = try #require(throws: CheckpointError.self) {
            try session.revert(to: checkpoint)
        }
        #expect(error.guestError?.code == .unsupported)
        #expect(guest.with { $0.pages[1] == page && !$0.isPaused })
        session.close()
    }

    @Test func aCutThatIsKeptSparesTheNextSessionTheComparison() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let group = SimulatedDisks()
        group.set(["xvda": [UInt8](repeating: 1, count: 100 * 4096)])
        var options = CaptureOptions()
        options.keepsDiskCut = true
        let first = try CaptureSession(
            of: guest, in: repository, lineage: "web", disks: group, options: options)
        let checkpoint = try first.capture().checkpoint
        first.close()
        #expect(group.standing == [checkpoint.cutName])
        group.set([
            "xvda": [UInt8](repeating: 1, count: 99 * 4096) + [UInt8](repeating: 2, count: 4096)
        ])
        // Everything would be read if the cut were not found.
        group.fail(.stored)
        group.fail(.read, after: 1)
        let second = try CaptureSession(of: guest, in: repository, lineage: "web", disks: group)
        #expect(try second.capture().checkpoint.disks[0].changedPageCount == 1)
        second.close()
        #expect(group.standing.isEmpty)
    }

    @Test(arguments: [
        "", "memory", "-a", "a/b", "a b", String(repeating: "x", count: 256),
    ])
    func aDiskNeedsAValidName(name: String) throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let group = SimulatedDisks()
        group.set([name: [UInt8](repeating: 1, count: 4096)])
        let session = try CaptureSession(of: guest, in: repository, lineage: "web", disks: group)
        let error = try #require(throws: CheckpointError.self) { _ = try session.capture() }
        #expect(error.repositoryError?.code == .invalidName)
        #expect(try repository.checkpoints().isEmpty && !guest.with { $0.isPaused })
        group.set(["xvda": [UInt8](repeating: 1, count: 4096)])
        _ = try session.capture()
        session.close()
        #expect(group.standing.isEmpty)
    }
}
