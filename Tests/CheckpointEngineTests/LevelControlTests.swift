import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import LinuxGuest
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointEngine

@Suite struct LevelControlTests {
    private static func level(_ value: Int32) -> CompressionLevel {
        CompressionLevel(rawValue: value)
    }

    private static func control(_ start: Int32) -> LevelControl {
        LevelControl(level(start), within: level(-2)...level(3))
    }

    @Test func goesUpWhileThereIsTimeToSpare() {
        var control = LevelControlTests.control(-2)
        var seen: [Int32] = []
        for _ in 0..<6 {
            control.note(busy: .milliseconds(24), interval: .milliseconds(100))
            seen.append(control.level.rawValue)
        }
        // 0 is not a level of its own.
        #expect(seen == [-1, 1, 2, 3, 3, 3])
    }

    @Test func goesDownWhenHalfTheTimeIsTaken() {
        var control = LevelControlTests.control(3)
        var seen: [Int32] = []
        for _ in 0..<6 {
            control.note(busy: .milliseconds(51), interval: .milliseconds(100))
            seen.append(control.level.rawValue)
        }
        #expect(seen == [2, 1, -1, -2, -2, -2])
    }

    @Test func staysInBetween() {
        var control = LevelControlTests.control(1)
        for busy in [25, 40, 50] {
            control.note(busy: .milliseconds(busy), interval: .milliseconds(100))
            #expect(control.level == LevelControlTests.level(1), "\(busy)")
        }
    }

    @Test func takesTheFastestWhenItFallsBehind() {
        var control = LevelControlTests.control(3)
        control.note(busy: .milliseconds(100), interval: .milliseconds(100))
        #expect(control.level == LevelControlTests.level(-2))
    }

    @Test func goesUpWhenTheDiskIsWhatIsShort() {
        var control = LevelControlTests.control(-2)
        var changes: [Int: Int32] = [:]
        for number in 1...50 {
            let before = control.level
            control.note(
                busy: .milliseconds(130), interval: .milliseconds(100), processorShare: 0.2)
            if control.level != before { changes[number] = control.level.rawValue }
        }
        // A step, and then some checkpoints to measure its cost.
        #expect(changes == [9: -1, 18: 1, 27: 2, 36: 3])
    }

    @Test func staysWhereBothAreUsed() {
        var control = LevelControlTests.control(1)
        for _ in 0..<8 {
            control.note(
                busy: .milliseconds(40), interval: .milliseconds(100), processorShare: 0.7)
        }
        for busy in [60, 99, 130] {
            control.note(
                busy: .milliseconds(busy), interval: .milliseconds(100), processorShare: 0.7)
            #expect(control.level == LevelControlTests.level(1), "\(busy)")
        }
    }

    @Test func aMeterSeesWork() {
        var meter = ProcessorMeter()
        let start = Threads.processorTime
        while Threads.processorTime - start < .milliseconds(20) {}
        let share = meter.take()
        #expect(share > 0 && share <= 1)
    }

    @Test func staysPutWithoutARange() {
        var control = LevelControl(LevelControlTests.level(5), within: nil)
        #expect(!control.isAdaptive)
        control.note(busy: .zero, interval: .seconds(1))
        #expect(control.level == LevelControlTests.level(5))
        control.note(busy: .seconds(2), interval: .seconds(1))
        #expect(control.level == LevelControlTests.level(5))
    }

    @Test func beginsWithinItsRange() {
        #expect(LevelControlTests.control(9).level == LevelControlTests.level(3))
        #expect(LevelControlTests.control(-9).level == LevelControlTests.level(-2))
    }
}

/// A session whose level changes; when it changes depends on the machine, the restored pages do
/// not.
@Suite struct AdaptiveSessionTests {
    private static let range =
        CompressionLevel(rawValue: -3)...CompressionLevel(rawValue: 4)

    @Test(.enabled(if: tracksWrites), arguments: [true, false])
    func everyLevelComesBack(isAdaptive: Bool) throws {
        let directory = TemporaryDirectory()
        let repository = try Repository.create(at: directory.path.appending("store"))
        let memory = ProcessMemory()
        let region = try memory.allocate(byteCount: 256 * Page.byteCount)
        var options = CaptureOptions()
        if isAdaptive { options.compressionRange = AdaptiveSessionTests.range }
        let session = try CaptureSession(
            of: memory, in: repository, lineage: "adaptive", options: options)
        var random = TestSeed.generator(501)
        var checkpoints: [Checkpoint] = []
        for _ in 0..<12 {
            for _ in 0..<40 {
                let page = Int.random(in: 0..<256, using: &random)
                region.bytes.storeBytes(
                    of: random.next(), toByteOffset: page * Page.byteCount, as: UInt64.self)
            }
            checkpoints.append(try session.capture().checkpoint)
            #expect(checkpoints.last?.memory.root == (try memory.memoryRoot()))
            let level = session.pipeline.level
            if isAdaptive {
                #expect(AdaptiveSessionTests.range.contains(level))
            } else {
                #expect(level == .standard)
            }
        }
        for checkpoint in checkpoints {
            let target = ProcessMemory(tracking: .compareAll)
            _ = try target.allocate(byteCount: 256 * Page.byteCount)
            _ = try repository.restore(checkpoint, into: target)
            #expect(try target.memoryRoot() == checkpoint.memory.root)
        }
    }
}
