import CheckpointEngine
import CheckpointStore
import Glibc
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport
import XenStream

@testable import XenGuest

/// The guard's actions when the checkpointer dies in a revert with devices, at every step.
@Suite struct RevertGuardTests {
    private enum Move: Sendable {
        case say(XenGuard.Step)
        case act(@Sendable (FakeXen) throws -> Void)
        case tick
    }

    private static let number = Scene.number
    private static func state(_ device: String, _ value: String) -> Move {
        .act { try $0.write("/local/domain/7/device/\(device)/state", value) }
    }

    /// As `DeviceRevert` makes them, up to the exchange of disks.
    private static let moves: [Move] =
        [
            .say(.suspending), .act { try $0.write("/local/domain/7/control/shutdown", "suspend") },
            .tick, .tick, .tick, .say(.suspended), .say(.held), .act { try $0.pause(number) },
            .say(.closing), state("vbd/51712", "6"), state("vif/0", "6"),
            .act { try $0.softReset(number) }, .say(.forward),
        ]

    private func guardian(
        _ xen: FakeXen, _ bytes: [UInt8], status: Int32 = 0,
        _ completed: @escaping ([String]) -> Void = { _ in }
    ) throws -> String? {
        var rest = bytes[...]
        var patience = XenGuard.Patience()
        patience.withdrawn = .milliseconds(50)
        patience.acknowledged = .milliseconds(300)
        return try XenGuard.run(
            domain: Scene.number, calls: xen, patience: patience, ready: {},
            next: { rest.popFirst() },
            complete: { finish in
                completed(finish.command)
                return (status, "words")
            })
    }

    private func make(_ moves: some Sequence<Move>, _ xen: FakeXen) throws -> [UInt8] {
        var bytes = [XenGuard.Step.finish.rawValue]
        bytes += XenGuard.Finish(command: ["varve", "a b"], lock: -1).bytes
        for move in moves {
            switch move {
            case .say(let step): bytes.append(step.rawValue)
            case .act(let body): try body(xen)
            case .tick: xen.with { $0.tick(isScan: false) }
            }
        }
        return bytes
    }

    private func scene() throws -> Scene {
        let scene = try Scene(9950)
        scene.addDevices()
        mkdir(scene.xen.lockDirectory, 0o700)
        return scene
    }

    @Test(arguments: [1, 2, 3, 4])
    func whatCompletesARevertIsBegunThreeTimes(succeeding: Int) throws {
        let scene = try scene()
        let bytes = try make(RevertGuardTests.moves, scene.xen)
        let count = Mutex(0)
        var rest = bytes[...]
        let text = try XenGuard.run(
            domain: Scene.number, calls: scene.xen, patience: XenGuard.Patience(), ready: {},
            next: { rest.popFirst() },
            complete: { _ in
                let tried = count.withLock { count in
                    count += 1
                    return count
                }
                return (tried == succeeding ? 0 : 9, "words of \(tried)")
            })
        #expect(count.withLock { $0 } == min(succeeding, 3))
        let expected =
            succeeding <= 3
            ? "reverted by the guard (words of \(succeeding))"
            : "left standing still, because the guard's revert failed (words of 3)"
        #expect(text?.contains(expected) == true, "\(text ?? "nothing")")
    }

    @Test func whereverTheCheckpointerDiesTheDomainRunsOrIsReverted() throws {
        let moves = RevertGuardTests.moves
        for cut in 0...moves.count {
            for failing in [nil] + (0..<30).map({ Optional($0) }) {
                let scene = try scene()
                let xen = scene.xen
                let before = xen.with(Scene.number) { $0.copy.pages }
                let bytes = try make(moves[..<cut], xen)
                let completed = Mutex<[[String]]>([])
                xen.failCall(failing, errno: EBUSY)
                let text = try guardian(xen, bytes) { command in
                    completed.withLock { $0.append(command) }
                }
                let isOver = xen.with { $0.fault != nil }
                xen.failCall(nil)
                let note = "after move \(cut), call \(failing ?? -1)"
                if cut == moves.count {
                    #expect(completed.withLock { $0 } == [["varve", "a b"]])
                    #expect(text?.contains("reverted by the guard") == true)
                } else {
                    _ = try xen.facts(Scene.number)
                    scene.expectSound(note)
                    for path in ["vbd/7/51712", "vif/7/0"] {
                        let state = xen.with { $0.store["/local/domain/0/backend/\(path)/state"] }
                        #expect(state == "4", "\(note)")
                    }
                    let after = xen.with(Scene.number) { $0.copy.pages }
                    let wrong = before.keys.filter {
                        before[$0] != after[$0] && !Scene.rings.contains($0)
                    }
                    #expect(wrong.isEmpty && before.count == after.count, "\(note)")
                    #expect(completed.withLock { $0 }.isEmpty)
                }
                #expect(text.map(isSentence) ?? true, "\(text ?? "")")
                if failing != nil && isOver { break }
            }
        }
    }

    /// A domain that was stopped by force continues where it was.
    @Test func aDomainThatWasStoppedByForceContinues() throws {
        let scene = try scene()
        let bytes = try make(
            [
                .say(.halted), .act { try $0.shutDown(Scene.number, .suspend) },
                .act { try $0.pause(Scene.number) },
            ], scene.xen)
        #expect(try guardian(scene.xen, bytes)?.contains("where it was stopped") == true)
        scene.expectSound()
    }

    @Test func whatTheGuardDidIsToldOnce() throws {
        let scene = try scene()
        let bytes = try make(RevertGuardTests.moves, scene.xen)
        let text = try guardian(scene.xen, bytes, status: 1)
        #expect(text?.contains("standing still, because the guard's revert failed (words)") == true)
        try scene.open()
        #expect(scene.domain?.guardNote == text)
        try scene.open()
        #expect(scene.domain?.guardNote == nil)
    }

    /// A revert reports to its guard exactly the steps that these tests assume.
    @Test func aRevertTellsTheGuardEachStep() throws {
        #expect(try steps(of: try scene()) == ["LSHTCNRlQ"])
        // Without devices only the writing of pages cannot be given up.
        let plain = try Scene(9951)
        mkdir(plain.xen.lockDirectory, 0o700)
        #expect(try steps(of: plain) == ["LSHNRlQ"])
    }

    private func steps(of scene: Scene) throws -> [String] {
        let directory = TemporaryDirectory()
        let file = directory.path.appending("steps").string
        let target = try scene.capture().checkpoint
        scene.options.guardCommand = ["/bin/sh", "-c", "printf +; exec cat > \(file)"]
        try scene.open()
        scene.domain?.finishCommand = ["varve", "a b"]
        try scene.session?.revert(to: target)
        scene.close()
        let steps = try ChildProcess(
            ["sh", "-c", "tr -cd 'SHPRQTFCNlL' <\(file)"], collectsOutput: true)
        #expect(steps.wait() == 0)
        return steps.collectedLines
    }
}
