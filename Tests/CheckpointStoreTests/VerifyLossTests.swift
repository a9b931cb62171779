import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Foundation
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

/// Verification names exactly the checkpoints that cannot be restored, and repair would lose the
/// same ones.
@Suite struct VerifyLossTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private var store: FilePath { directory.path.appending("store") }

    /// Creates a repository of several packs.
    ///
    /// Each step stores some pages in one lineage, and takes a checkpoint of a new lineage whose
    /// pages are all stored already: its page map builds on no other.
    private func make(at path: FilePath, _ random: inout SeededGenerator) throws {
        try Repository.create(at: path).close()
        let repository = try Repository.open(
            at: path, .writing, files: PosixFiles(root: path), packByteCountMax: 512 << 10)
        let layout = GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 150)])
        let guest = SimulatedGuest(layout: layout)
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        for step in 0..<7 {
            for frame in step * 20..<step * 20 + 30 {
                let contents = (0..<Page.byteCount).map { _ in
                    UInt8.random(in: 0...255, using: &random)
                }
                guest.with { $0.write(UInt64(frame), contents) }
            }
            _ = try session.capture()
            let other = SimulatedGuest(layout: layout)
            for (frame, contents) in guest.with({ $0.pages }) {
                other.with { $0.write(frame, contents) }
            }
            let once = try CaptureSession(
                of: other, in: repository, lineage: LineageName("copy\(step)"))
            _ = try once.capture()
            once.close()
        }
        session.close()
        try repository.close()
    }

    private enum Damage: CaseIterable {
        case removed, emptied, cut, foreign, swapped
    }

    private func damage(
        _ damage: Damage, _ pack: UInt32, _ packs: [UInt32], _ stranger: FilePath
    ) throws {
        let file = store.appending(PackName.path(pack)).string
        switch damage {
        case .removed: try FileManager.default.removeItem(atPath: file)
        case .emptied: try Data().write(to: URL(fileURLWithPath: file))
        case .cut:
            let bytes = try Data(contentsOf: URL(fileURLWithPath: file))
            try Data(bytes[..<(bytes.count / 2)]).write(to: URL(fileURLWithPath: file))
        case .foreign:
            try FileManager.default.removeItem(atPath: file)
            try FileManager.default.copyItem(
                atPath: stranger.appending(PackName.path(1)).string, toPath: file)
        case .swapped:
            let next = packs.first { $0 > pack } ?? packs[0]
            let other = store.appending(PackName.path(next)).string
            try FileManager.default.moveItem(atPath: file, toPath: file + ".other")
            try FileManager.default.moveItem(atPath: other, toPath: file)
            try FileManager.default.moveItem(atPath: file + ".other", toPath: other)
        }
    }

    @Test func aLostPackTakesWhatRepairLoses() throws {
        var random = TestSeed.generator(0x51)
        let whole = directory.path.appending("whole")
        try make(at: whole, &random)
        let stranger = directory.path.appending("stranger")
        try make(at: stranger, &random)
        let packs = try PackName.list(PosixFiles(root: whole))
        #expect(packs.count >= 4)
        let ids = try Repository.open(at: whole, .reading).checkpoints().map(\.id)
        var lostCount = 0
        for pack in packs {
            for kind in Damage.allCases {
                for keepsIndex in [true, false] {
                    try? FileManager.default.removeItem(atPath: store.string)
                    try FileManager.default.copyItem(atPath: whole.string, toPath: store.string)
                    try damage(kind, pack, packs, stranger)
                    if !keepsIndex {
                        try FileManager.default.removeItem(
                            atPath: store.appending("index").string)
                    }
                    let what: Comment = "pack \(pack) \(kind), index \(keepsIndex)"
                    lostCount += try check(ids, keepsIndex, isMoved: kind == .swapped, what)
                }
            }
        }
        #expect(lostCount > 0)
    }

    private func check(
        _ ids: [CheckpointID], _ keepsIndex: Bool, isMoved: Bool, _ what: Comment
    ) throws -> Int {
        let reader = try Repository.open(at: store, .reading)
        let report = try reader.verify()
        let named = Set(report.affectedCheckpoints)
        #expect(!report.isClean, what)
        #expect(Set(report.findings.flatMap(\.affectedCheckpoints)) == named, what)
        #expect(report.affectedCheckpoints.count == named.count, what)
        // Missing pages are found by their locations, so no page need be read.
        #expect(Set(try reader.verify(.structure).affectedCheckpoints) == named, what)
        let listed = Set(try reader.checkpoints { _ in }.map(\.id))
        let lost = Set(
            try Repository.planRepair(
                at: store, files: PosixFiles(root: store), packByteCountMax: 512 << 10
            ).losses.map(\.id))
        // Without the index, a checkpoint whose manifest is lost is unknown.
        let known = keepsIndex ? Set(ids) : listed.union(named).union(lost)
        let unreadable = Set(
            ids.filter { id in
                guard known.contains(id) else { return false }
                let guest = SimulatedGuest(layout: .empty)
                let outcome = Result {
                    try reader.restore(try reader.checkpoint(id: id), into: guest)
                }
                if case .failure = outcome { return true }
                return false
            })
        #expect(named == unreadable, what)
        // A pack under another one's name is whole, and a repair renames it.
        if isMoved { #expect(lost.isEmpty, what) } else { #expect(named == lost, what) }
        #expect(report.checkpointCount == known.subtracting(named).count, what)
        return named.count
    }

    /// Damage of all kinds, after forgetting and pruning: exactly the checkpoints that repair would
    /// lose cannot be restored, and verification names them.
    @Test func whatRepairLosesIsNamed() throws {
        var random = TestSeed.generator(0x52)
        for _ in 0..<(TestSeed.isLong ? 10 : 1) {
            let whole = try RepairWorld(seed: random.next())
            for kind in RepairWorld.Damage.allCases where kind != .repository {
                for keepsIndex in [true, false] {
                    let world = try RepairWorld(copyOf: whole, seed: random.next())
                    let place = try world.damage(kind)
                    if !keepsIndex { _ = try world.damage(.index) }
                    let lost = Set(try world.plan().losses.map(\.id))
                    let reader = try Repository.open(at: world.path, .reading)
                    let named = Set(try reader.verify().affectedCheckpoints)
                    #expect(
                        named.isSuperset(of: lost),
                        "\(place), index \(keepsIndex): \(lost.subtracting(named).map(\.short))")
                    let readable = named.filter { id in
                        let guest = SimulatedGuest(layout: .empty)
                        let outcome = Result {
                            try reader.restore(try reader.checkpoint(id: id), into: guest)
                        }
                        if case .success = outcome { return true }
                        return false
                    }
                    #expect(
                        readable.isEmpty,
                        "\(place), index \(keepsIndex): \(readable.map(\.short)) can be restored")
                }
            }
        }
    }
}
