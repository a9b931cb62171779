import CheckpointEngine
import CheckpointFormat
import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import CheckpointUpkeep
@testable import PackStore

/// Repair keeps what is whole, names exactly what is not, and leaves the repository whole.
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

    /// Two packs under each other's names, without their envelopes: a sealed one is identified by
    /// its footer, the newest by its manifests.
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

    /// Without the index and the last mark, only the head says that the newest checkpoint exists.
    ///
    /// Repair keeps it although one of its page groups is damaged, with the pages that are stored
    /// a second time. Without the head too, it is what a crash leaves.
    @Test(arguments: [true, false])
    func theHeadConfirmsTheNewestCheckpoint(hasHead: Bool) throws {
        var random = TestSeed.generator(0x51)
        let whole = try RepairWorld(seed: random.next())
        let newest = try #require(try whole.newest())
        var tally: [String: Int] = [:]
        try repair(whole, random.next(), &tally) { world in
            let places = try world.damageNewestAndItsMark()
            _ = try world.damage(.index)
            if !hasHead {
                try FileManager.default.removeItem(atPath: world.path.appending("head").string)
            }
            #expect(try world.plan().wholeCheckpoints.contains { $0.id == newest } == hasHead)
            return places
        }
        #expect(tally["lost checkpoints"] == 0)
    }

    /// A repair that is killed, or meets a full disk, at any call makes nothing worse: each
    /// checkpoint that could be restored can be, and a store that could be written still can.
    @Test(arguments: [
        RepairWorld.Damage.pageGroup, .state, .mapPart, .manifest, .packIndex, .forget,
    ])
    func whatCouldBeDoneBeforeCanBeDone(damage kind: RepairWorld.Damage) throws {
        var random = TestSeed.generator(0x50)
        let whole = try RepairWorld(seed: random.next())
        var runs = 0
        for _ in 0..<60 where runs < (TestSeed.isLong ? 6 : 1) {
            let world = try RepairWorld(copyOf: whole, seed: random.next())
            let place = try world.damage(kind)
            // Otherwise only packs are moved to their places.
            guard try world.plan().preparation.needsPack,
                try canWrite(world, random.next())
            else { continue }
            runs += 1
            for failure in FaultyFiles.Lasting.allCases {
                try failEachCall(of: world, failure, place, &random)
            }
        }
        #expect(runs > 0)
    }

    private func failEachCall(
        of world: RepairWorld, _ failure: FaultyFiles.Lasting, _ place: String,
        _ random: inout SeededGenerator
    ) throws {
        let before = try restorable(world)
        // While the index is empty and the packs are not in their places yet, damage that the index
        // had read past is found again.
        var refusalCountMax = 0
        if failure == .everything {
            let plan = try world.plan()
            let isReadAnew = plan.findings.contains { $0.corruption.object != "page group" }
            let packCount = plan.rewrittenPacks.count + plan.removedPacks.count
            if isReadAnew { refusalCountMax = packCount + 2 }
        }
        var refusals: [Int] = []
        var failureCount = 0
        while failureCount < 1000 {
            let copy = try RepairWorld(copyOf: world, seed: random.next())
            let files = FaultyFiles(PosixFiles(root: copy.path))
            let didFail = try repair(copy, files, failingFrom: failureCount, failure)
            guard didFail else { break }
            let what: Comment = "\(place), \(failure) from call \(failureCount)"
            let lost = before.subtracting(try restorable(copy))
            #expect(lost.isEmpty, "\(what): \(lost.map(\.short))")
            if try !canWrite(copy, random.next()) { refusals.append(failureCount) }
            failureCount += 1
        }
        print("\(place): \(failure) at \(failureCount) calls, writers refused at \(refusals)")
        #expect(refusals.count <= refusalCountMax, "\(place), \(failure): \(refusals)")
        #expect(failureCount > 10)
    }

    /// True if any call failed.
    private func repair(
        _ world: RepairWorld, _ files: FaultyFiles, failingFrom call: Int,
        _ failure: FaultyFiles.Lasting
    ) throws -> Bool {
        let plan = try Repository.planRepair(
            at: world.path, files: files, packByteCountMax: RepairWorld.packByteCount)
        files.failCalls(from: call, failure)
        let result = Result { try plan.execute() }
        let didFail = files.endFailing()
        if !didFail { _ = try result.get() }
        return didFail
    }

    /// The checkpoints that can be restored bit for bit.
    private func restorable(_ world: RepairWorld) throws -> Set<CheckpointID> {
        let repository = try Repository.open(at: world.path, .reading)
        var found: Set<CheckpointID> = []
        for (id, pages) in world.copies {
            guard let checkpoint = try? repository.checkpoint(id: id) else { continue }
            let guest = SimulatedGuest(layout: .empty)
            guard (try? repository.restore(checkpoint, into: guest)) != nil,
                guest.with({ $0.pages }) == pages
            else { continue }
            found.insert(id)
        }
        return found
    }

    /// True if a copy of the store takes a checkpoint.
    private func canWrite(_ world: RepairWorld, _ seed: UInt64) throws -> Bool {
        let copy = try RepairWorld(copyOf: world, seed: seed)
        do {
            let repository = try copy.open()
            try copy.capture(repository, "new", 1, nil)
            try repository.close()
            return true
        } catch let error as RepositoryError where error.corruption != nil {
            return false
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

    /// The extra elements of a set, and the missing ones.
    private func describe(_ found: Set<CheckpointID>, _ expected: Set<CheckpointID>) -> String {
        "+\(found.subtracting(expected).map(\.short)) -\(expected.subtracting(found).map(\.short))"
    }

    /// The store is whole, matches the plan, and can be used.
    private func check(
        _ world: RepairWorld, _ whole: [Checkpoint], _ what: Comment
    ) throws {
        let repository = try world.open()
        #expect(try repository.checkpoints().map(\.id) == whole.map(\.id), what)
        for checkpoint in whole {
            let guest = SimulatedGuest(layout: .empty)
            _ = try repository.restore(checkpoint, into: guest)
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
