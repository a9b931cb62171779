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

    /// A way into each phase, and the moves that are legal there: a second copy of the documented
    /// table.
    private static let table: [(path: [String], legal: Set<String>)] = [
        ([], ["begin", "fail"]),
        (["begin"], ["precopy", "pause", "fail"]),
        (["begin", "precopy"], ["precopy", "pause", "fail"]),
        (["begin", "pause"], ["backOff", "copied", "fail"]),
        (["begin", "pause", "copied"], ["resume", "fail"]),
        (["begin", "pause", "copied", "resume"], ["encode", "fail"]),
        (["begin", "pause", "copied", "resume", "encode"], ["publish", "fail"]),
        (["begin", "pause", "copied", "resume", "encode", "publish"], []),
        (["begin", "pause", "fail"], ["fail"]),
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

    @Test func legalMovesMove() {
        for (path, legal) in CaptureMachineTests.table {
            for (name, move) in CaptureMachineTests.moves where legal.contains(name) {
                var machine = CaptureMachineTests.machine(path)
                move(&machine)
                #expect(machine.phase != .idle, "\(path) \(name)")
            }
        }
    }

    @Test(arguments: 0..<9, 0..<9)
    func illegalMovesTrap(state: Int, move: Int) async {
        let (path, legal) = CaptureMachineTests.table[state]
        let name = CaptureMachineTests.moves[move].name
        guard !legal.contains(name) else { return }
        await #expect(processExitsWith: .failure, "\(path) \(name)") {
            [state = state as Int, move = move as Int] in
            var machine = CaptureMachineTests.machine(CaptureMachineTests.table[state].path)
            CaptureMachineTests.moves[move].move(&machine)
        }
    }
}
