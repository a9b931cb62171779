import CheckpointEngine
import CheckpointFormat
import CheckpointStore
import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

/// Repair: what is whole stays, what is not is named exactly, and the repository is whole after.
@Suite struct RepairTests {
    /// Every kind of damage alone, then several kinds together.
    @Test func everyDamageIsRepaired() throws {
        var random = TestSeed.generator(0x4E)
        let rounds = TestSeed.isLong ? 40 : 2
        var tally: [String: Int] = [:]
        for _ in 0..<rounds {
            let world = try RepairWorld(seed: random.next())
            for kind in RepairWorld.Damage.allCases {
                try repair([kind], world, random.next(), &tally)
            }
        }
        var world = try RepairWorld(seed: random.next())
        for round in 0..<rounds * 12 {
            if round % 12 == 0 { world = try RepairWorld(seed: random.next()) }
            let count = Int.random(in: 2...4, using: &random)
            let kinds = (0..<count).compactMap { _ in
                RepairWorld.Damage.allCases.randomElement(using: &random)
            }
            try repair(kinds, world, random.next(), &tally)
        }
        print("repaired: \(tally.sorted { $0.key < $1.key }), seed \(TestSeed.value)")
        #expect(tally["lost checkpoints", default: 0] > 0)
        #expect(tally["saved pages", default: 0] > 0)
        #expect(tally["whole by a second copy", default: 0] > 0)
    }

    /// Packs under each other's names, and nothing left of their envelopes: a sealed one is known
    /// by its footer, the newest by its manifests.
    @Test func packsAreKnownWithoutTheirEnvelopes() throws {
        var random = TestSeed.generator(0x4F)
        let whole = try RepairWorld(seed: random.next())
        for hasIndex in [true, false] {
            var tally: [String: Int] = [:]
            try repair(whole, random.next(), &tally) { world in
                let (first, newest) = try world.swapWithoutEnvelopes()
                if !hasIndex { _ = try world.damage(.index) }
                return ["packs \(first) and \(newest)"]
            }
            #expect(tally["lost checkpoints"] == 0)
        }
    }

    private func repair(
        _ kinds: [RepairWorld.Damage], _ whole: RepairWorld, _ seed: UInt64,
        _ tally: inout [String: Int]
    ) throws {
        try repair(whole, seed, &tally) { world in try kinds.map { try world.damage($0) } }
    }

    private func repair(
        _ whole: RepairWorld, _ seed: UInt64, _ tally: inout [String: Int],
        damage: (RepairWorld) throws -> [String]
    ) throws {
        let world = try RepairWorld(copyOf: whole, seed: seed)
        let oracle = try #require(world.oracle)
        let places = try damage(world)
        let expected = oracle.judge(try world.damaged())
        let what: Comment = "\(places), seed \(seed)"
        let plan = try world.plan()
        let (whole, lost) = (
            Set(plan.wholeCheckpoints.map(\.id)), Set(plan.losses.map(\.id))
        )
        #expect(
            whole == expected.whole && lost == expected.lost,
            """
            \(what): whole \(describe(whole, expected.whole)), lost \(describe(lost, expected.lost))
            \(plan.findings)
            \(plan.losses.map { "\($0.id.short): \($0.reason)" })
            """)
        let outcome = try plan.execute()
        #expect(outcome.report.isClean, "\(what): \(outcome.report.corruptions)")
        try check(world, plan.wholeCheckpoints, what)
        tally["repairs", default: 0] += 1
        tally["findings", default: 0] += plan.findings.count
        tally["whole checkpoints", default: 0] += plan.wholeCheckpoints.count
        tally["lost checkpoints", default: 0] += plan.losses.count
        tally["whole without a part of a map", default: 0] += expected.withoutPart
        tally["whole by a second copy", default: 0] += expected.bySecondCopy
        tally["saved pages", default: 0] += plan.savedPageCount
    }

    /// What is too much in a set, and what it lacks.
    private func describe(_ found: Set<CheckpointID>, _ expected: Set<CheckpointID>) -> String {
        "+\(found.subtracting(expected).map(\.short)) -\(expected.subtracting(found).map(\.short))"
    }

    /// The store is whole, holds what the plan said, and goes on.
    private func check(
        _ world: RepairWorld, _ whole: [Checkpoint], _ what: Comment
    ) throws {
        let repository = try world.open()
        #expect(try repository.checkpoints().map(\.id) == whole.map(\.id), what)
        for checkpoint in whole {
            let guest = SimulatedGuest(layout: .empty)
            _ = try Restore.run(checkpoint, from: repository, into: guest)
            #expect(guest.with { $0.pages } == world.copies[checkpoint.id], what)
        }
        try world.capture(repository, "after", 2, nil)
        #expect(try repository.verify().isClean, what)
        try repository.planPrune(PruneOptions(unusedPercentMax: 0)).execute()
        #expect(try repository.verify().isClean, what)
        try repository.close()
        try FileManager.default.removeItem(atPath: world.path.appending("index").string)
        let again = try world.open()
        #expect(try again.checkpoints().count == whole.count + 2, what)
        #expect(try again.verify().isClean, what)
        try again.close()
        #expect(try world.plan().isEmpty, what)
    }
}
