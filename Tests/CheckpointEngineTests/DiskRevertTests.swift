import CheckpointIndex
import CheckpointStore
import Foundation
import GuestModel
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointEngine

/// Memory and disks of a process that go back together, against copies that were kept beside them.
@Suite struct DiskRevertTests {
    private let directory = TemporaryDirectory(inMemory: true)

    /// What the guest had at a checkpoint.
    private struct Copy: Equatable {
        var pages: [UInt64: [UInt8]]
        var disks: [String: [UInt8]]
    }

    private final class World {
        let repository: Repository
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 32))
        let group = OwnDisks()
        var session: CaptureSession
        var copies: [(checkpoint: Checkpoint, copy: Copy)] = []
        var random: SeededGenerator

        init(_ directory: TemporaryDirectory, salt: UInt64) throws {
            random = TestSeed.generator(salt)
            repository = try Repository.create(at: directory.path.appending("store"))
            group.inner.set([
                "a": [UInt8](repeating: 0, count: 10 * 4096), "b": [7] + World.zeros(511),
            ])
            session = try CaptureSession(
                of: guest, in: repository, lineage: "own", disks: group)
        }

        var now: Copy {
            Copy(pages: guest.with { $0.pages }, disks: group.inner.contents)
        }

        static func zeros(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

        func reopen() throws {
            session.close()
            session = try CaptureSession(
                of: guest, in: repository, lineage: "own", disks: group)
        }

        func block() -> [UInt8] {
            Bool.random(using: &random)
                ? World.zeros(4096)
                : [UInt8](repeating: .random(in: 0...5, using: &random), count: 4096)
        }

        /// The guest writes memory and disks, some blocks with what they hold, and resizes them.
        func write() {
            for _ in 0..<Int.random(in: 0...6, using: &random) {
                let frame = UInt64.random(in: 0..<32, using: &random)
                let page = block()
                guest.with { $0.write(frame, page) }
            }
            var disks = group.inner.contents
            for name in disks.keys.sorted() where Int.random(in: 0..<4, using: &random) > 0 {
                var bytes = disks[name] ?? []
                if Int.random(in: 0..<3, using: &random) == 0 {
                    let count = Int.random(in: 1...40, using: &random) * 1536 / 512 * 512
                    bytes = Array((bytes + World.zeros(max(0, count - bytes.count)))[..<count])
                }
                for _ in 0..<Int.random(in: 0...4, using: &random) {
                    let start = Int.random(in: 0..<bytes.count, using: &random) / 4096 * 4096
                    let end = min(bytes.count, start + 4096)
                    bytes.replaceSubrange(start..<end, with: block()[..<(end - start)])
                }
                disks[name] = bytes
            }
            group.inner.set(disks)
        }

        func capture() throws {
            let result = try session.capture()
            copies.append((result.checkpoint, now))
            for disk in result.checkpoint.disks {
                let image = SimulatedGuest(layout: .empty)
                try repository.restore(result.checkpoint, volume: disk.name, into: image)
                let content = now.disks[disk.name] ?? []
                #expect(image.bytes(content.count) == content, "\(disk.name)")
            }
        }
    }

    /// How a group knows what changed.
    enum Knowledge: CaseIterable {
        case none
        case writes
        case contents
    }

    @Test(arguments: Knowledge.allCases, 0..<3 as Range<UInt64>)
    func revertsAreExactForwardsAndBackwards(knowledge: Knowledge, salt: UInt64) throws {
        let directory = TemporaryDirectory(inMemory: true)
        let world = try World(directory, salt: 2200 + salt)
        world.group.inner.setKnowsChanges(knowledge != .none)
        world.group.inner.setComparesContents(knowledge == .contents)
        try world.capture()
        for step in 0..<120 {
            if Bool.random(using: &world.random) { world.write() }
            switch Int.random(in: 0..<10, using: &world.random) {
            case 0: try world.reopen()
            case 1...4: try world.capture()
            default:
                guard let (target, copy) = world.copies.randomElement(using: &world.random) else {
                    continue
                }
                let before = world.now
                let result = try world.session.revert(to: target)
                #expect(world.now == copy, "step \(step)")
                if before == copy { #expect(result.writtenBlockCount == 0) }
            }
            #expect(world.group.inner.standing.count <= 2, "at most two cuts stand")
        }
        world.session.close()
        #expect(world.group.inner.standing.isEmpty && world.session.diskReleaseFailure == nil)
    }

    /// A call that fails leaves everything as it was; the next revert is exact, and so is the next
    /// checkpoint.
    @Test(arguments: 0..<3 as Range<UInt64>)
    func aFailedRevertCanBeRepeated(salt: UInt64) throws {
        let directory = TemporaryDirectory(inMemory: true)
        let world = try World(directory, salt: 2300 + salt)
        for _ in 0..<5 {
            world.write()
            try world.capture()
        }
        let calls: [SimulatedDisks.Call] = [
            .disks, .prepare, .cut, .changed, .stored, .read, .resize, .write,
        ]
        var failures: [SimulatedDisks.Call: Int] = [:]
        for step in 0..<150 {
            world.write()
            let before = world.now
            guard let (target, copy) = world.copies.randomElement(using: &world.random),
                let call = calls.randomElement(using: &world.random)
            else { continue }
            world.group.inner.fail(call, after: Int.random(in: 0...2, using: &world.random))
            do {
                try world.session.revert(to: target)
                #expect(world.now == copy, "step \(step)")
            } catch {
                failures[call, default: 0] += 1
                #expect(world.now == before, "step \(step), \(call): \(error)")
                #expect(!"\(error)".contains("could not be taken back"))
            }
            world.group.inner.failNone()
            if Bool.random(using: &world.random) {
                try world.session.revert(to: target)
                #expect(world.now == copy, "step \(step), again")
            }
            if Int.random(in: 0..<4, using: &world.random) == 0 { try world.capture() }
            #expect(world.group.inner.standing.count <= 2)
        }
        for call in calls where call != .stored {
            #expect(failures[call, default: 0] > 0, "\(call) never failed")
        }
        world.session.close()
        #expect(world.group.inner.standing.isEmpty)
    }

    private func make(
        _ directory: TemporaryDirectory? = nil
    ) throws -> (World, Checkpoint, Copy) {
        let world = try World(directory ?? self.directory, salt: 2400)
        world.group.inner.set(["a": [UInt8](repeating: 1, count: 5 * 4096)])
        world.guest.with { $0.write(3, [UInt8](repeating: 1, count: 4096)) }
        try world.capture()
        let (target, copy) = world.copies[0]
        world.group.inner.set(["a": [UInt8](repeating: 2, count: 9 * 4096)])
        world.guest.with { $0.write(3, [UInt8](repeating: 2, count: 4096)) }
        return (world, target, copy)
    }

    /// Neither the write nor what takes it back succeeds: the message says what is then true, and
    /// reverting again is right.
    @Test func whatCannotBeTakenBackIsSaid() throws {
        let (world, target, copy) = try make()
        let before = world.now
        world.group.inner.fail(.write, times: 2)
        let error = #expect(throws: CheckpointError.self) {
            try world.session.revert(to: target)
        }
        #expect(error?.message.contains("could not be taken back") == true)
        #expect(error?.message.contains("revert again") == true)
        #expect(world.now != before && world.now != copy && world.now.pages == before.pages)
        // A checkpoint of that would look like any other.
        let refusal = #expect(throws: CheckpointError.self) { try world.session.capture() }
        #expect(refusal?.guestError?.code == .stateRejected)
        #expect(refusal?.message.contains("of two instants") == true)
        try world.session.revert(to: target)
        #expect(world.now == copy)
        try world.capture()
        world.session.close()
    }

    /// A guest that is replaced: until its disks are exchanged, nothing has changed.
    @Test func aReplacementThatIsGivenUpBlocksNoCapture() throws {
        struct Refused: Error {}
        let (world, target, copy) = try make()
        let before = world.now
        #expect(throws: CheckpointError.self) {
            try world.session.exchangeDisks(to: target) { _ in throw Refused() }
        }
        world.group.inner.fail(.prepare)
        #expect(throws: CheckpointError.self) {
            try world.session.exchangeDisks(to: target) { try $0() }
        }
        #expect(world.now == before)
        try world.capture()
        // The guest that ended is not captured.
        #expect(throws: CheckpointError.self) {
            try world.session.exchangeDisks(to: target) { exchange in
                try exchange()
                throw Refused()
            }
        }
        let refusal = #expect(throws: CheckpointError.self) { try world.session.capture() }
        #expect(refusal?.guestError?.code == .stateRejected)
        try world.session.revert(to: target)
        #expect(world.now == copy)
        world.session.close()
        #expect(world.group.inner.standing.isEmpty)
    }

    /// A write that had no effect need not be taken back, though that fails, too.
    @Test func whatWasNeverWrittenIsNoMixture() throws {
        let (world, target, copy) = try make()
        // What a resize cuts off has to be written again.
        world.group.inner.set(["a": [UInt8](repeating: 2, count: 5 * 4096)])
        let before = world.now
        world.group.failsWithoutEffect = true
        world.group.inner.fail(.write, times: 100)
        let error = #expect(throws: CheckpointError.self) { try world.session.revert(to: target) }
        world.group.inner.failNone()
        #expect(error?.message.contains("could not be taken back") == false)
        #expect(world.now == before)
        try world.capture()
        try world.session.revert(to: target)
        #expect(world.now == copy)
        #expect(world.group.inner.standing.count <= 2)
        world.session.close()
        #expect(world.group.inner.standing.isEmpty)
    }

    /// Each call of the guest fails once: memory and disks are unchanged; or the disks are the
    /// checkpoint's, as the message says, and reverting again completes it.
    @Test func aFailureOfTheGuestLeavesWhatItSays() throws {
        var (unchanged, halfway) = (0, 0)
        for count in 0..<100 {
            let directory = TemporaryDirectory(inMemory: true)
            let (world, target, copy) = try make(directory)
            let before = world.now
            world.guest.failCall(count)
            var isDone = false
            do {
                try world.session.revert(to: target)
                isDone = true
                #expect(world.now == copy, "call \(count)")
            } catch {
                if "\(error)".contains("the disks are the checkpoint's") {
                    halfway += 1
                    #expect(world.now.disks == copy.disks, "call \(count)")
                } else {
                    unchanged += 1
                    #expect(world.now == before, "call \(count): \(error)")
                }
            }
            world.guest.failCall(nil)
            try world.session.revert(to: target)
            #expect(world.now == copy, "call \(count), again")
            try world.capture()
            #expect(world.copies.last?.checkpoint.root == target.root)
            world.session.close()
            #expect(world.group.inner.standing.isEmpty)
            // The call that would fail was not made.
            if isDone && count > 20 { break }
        }
        #expect(unchanged > 3 && halfway >= 2, "\(unchanged) and \(halfway)")
    }

    @Test func otherDisksThanTheCheckpointsAreRefused() throws {
        let (world, target, _) = try make()
        for disks in [["b"], ["a", "b"], []] {
            world.group.inner.set(
                Dictionary(uniqueKeysWithValues: disks.map { ($0, World.zeros(512)) }))
            let before = world.now
            let error = #expect(throws: CheckpointError.self) {
                try world.session.revert(to: target)
            }
            #expect(error?.guestError?.code == .unsupported)
            #expect(error?.message.contains("has a; restore") == true)
            #expect(world.now == before)
        }
        world.session.close()
    }

    /// A group that cannot write is refused as before, also for a checkpoint of memory alone.
    @Test func disksThatCannotBeWrittenAreRefused() throws {
        let (world, target, _) = try make()
        world.session.close()
        let session = try CaptureSession(
            of: world.guest, in: world.repository, lineage: "own", disks: world.group.inner)
        let error = #expect(throws: CheckpointError.self) { try session.revert(to: target) }
        #expect(error?.message.hasPrefix("a guest with disks cannot be reverted in place") == true)
        session.close()
    }

    /// Nothing is written before all of it was read: a damaged repository changes nothing.
    @Test func aDamagedRepositoryLeavesTheDisksUnchanged() throws {
        let (world, target, copy) = try make()
        let store = directory.path.appending("store")
        let whole = try PackBytes.all(in: store)
        let pack = try #require(whole.keys.sorted().first)
        let bytes = try #require(whole[pack])
        let file = URL(fileURLWithPath: store.appending(PackName.path(pack)).string)
        var failed = 0
        for _ in 0..<100 {
            world.write()
            let before = world.now
            var damaged = bytes
            for _ in 0..<8 {
                damaged[Int.random(in: 64..<bytes.count, using: &world.random)] ^= 0x55
            }
            try Data(damaged).write(to: file)
            do {
                try world.session.revert(to: target)
                #expect(world.now == copy)
            } catch {
                failed += 1
                #expect(world.now == before, "\(error)")
            }
        }
        #expect(failed > 10, "damage was found: \(failed) of 100")
        try Data(bytes).write(to: file)
        world.session.close()
    }
}
