import CheckpointStore
import Forgeries
import Foundation
import SystemPackage
import Testing
import VarveTestSupport

/// Forgeries that did harm once: the checkpoint is refused and named, the others are there, and
/// repair says so too, keeps a copy, and leaves a store that is whole.
@Suite struct KnownForgeryTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }

    /// What is forged in the store's newest checkpoint.
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
        switch fault {
        case .addedBytes: set(160, 1 << 63)
        case .pages:
            set(120, 1 << 52)
            set(128, 1 << 52)
        case .transaction:
            set(72, .max)
            forged[place].transaction = .max
        case .state:
            forged[place].payload = Manifests.naming(
                payload, maps: nil, states: [(pack: 1, offset: .max)])
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
        case .zeroPages: set(136, Little.read(payload[...], 136, 8) + 1)
        case .storedPages: set(152, Little.read(payload[...], 152, 8) - 1)
        case .ancestor:
            forged[place].payload.replaceSubrange(
                88..<120, with: [UInt8](repeating: 7, count: 32))
            forged[place].payload.replaceSubrange(80..<84, with: [1, 0, 0, 0])
        }
        return forged
    }

    @Test(arguments: Fault.allCases)
    func theOthersStayAndRepairAgrees(_ fault: Fault) throws {
        try WholeStore.make(at: path, seed: 5)
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
            // What opens for writing either says it or is not concerned: a page, a state, a count.
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

    /// A gap in the numbers of packs is named as a whole, however wide.
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
