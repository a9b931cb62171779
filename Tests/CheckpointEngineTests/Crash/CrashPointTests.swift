import CheckpointEngine
import CheckpointStore
import Glibc
import GuestModel
import Testing
import VarveTestSupport

/// Exhaustive crash points: in each scenario, the power is cut after every call, the process is
/// killed after every call, and every call fails once in each way that it can fail.
///
/// The scenario runs once and the disk's state at each call is kept, so power cuts and kills need
/// no other run. A failing call changes what happens next, so each needs a run of its own.
///
/// The short form samples the cases by the seed of the run; VARVE_LONG=1 runs all of them.
@Suite struct CrashPointTests {
    private struct Tally {
        var calls = 0
        var powerCuts = 0
        var kills = 0
        var failedCalls = 0
        var problems: [String] = []
        let start = ContinuousClock.now
    }

    @Test(arguments: CrashScenario.wanted)
    func nothingIsLost(in scenario: CrashScenario) throws {
        var tally = Tally()
        try crash(scenario, &tally)
        try failCalls(of: scenario, &tally)
        let seconds = (ContinuousClock.now - tally.start) / .seconds(1)
        print(
            "crash points of '\(scenario.name)': \(tally.calls) calls, \(tally.powerCuts) power "
                + "cuts, \(tally.kills) kills, \(tally.failedCalls) failed calls, "
                + "\((seconds * 10).rounded() / 10) s, seed \(TestSeed.value)")
        for problem in tally.problems.prefix(5) { Issue.record("\(scenario.name): \(problem)") }
        #expect(tally.powerCuts > 0 && tally.kills > 0 && tally.failedCalls > 0)
    }

    // MARK: - Power cuts and kills

    private func crash(_ scenario: CrashScenario, _ tally: inout Tally) throws {
        let recording = try CrashRecording(scenario)
        let problems = recording.world.problems
        #expect(problems.isEmpty, "\(scenario.name): \(problems)")
        tally.calls = recording.points.count - 1
        var random = TestSeed.generator(0xC0)
        let cutCount = TestSeed.isLong ? 24 : 1
        for point in recording.points {
            for _ in 0..<cutCount {
                tally.powerCuts += 1
                run(recording, point, isPowerCut: true, seed: random.next(), &tally)
            }
            guard TestSeed.isLong || Int.random(in: 0..<3, using: &random) == 0 else { continue }
            tally.kills += 1
            run(recording, point, isPowerCut: false, seed: random.next(), &tally)
        }
    }

    private func run(
        _ recording: CrashRecording, _ point: CrashRecording.Point, isPowerCut: Bool, seed: UInt64,
        _ tally: inout Tally
    ) {
        guard CrashPointTests.isWanted(seed) else { return }
        do {
            try recording.crash(at: point, isPowerCut: isPowerCut, seed: seed)
        } catch {
            let kind = isPowerCut ? "power cut" : "kill"
            tally.problems.append("\(kind) after call \(point.callCount), case \(seed): \(error)")
        }
    }

    /// True if the case is to be run; VARVE_CASE=N runs only that case, for debugging.
    private static func isWanted(_ seed: UInt64) -> Bool { wanted == nil || wanted == seed }

    private static let wanted = getenv("VARVE_CASE").flatMap { UInt64(String(cString: $0)) }

    // MARK: - Failing calls

    /// The ways in which a call can fail.
    private static func failures(_ kind: SimulatedDisk.CallKind) -> [SimulatedDisk.Failure] {
        switch kind {
        case .write:
            [
                .init(errno: 5, leavesPart: false), .init(errno: 28, leavesPart: true),
                .init(errno: 4, leavesPart: true),
            ]
        case .create, .makeDirectory, .openLock:
            [.init(errno: 5, leavesPart: false), .init(errno: 28, leavesPart: false)]
        case .sync, .syncDirectory: [.init(errno: 5, leavesPart: true)]
        default: [.init(errno: 5, leavesPart: false)]
        }
    }

    private func failCalls(of scenario: CrashScenario, _ tally: inout Tally) throws {
        let world = CrashWorld(packByteCountMax: scenario.packByteCountMax, seed: 1)
        try scenario.prepare(world)
        let before = world.disk.calls.count
        try scenario.act(world)
        let calls = world.disk.calls[before...]
        var random = TestSeed.generator(0xFA)
        for (number, call) in calls.enumerated() {
            // Reads are numerous and similar.
            let share = call.kind.isChange ? 4 : 12
            for failure in CrashPointTests.failures(call.kind) {
                let seed = random.next()
                guard TestSeed.isLong || seed % UInt64(share) == 0 else { continue }
                tally.failedCalls += 1
                guard CrashPointTests.isWanted(seed) else { continue }
                do {
                    try fail(number, failure, scenario, seed: seed)
                } catch {
                    tally.problems.append(
                        "call \(number) (\(call)) failed with \(failure.errno), case \(seed): "
                            + "\(error)")
                }
            }
        }
    }

    private struct Wrong: Error, CustomStringConvertible {
        let description: String
    }

    /// One failing call, its effect on the scenario, and the next capture of each guest; then the
    /// power is cut or the process ends.
    private func fail(
        _ number: Int, _ failure: SimulatedDisk.Failure, _ scenario: CrashScenario, seed: UInt64
    ) throws {
        let world = CrashWorld(packByteCountMax: scenario.packByteCountMax, seed: seed)
        try scenario.prepare(world)
        world.disk.failCall(number, failure)
        try scenario.act(world)
        world.disk.failCall(nil)
        var random = SeededGenerator(seed: seed)
        // The process ends after the failure, or continues.
        if Bool.random(using: &random) { world.close() }
        for lineage in world.lineages {
            world.write(lineage, 20..<22, value: 500)
            guard let checkpoint = try world.capture(lineage) else {
                throw Wrong(description: "the capture after the failure fails: \(world.problems)")
            }
            let restored = SimulatedGuest(layout: .empty)
            _ = try (try world.repository()).restore(checkpoint, into: restored)
            guard restored.with({ $0.pages }) == world.guest(lineage).with({ $0.pages }) else {
                throw Wrong(description: "the capture after the failure lacks pages")
            }
        }
        let isPowerCut = Bool.random(using: &random)
        if !isPowerCut { world.close() }
        guard world.problems.isEmpty else { throw Wrong(description: "\(world.problems)") }
        let directory = TemporaryDirectory(inMemory: true)
        let disk = SimulatedDisk(world.disk.image, indexRoot: directory.path, seed: seed)
        if isPowerCut { disk.cutPower(&random) } else { disk.kill() }
        // Packs that a failed attempt had sealed are kept until a prune.
        try world.check(after: .max, scenario, isLive: true).run(disk)
    }
}
