import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Forgeries
import Foundation
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

/// Forgeries that once did harm: the checkpoint is refused and named, the others are kept, and
/// repair reports the same, keeps a copy, and leaves a whole store.
@Suite struct KnownForgeryTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }

    /// The forgery in the store's newest checkpoint.
    enum Fault: String, CaseIterable, CustomTestStringConvertible {
        case addedBytes = "2^63 bytes added"
        case pages = "2^52 pages"
        case transaction = "transaction 2^64-1"
        case state = "a state part where none is"
        case foreignState = "the state of another"
        case lineage = "escapes in its lineage"
        case label = "escapes in its label"
        case zeroRun = "a run of 2^31 zero frames"
        case absentRun = "a run of 2^52 absent frames"
        case zeroPages = "one zero page too many"
        case storedPages = "one stored page too few"
        case ancestor = "an ancestor that is nowhere"

        var testDescription: String { rawValue }
    }

    private func forge(_ fault: Fault, _ whole: ForgedStore) throws -> ForgedStore {
        var forged = whole
        let place = try #require(whole.places(4).last)
        func set(_ offset: Int, _ value: UInt64) {
            forged[place].payload.replaceSubrange(
                offset..<offset + 8, with: Little.bytes(value, 8))
        }
        let payload = whole[place].payload
        let counts = Manifests.counts(payload)
        switch fault {
        case .addedBytes: set(96, 1 << 63)
        case .pages:
            set(counts[0], 1 << 52)
            set(counts[1], 1 << 52)
        case .transaction:
            set(Manifests.transaction.lowerBound, .max)
            forged[place].transaction = .max
        case .state:
            forged[place].payload = Manifests.naming(
                payload, maps: nil, states: [ForgedPart(pack: 1, offset: .max)])
        case .foreignState:
            let other = whole[whole.places(4)[0]].payload
            forged[place].payload = Manifests.naming(
                payload, maps: nil, states: Manifests.parts(other, 1))
        case .lineage, .label:
            let name = Array("\u{1b}[2J\nforged row".utf8)
            forged[place].payload = Manifests.renamed(
                payload, lineage: fault == .lineage ? name : nil,
                label: fault == .label ? name : nil)
        case .zeroRun, .absentRun:
            let part = try #require(whole.places(2).last)
            let runs: [UInt8] =
                fault == .zeroRun
                ? [0] + Varint.bytes(1 << 31) + [1] : [0] + Varint.bytes(1 << 52 - 1) + [0]
            forged[part].payload =
                Little.bytes(0, 4) + Little.bytes(UInt64(runs.count), 4)
                + Little.bytes(UInt64(runs.count), 4) + Little.bytes(0, 4) + runs
            forged.relink(from: whole)
        case .zeroPages: set(counts[2], Little.read(payload[...], counts[2], 8) + 1)
        case .storedPages: set(88, Little.read(payload[...], 88, 8) - 1)
        case .ancestor:
            forged[place].payload.replaceSubrange(
                Manifests.ancestor, with: [UInt8](repeating: 7, count: 32))
            forged[place].payload.replaceSubrange(Manifests.position, with: [1, 0, 0, 0])
        }
        return forged
    }

    @Test(arguments: Fault.allCases)
    func theOthersStayAndRepairAgrees(_ fault: Fault) throws {
        try WholeStore.make(at: path, seed: 5, isPruned: fault != .storedPages)
        let before = try Repository.open(at: path, .reading).checkpoints()
        let newest = try #require(before.last)
        try forge(fault, try ForgedStore(path)).write(path)

        var damage: [Corruption] = []
        let reader = try Repository.open(at: path, .reading)
        let listed = try reader.checkpoints { damage.append($0) }
        let others = Set(before.map(\.id)).subtracting([newest.id])
        #expect(Set(listed.map(\.id)).isSuperset(of: others))
        for checkpoint in listed where others.contains(checkpoint.id) {
            _ = try reader.state(of: checkpoint)
        }
        let report = try reader.verify()
        #expect(!report.isClean && report.findings.count <= 2)
        #expect(throws: RepositoryError.self) {
            // Opening for writing either reports it or does not depend on it: a page, a state, a
            // count.
            let writer = try Repository.open(at: path, .writing)
            defer { try? writer.close() }
            if let corruption = try writer.verify().corruptions.first {
                throw RepositoryError(corruption)
            }
        }

        let plan = try Repository.planRepair(at: path)
        #expect(!plan.isEmpty)
        #expect(Set(plan.wholeCheckpoints.map(\.id)) == others)
        let outcome = try plan.execute()
        #expect(outcome.report.isClean && outcome.keptByteCount > 0)
        let kept = try FileManager.default.contentsOfDirectory(
            atPath: path.appending("damaged").string)
        #expect(!kept.isEmpty)
        let after = try Repository.open(at: path, .reading)
        #expect(Set(try after.checkpoints().map(\.id)) == others)
        #expect(try Repository.planRepair(at: path).isEmpty)
    }

    /// Transaction numbers that no writer reaches.
    private static let highNumbers: [UInt64] = [
        1 << 56, 1 << 56 - 1, 1 << 56 - 1 << 32, 1 << 56 - 1 << 32 + 1, 1 << 55, 1 << 48 + 99,
        1 << 48,
    ]

    /// Takes a checkpoint, and checks that it and all earlier ones are there.
    private func expectWritable(_ what: String) throws {
        let before = try Repository.open(at: path, .reading).checkpoints().map(\.id)
        let writer = try Repository.open(at: path, .writing)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 48))
        let newest = try #require(try writer.newest(ofLineage: "web"))
        _ = try writer.restore(newest, into: guest)
        let session = try CaptureSession(of: guest, in: writer, lineage: "web", parent: newest)
        var ids = before
        for step in 0..<2 as Range<UInt8> {
            guest.with { $0.write(3, [UInt8](repeating: step + 77, count: Page.byteCount)) }
            ids.append(try session.capture().checkpoint.id)
        }
        session.close()
        try writer.close()
        for removesIndex in [false, true] {
            if removesIndex {
                try FileManager.default.removeItem(atPath: path.appending("index").string)
            }
            let reader = try Repository.open(at: path, .reading)
            #expect(try reader.checkpoints().map(\.id) == ids, "\(what)")
            #expect(try reader.verify().isClean, "\(what)")
        }
        #expect(try Repository.planRepair(at: path).isEmpty, "\(what)")
    }

    /// A record that belongs to no checkpoint, with a number near the maximum: a store that
    /// verifies can be written.
    @Test(arguments: [RecordType.pageGroup, .mapPart, .guestState, .mark, .forget, .labels])
    func aHighNumberEndsNoWriting(_ type: RecordType) throws {
        for number in KnownForgeryTests.highNumbers {
            for isNewest in [true, false] {
                try? FileManager.default.removeItem(atPath: path.string)
                try WholeStore.make(at: path, seed: 7)
                var forged = try ForgedStore(path)
                let places = forged.places(type.rawValue)
                let place = try #require(isNewest ? places.last : places.first)
                var record = forged[place]
                record.transaction = number
                if type == .mark {
                    forged[place] = record
                } else {
                    let last = forged.packs.count - 1
                    record.address = 0
                    let end = forged.packs[last].records.count
                    forged.packs[last].records.insert(record, at: isNewest ? end - 1 : 0)
                    if !isNewest { forged.relink(from: try ForgedStore(path)) }
                }
                try forged.write(path)
                let what = "\(type) with \(number), newest \(isNewest)"
                let reader = try Repository.open(at: path, .reading)
                let report = try reader.verify()
                guard report.isClean else {
                    // Then it is named, and a repair removes it.
                    let plan = try Repository.planRepair(at: path)
                    #expect(!plan.isEmpty, "\(what)")
                    #expect(try plan.execute().report.isClean, "\(what)")
                    try expectWritable(what)
                    continue
                }
                try expectWritable(what)
            }
        }
    }

    /// The same in the index, which is rebuilt.
    @Test(arguments: KnownForgeryTests.highNumbers)
    func aHighNumberInTheIndexEndsNoWriting(_ number: UInt64) throws {
        try WholeStore.make(at: path, seed: 8)
        let forger = try Repository.open(at: path, .reading)
        try forger.withIndex { index in
            try index.advance(to: try index.readMark(), highestTransaction: number)
        }
        #expect(try forger.verify().isClean)
        try expectWritable("the index with \(number)")
    }

    /// Forgeries on which verify and repair once disagreed, or which they took for a damaged index.
    @Test(arguments: [
        "newest pack is number 0", "newest pack is number 2147483648",
        "newest pack is number 4294967295", "manifest 0, transaction = 2, relinked",
        "removed packs: those that are there", "forget 0, its type = 6", "forget 1, its type = 6",
    ])
    func bothNameIt(_ name: String) throws {
        try WholeStore.make(at: path, seed: 7)
        let whole = try ForgedStore(path)
        let all = Forgery.all(of: whole)
        let forgery = try #require(all.first { $0.name == name })
        try forgery.store(from: whole).write(path)
        let trial = StoreTrial.run(path)
        #expect(trial.isDamaged && trial.complaints.isEmpty, "\(trial.complaints)")
    }

    /// A page group in a pack that prune rewrote, with another transaction's number or (nil) other
    /// ordinals: its pages can still be read, and it is named.
    @Test(arguments: [1, 1 << 20, 1 << 56, nil] as [UInt64?])
    func aStrayPageGroupIsNamed(_ number: UInt64?) throws {
        try WholeStore.make(at: path, seed: 9)
        let before = Set(try Repository.open(at: path, .reading).checkpoints().map(\.id))
        var forged = try ForgedStore(path)
        let place = try #require(
            forged.places(1).last {
                forged.packs[$0.pack].isRewritten && forged[$0].transaction != number
            })
        let name = PackName.path(forged.packs[place.pack].number)
        if let number {
            forged[place].transaction = number
        } else {
            forged[place].payload.replaceSubrange(0..<4, with: Little.bytes(1 << 20, 4))
        }
        try forged.write(path)
        let report = try Repository.open(at: path, .reading).verify()
        #expect(!report.isClean && !report.affectedCheckpoints.isEmpty)
        #expect(report.corruptions.allSatisfy { $0.file != "index" })
        let plan = try Repository.planRepair(at: path)
        #expect(plan.findings.contains { $0.corruption.file == name }, "\(plan.findings)")
        #expect(Set(plan.wholeCheckpoints.map(\.id)) == before && plan.losses.isEmpty)
        #expect(try plan.execute().report.isClean)
        let after = try Repository.open(at: path, .reading)
        #expect(Set(try after.checkpoints().map(\.id)) == before)
        #expect(try Repository.planRepair(at: path).isEmpty)
    }

    /// A file among the packs that is not a pack: verify names it as repair does.
    @Test func oddFilesAmongPacksAreNamed() throws {
        try WholeStore.make(at: path, seed: 8)
        let packs = path.appending("packs")
        func isClean() throws -> Bool { try Repository.open(at: path, .reading).verify().isClean }
        #expect(try isClean() && Repository.planRepair(at: path).isEmpty)
        // Leftovers of prune and NFS cause no error.
        for name in ["00000001.pack.new", ".nfs000000000000001200000001"] {
            try Data("left".utf8).write(to: URL(fileURLWithPath: packs.appending(name).string))
        }
        #expect(try isClean() && Repository.planRepair(at: path).isEmpty)
        try Data("notes".utf8).write(
            to: URL(fileURLWithPath: packs.appending("notes.txt").string))
        try FileManager.default.createDirectory(
            atPath: packs.appending("old").string, withIntermediateDirectories: true)
        try FileManager.default.copyItem(
            atPath: packs.appending("00000001.pack").string,
            toPath: packs.appending("copy of 00000001.pack").string)
        let named = Set(try Repository.open(at: path, .reading).verify().corruptions.map(\.file))
        #expect(
            named == ["packs/notes.txt", "packs/old", "packs/copy of 00000001.pack"], "\(named)")
        let plan = try Repository.planRepair(at: path)
        #expect(Set(plan.findings.map(\.corruption.file)) == named)
        #expect(try plan.execute().report.isClean)
        #expect(try isClean() && Repository.planRepair(at: path).isEmpty)
    }

    /// A gap in the pack numbers is named as a whole, however wide.
    @Test func aWideGapIsOneFinding() throws {
        try WholeStore.make(at: path, seed: 6)
        var forged = try ForgedStore(path)
        let last = forged.packs.count - 1
        forged.packs[last].number = 1 << 30
        forged.packs[last].envelope.replaceSubrange(32..<40, with: Little.bytes(1 << 30, 8))
        try forged.write(path)
        let report = try Repository.open(at: path, .reading).verify()
        let missing = report.corruptions.filter { $0.object == "pack" }
        #expect(missing.count == 1 && missing[0].reason.contains("after it are missing"))
        let plan = try Repository.planRepair(at: path)
        #expect(plan.missingPacks.count == 1 && plan.missingPacks[0].upperBound == 1 << 30 - 1)
    }
}
