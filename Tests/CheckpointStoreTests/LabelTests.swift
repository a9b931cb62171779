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

/// Labels that are set, removed and moved after publication.
@Suite struct LabelTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    private static func page(_ value: UInt8) -> [UInt8] {
        [UInt8](repeating: value, count: Page.byteCount)
    }

    /// A chain of checkpoints of one lineage.
    private func chain(_ count: UInt8, label: String? = nil) throws -> [CheckpointID] {
        try Repository.create(at: path).close()
        let repository = try Repository.open(at: path, .writing)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 16))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        let ids = try (0..<count).map { step in
            guest.with { $0.write(UInt64(step % 16), LabelTests.page(step + 1)) }
            return try session.capture(label: label.map { try Label($0) }).checkpoint.id
        }
        session.close()
        try repository.close()
        return ids
    }

    private func removeIndex() throws {
        try FileManager.default.removeItem(atPath: path.appending("index").string)
    }

    private func labels() throws -> [String?] {
        try Repository.open(at: path, .reading).checkpoints().map { $0.label?.text }
    }

    // MARK: - What a label is

    @Test func aLabelIsGivenAfterwardsAndStays() throws {
        let ids = try chain(4)
        let repository = try Repository.open(at: path, .writing)
        let given = try repository.setLabel("good", of: ids[1])
        #expect(given.id == ids[1] && given.label == "good")
        #expect(try repository.checkpoint(named: "good") == given)
        #expect(try repository.checkpoint(named: "good~1").id == ids[0])
        #expect(try repository.verify().isClean)
        try repository.close()
        #expect(try labels() == [nil, "good", nil, nil])
        try removeIndex()
        #expect(try labels() == [nil, "good", nil, nil])
        let reader = try Repository.open(at: path, .reading)
        #expect(try reader.checkpoint(named: "good").id == ids[1])
    }

    @Test func itRefersToTheCheckpointThatWasGivenItLast() throws {
        let ids = try chain(5, label: "latest")
        let repository = try Repository.open(at: path, .writing)
        #expect(try repository.checkpoint(named: "latest").id == ids[4])
        // The middle one was published with the label, but does not bear it now.
        try repository.setLabel("latest", of: ids[2])
        #expect(try repository.checkpoint(named: "latest").id == ids[2])
        #expect(
            try repository.checkpoints().map(\.label) == ["latest", "latest", "latest", nil, nil])
        try repository.setLabel("other", of: ids[2])
        #expect(try repository.checkpoint(named: "latest").id == ids[1])
        try repository.forget([ids[1]])
        #expect(try repository.checkpoint(named: "latest").id == ids[0])
        try repository.setLabel(nil, of: ids[0])
        #expect(throws: RepositoryError.self) { try repository.checkpoint(named: "latest") }
        try repository.close()
        try removeIndex()
        #expect(try labels() == [nil, "other", nil, nil])
    }

    @Test func givingItTwiceWritesNothing() throws {
        let ids = try chain(2)
        let repository = try Repository.open(at: path, .writing)
        try repository.setLabel("good", of: ids[0])
        let before = try repository.openWriter().confirmedEnd
        try repository.setLabel("good", of: ids[0])
        try repository.setLabel(nil, of: ids[1])
        #expect(try repository.openWriter().confirmedEnd == before)
    }

    @Test func retentionKeepsIt() throws {
        let ids = try chain(6)
        let repository = try Repository.open(at: path, .writing)
        try repository.setLabel("good", of: ids[1])
        let kept = RetentionPolicy(keepLast: 1).decide(try repository.checkpoints())
            .filter(\.isKept).map(\.checkpoint.id)
        #expect(kept == [ids[1], ids[5]])
    }

    @Test func whatCannotBeIsRefusedAndChangesNothing() throws {
        let ids = try chain(3)
        let repository = try Repository.open(at: path, .writing)
        let other = SimulatedGuest(layout: GuestLayout(pageCount: 2))
        let foreign = try CaptureSession(of: other, in: repository, lineage: "db")
            .capture(label: "taken").checkpoint
        func code(_ label: String?, _ id: CheckpointID) -> RepositoryError.Code? {
            do throws(RepositoryError) {
                let label = try label.map { (text) throws(RepositoryError) in try Label(text) }
                try repository.setLabel(label, of: id)
                return nil
            } catch {
                return error.code
            }
        }
        for label in ["", "-x", "a b", "a\u{1b}[31m", "web", "db", "taken", "abcd"] {
            #expect(code(label, ids[0]) == .invalidName, "\(label.debugDescription)")
        }
        #expect(code(String(repeating: "x", count: 256), ids[0]) == .invalidName)
        #expect(code(String(repeating: "x", count: 255), ids[0]) == nil)
        #expect(code("free", CheckpointID(.none)) == .unknownName)
        try repository.forget([ids[1]])
        #expect(code("free", ids[1]) == .unknownName)
        try repository.close()
        #expect(code("free", foreign.id) == .readOnly)
        #expect(
            try labels() == [String(repeating: "x", count: 255), nil, "taken"])
    }

    // MARK: - Together with other operations

    /// Labels, captures, forgetting, pruning and lost indexes in any order, compared with a list of
    /// the expected label of each checkpoint.
    @Test func labelsAreThoseOfAPlainListWhateverHappens() throws {
        let rounds: UInt64 = TestSeed.isLong ? 40 : 4
        for round in 0..<rounds {
            var walk = try LabelWalk(TestSeed.generator(2_400 + round))
            for _ in 0..<120 { try walk.step() }
            try walk.finish()
        }
    }

    /// A damaged record: the index still knows the label, and repair stores it again; without the
    /// index the checkpoint has the label with which it was published.
    @Test(arguments: [true, false])
    func repairKeepsALabelThatTheIndexKnows(hasIndex: Bool) throws {
        let ids = try chain(3, label: "own")
        let repository = try Repository.open(at: path, .writing)
        try repository.setLabel("good", of: ids[1])
        let end = try repository.openWriter().confirmedEnd
        // So that the record is acknowledged whatever happens next.
        try repository.setLabel("last", of: ids[2])
        try repository.close()
        let url = URL(fileURLWithPath: path.appending(PackName.path(end.pack)).string)
        var bytes = try Data(contentsOf: url)
        let text = try #require(bytes.firstRange(of: Data("good".utf8)))
        bytes[text.lowerBound] ^= 1
        try bytes.write(to: url)
        if !hasIndex { try removeIndex() }
        let plan = try Repository.planRepair(at: path)
        #expect(!plan.findings.isEmpty && plan.losses.isEmpty)
        #expect(try plan.execute().report.isClean)
        #expect(try labels() == ["own", hasIndex ? "good" : "own", "last"])
        try removeIndex()
        #expect(try labels() == ["own", hasIndex ? "good" : "own", "last"])
    }
}

