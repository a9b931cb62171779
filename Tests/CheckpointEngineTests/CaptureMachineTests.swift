import Glibc
import Testing

@testable import CheckpointEngine

@Suite struct CaptureMachineTests {
    private typealias Move = @Sendable (inout CaptureMachine) -> Void

    private static let moves: [(name: String, move: Move)] = [
        ("begin", { $0.begin() }), ("precopy", { $0.precopy() }), ("pause", { $0.pause() }),
        ("backOff", { $0.backOff(round: 1) }), ("copied", { $0.copied() }),
        ("resume", { $0.resume() }), ("encode", { $0.encode() }), ("publish", { $0.publish() }),
        ("fail", { $0.fail() }),
    ]

    /// A way into each phase, and where each move that is legal there leads: a second copy of the
    /// documented table.
    private static let table:
        [(path: [String], phase: CapturePhase, legal: [String: CapturePhase])] = [
            ([], .idle, ["begin": .tracking, "fail": .failed]),
            (
                ["begin"], .tracking,
                ["precopy": .precopy(round: 1), "pause": .paused, "fail": .failed]
            ),
            (
                ["begin", "precopy"], .precopy(round: 1),
                ["precopy": .precopy(round: 2), "pause": .paused, "fail": .failed]
            ),
            (
                ["begin", "pause"], .paused,
                ["backOff": .precopy(round: 1), "copied": .copied, "fail": .failed]
            ),
            (["begin", "pause", "copied"], .copied, ["resume": .running, "fail": .failed]),
            (
                ["begin", "pause", "copied", "resume"], .running,
                ["encode": .encoding, "fail": .failed]
            ),
            (
                ["begin", "pause", "copied", "resume", "encode"], .encoding,
                ["publish": .published, "fail": .failed]
            ),
            (["begin", "pause", "copied", "resume", "encode", "publish"], .published, [:]),
            (["begin", "pause", "fail"], .failed, ["fail": .failed]),
        ]

    private static func machine(_ path: [String]) -> CaptureMachine {
        var machine = CaptureMachine()
        for step in path {
            for (name, move) in moves where name == step { move(&machine) }
        }
        return machine
    }

    @Test func countsRounds() {
        var machine = CaptureMachineTests.machine(["begin", "precopy", "precopy"])
        #expect(machine.phase == .precopy(round: 2))
        machine.pause()
        machine.backOff(round: 2)
        #expect(machine.phase == .precopy(round: 2))
        machine.precopy()
        #expect(machine.phase == .precopy(round: 3))
    }

    @Test func legalMovesLeadWhereTheTableSays() {
        for (path, phase, legal) in CaptureMachineTests.table {
            #expect(CaptureMachineTests.machine(path).phase == phase, "\(path)")
            for (name, move) in CaptureMachineTests.moves {
                guard let next = legal[name] else { continue }
                var machine = CaptureMachineTests.machine(path)
                move(&machine)
                #expect(machine.phase == next, "\(path) \(name)")
            }
        }
    }

    /// The move itself traps, after a way into the phase that does not.
    @Test(arguments: 0..<9, 0..<9)
    func illegalMovesTrap(state: Int, move: Int) async {
        let (path, _, legal) = CaptureMachineTests.table[state]
        let name = CaptureMachineTests.moves[move].name
        guard legal[name] == nil else { return }
        let child = await #expect(
            processExitsWith: .failure, observing: [\.standardOutputContent], "\(path) \(name)"
        ) { [state = state as Int, move = move as Int] in
            var machine = CaptureMachineTests.machine(CaptureMachineTests.table[state].path)
            CaptureMachineTests.say("arrived")
            CaptureMachineTests.moves[move].move(&machine)
            CaptureMachineTests.say("moved")
        }
        let said = String(decoding: child?.standardOutputContent ?? [], as: UTF8.self)
        #expect(said.contains("arrived") && !said.contains("moved"), "\(path) \(name): \(said)")
    }

    /// Writes to the standard output at once, as a trap loses what is buffered.
    private static func say(_ word: String) {
        print(word)
        fflush(nil)
    }
}