/// A repository whose labels change, and a plain list of them.
private struct LabelWalk {
    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }
    private var random: SeededGenerator
    private var repository: Repository
    private let guest = SimulatedGuest(layout: GuestLayout(pageCount: 24))
    private var session: CaptureSession?
    /// Checkpoints in the order of publication with their labels; "" is no label.
    private var expected: [(id: CheckpointID, label: String)] = []

    private static let names = ["one", "two", "three", ""]

    init(_ random: SeededGenerator) throws {
        self.random = random
        let path = directory.path.appending("store")
        try Repository.create(at: path).close()
        repository = try LabelWalk.open(path)
    }

    private static func open(_ path: FilePath) throws -> Repository {
        try Repository.open(
            at: path, .writing, files: PosixFiles(root: path), packByteCountMax: 288 << 10)
    }

    mutating func step() throws {
        switch Int.random(in: 0..<100, using: &random) {
        case 0..<35: try capture()
        case 35..<75: try label()
        case 75..<85: try forget()
        case 85..<93: try repository.planPrune(PruneOptions(unusedPercentMax: 0)).execute()
        default: try reopen(withoutIndex: Bool.random(using: &random))
        }
        if Int.random(in: 0..<10, using: &random) == 0 { try check() }
    }

    mutating func finish() throws {
        try repository.planPrune(PruneOptions(unusedPercentMax: 0)).execute()
        try check()
        try reopen(withoutIndex: true)
        try check()
        #expect(try repository.verify().isClean)
        try repository.close()
        let independent = try IndependentReader(path: path.string)
        #expect(independent.checkpoints.map(\.label) == expected.map(\.label))
    }

    private mutating func capture() throws {
        let session = try session ?? CaptureSession(of: guest, in: repository, lineage: "web")
        self.session = session
        for _ in 0..<6 {
            let frame = UInt64.random(in: 0..<24, using: &random)
            let words = (0..<Page.byteCount / 8).map { _ in random.next() }
            guest.with { guest in
                guest.write(frame, words.withUnsafeBytes { Array($0) })
            }
        }
        let label = LabelWalk.names.randomElement(using: &random) ?? ""
        let id = try session.capture(label: label.isEmpty ? nil : Label(label)).checkpoint.id
        expected.append((id, label))
    }

    private mutating func label() throws {
        guard let place = expected.indices.randomElement(using: &random) else { return }
        let label = LabelWalk.names.randomElement(using: &random) ?? ""
        try repository.setLabel(label.isEmpty ? nil : Label(label), of: expected[place].id)
        expected[place].label = label
        if label.isEmpty { return }
        for later in expected.indices where later > place && expected[later].label == label {
            expected[later].label = ""
        }
    }

    private mutating func forget() throws {
        let gone = Set(expected.map(\.id).shuffled(using: &random).prefix(3))
        try repository.forget(Array(gone))
        expected.removeAll { gone.contains($0.id) }
    }

    private mutating func reopen(withoutIndex: Bool) throws {
        session?.close()
        session = nil
        try repository.close()
        if withoutIndex {
            try FileManager.default.removeItem(atPath: path.appending("index").string)
        }
        repository = try LabelWalk.open(path)
    }

    private func check() throws {
        let found = try repository.checkpoints()
        #expect(found.map(\.id) == expected.map(\.id))
        #expect(found.map { $0.label?.text ?? "" } == expected.map(\.label))
        for name in LabelWalk.names where !name.isEmpty {
            let bearer = expected.last { $0.label == name }?.id
            #expect((try? repository.checkpoint(named: name))?.id == bearer, "\(name)")
        }
    }
}
