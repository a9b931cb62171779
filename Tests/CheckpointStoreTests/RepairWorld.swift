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

/// A repository of several packs, branches, forgotten checkpoints and a prune, full copies of its
/// checkpoints, and ways to damage it.
final class RepairWorld {
    static let packByteCount = 512 << 10
    static let pageCount = 100

    private let directory = TemporaryDirectory(inMemory: true)
    let path: FilePath
    private(set) var copies: [CheckpointID: [UInt64: [UInt8]]] = [:]
    private(set) var oracle: RepairOracle?
    private var random: SeededGenerator
    private let id: RepositoryID

    init(seed: UInt64) throws {
        random = SeededGenerator(seed: seed)
        path = directory.path.appending("store")
        try Repository.create(at: path).close()
        let repository = try Repository.open(
            at: path, .writing, files: PosixFiles(root: path),
            packByteCountMax: RepairWorld.packByteCount)
        id = repository.id
        let web = try capture(repository, "web", 14, nil)
        try forget(repository, [web[2], web[5], web[6]])
        let mail = try capture(repository, "mail", 5, nil)
        let branch = try capture(repository, "branch", 5, web[9])
        try forget(repository, [web[0], mail[1], branch[2]])
        try repository.setLabel("good", of: web[1].id)
        try repository.setLabel("best", of: web[3].id)
        try repository.planPrune(PruneOptions(unusedPercentMax: 0)).execute()
        let more = try capture(repository, "web", 9, nil)
        try forget(repository, [more[3], web[8]])
        try storeAgain(repository, of: more[more.count - 1], count: 40)
        try repository.close()
        oracle = try RepairOracle(try Repository.open(at: path, .reading), path)
    }

    /// A copy of the repository, to be damaged with another seed.
    init(copyOf other: RepairWorld, seed: UInt64) throws {
        random = SeededGenerator(seed: seed)
        path = directory.path.appending("store")
        (id, copies, oracle) = (other.id, other.copies, other.oracle)
        try FileManager.default.copyItem(atPath: other.path.string, toPath: path.string)
    }

    func open() throws -> Repository {
        try Repository.open(
            at: path, .writing, files: PosixFiles(root: path),
            packByteCountMax: RepairWorld.packByteCount)
    }

    /// The checkpoint published last.
    func newest() throws -> CheckpointID? {
        try Repository.open(at: path, .reading).checkpoints().max {
            $0.manifest.transaction < $1.manifest.transaction
        }?.id
    }

    func plan() throws -> RepairPlan {
        try Repository.planRepair(
            at: path, files: PosixFiles(root: path), packByteCountMax: RepairWorld.packByteCount)
    }

    // MARK: - Creation

    private func page() -> [UInt8] {
        // Some are compressible, most are not.
        let isPlain = Int.random(in: 0..<3, using: &random) == 0
        return (0..<Page.byteCount / 8).flatMap { _ in
            let word = isPlain ? random.next() & 0xff : random.next()
            return (0..<8 as Range<UInt64>).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) }
        }
    }

    @discardableResult
    func capture(
        _ repository: Repository, _ lineage: String, _ count: Int, _ parent: Checkpoint?
    ) throws -> [Checkpoint] {
        let pages = RepairWorld.pageCount
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: pages)]))
        let start = try parent ?? repository.newest(ofLineage: LineageName(lineage))
        for (frame, contents) in start.flatMap({ copies[$0.id] }) ?? [:] {
            guest.with { $0.write(frame, contents) }
        }
        let session = try CaptureSession(
            of: guest, in: repository, lineage: LineageName(lineage), parent: parent)
        var result: [Checkpoint] = []
        for step in 0..<count {
            // Sometimes the same frames as before: then the previous map is not needed.
            let frames: [Int]
            if step == 0 && start == nil {
                frames = Array(0..<pages)
            } else if Bool.random(using: &random) {
                frames = Array(10..<18)
            } else {
                frames = (0..<8).map { _ in Int.random(in: 0..<pages, using: &random) }
            }
            for frame in frames {
                let contents = page()
                guest.with { $0.write(UInt64(frame), contents) }
            }
            let checkpoint = try session.capture().checkpoint
            copies[checkpoint.id] = guest.with { $0.pages }
            result.append(checkpoint)
        }
        session.close()
        return result
    }

    /// Takes a checkpoint with some pages of another one, and stores them again, as two
    /// simultaneous captures would.
    private func storeAgain(
        _ repository: Repository, of checkpoint: Checkpoint, count: Int
    ) throws {
        let pages = (copies[checkpoint.id] ?? [:]).filter { $0.key < UInt64(count) }
        let transaction = try repository.begin()
        let draft = CheckpointDraft(map: PageMap(disksIn: .process))
        draft.adopt(
            GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: count)]))
        let compressor = try Compressor(level: .standard)
        var changed: [Int] = []
        for (frame, contents) in pages.sorted(by: { $0.key < $1.key })
        where contents.contains(where: { $0 != 0 }) {
            let ordinal = try transaction.reserveOrdinals(1)
            let digest = contents.withUnsafeBytes { PageDigest(hashing: $0) }
            draft.update([frame].span, [.present(digest)].span, changed: &changed)
            var records = RecordWriter()
            let table = contents.withUnsafeBytes {
                PageGroupEncoder.append(
                    [PageBlockSource(bytes: $0)], firstOrdinal: ordinal,
                    transaction: transaction.number, compressor: compressor, to: &records)
            }
            let pending = PendingRecord(
                range: 0..<records.count, type: .pageGroup,
                transaction: transaction.number, frame: table)
            try records.withUnsafeBytes { try transaction.append([pending], of: $0) }
            draft.recordStored([(PageRange(first: PageFrameNumber(frame), count: 1), ordinal)])
        }
        let prepared = try transaction.prepare(
            draft, parent: nil, lease: nil, state: GuestState(),
            CheckpointFacts(
                lineage: "twice", label: nil, timeNanoseconds: 0, comparedAll: true))
        let published = try transaction.publish(prepared)
        transaction.index()
        copies[published.checkpoint.id] = pages
    }

    private func forget(_ repository: Repository, _ checkpoints: [Checkpoint]) throws {
        try repository.forget(checkpoints.map(\.id))
    }

    // MARK: - Damage

    enum Damage: CaseIterable {
        case bit, pageGroup, mapPart, state, manifest, forget, prunedList, labels, mark
        case packIndex, footer, envelope, repository
        case truncate, delete, swap, junk, foreign, index, indexGarbage, head
    }

    private func url(_ name: String) -> URL {
        URL(fileURLWithPath: path.appending(name).string)
    }

    private func packs() throws -> [UInt32] { try PackName.list(PosixFiles(root: path)) }

    private func change(_ name: String, _ body: (inout [UInt8]) -> Void) throws {
        var bytes = [UInt8](try Data(contentsOf: url(name)))
        body(&bytes)
        try Data(bytes).write(to: url(name))
    }

    private func flip(_ name: String, in range: Range<Int>) throws {
        let place = Int.random(in: range, using: &random)
        try change(name) { bytes in
            guard place < bytes.count else { return }
            bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
        }
    }

    /// Does one kind of damage at a random place; returns the place.
    func damage(_ kind: Damage) throws -> String {
        let numbers = try packs()
        guard let pack = numbers.randomElement(using: &random) else { return "nothing" }
        let name = PackName.path(pack)
        let byteCount = try Data(contentsOf: url(name)).count
        switch kind {
        case .bit: try flip(name, in: 0..<max(byteCount, 1))
        case .pageGroup, .mapPart, .state, .manifest, .forget, .prunedList, .labels, .mark:
            let types: [Damage: RecordType] = [
                .pageGroup: .pageGroup, .mapPart: .mapPart, .state: .guestState,
                .manifest: .publish, .forget: .forget, .prunedList: .pruned,
                .labels: .labels, .mark: .mark,
            ]
            return try flipRecord(types[kind] ?? .mark)
        case .packIndex: try flip(name, in: max(0, byteCount - 200)..<max(1, byteCount - 32))
        case .footer: try flip(name, in: max(0, byteCount - 32)..<max(1, byteCount))
        case .envelope: try flip(name, in: 0..<64)
        case .repository: try flip("repository", in: 0..<64)
        case .truncate:
            let count = Int.random(in: 0..<max(byteCount, 1), using: &random)
            try change(name) { $0.removeLast(max(0, $0.count - count)) }
        case .delete: try FileManager.default.removeItem(at: url(name))
        case .swap:
            guard let other = numbers.randomElement(using: &random), other != pack else { break }
            let (left, right) = (url(name), url(PackName.path(other)))
            let (a, b) = (try Data(contentsOf: left), try Data(contentsOf: right))
            try b.write(to: left)
            try a.write(to: right)
            return "swap \(pack) and \(other)"
        case .junk: try Data("notes".utf8).write(to: url("packs/notes.txt"))
        case .foreign:
            let other = Envelope(kind: .pack, repository: .random(), number: UInt64(pack))
            try change(name) { $0.replaceSubrange(0..<min(64, $0.count), with: other.encoded) }
        case .head: try flip("head", in: 0..<Envelope.byteCount)
        case .index: try? FileManager.default.removeItem(at: url("index"))
        case .indexGarbage: try? Data(count: 10_000).write(to: url("index/data.mdb"))
        }
        return "\(kind) in pack \(pack)"
    }

    /// Swaps the names of the first and the newest pack, and destroys their envelopes.
    func swapWithoutEnvelopes() throws -> (first: UInt32, newest: UInt32) {
        let numbers = try packs()
        let (first, newest) = (numbers[0], numbers[numbers.count - 1])
        let (left, right) = (url(PackName.path(first)), url(PackName.path(newest)))
        let (a, b) = (try Data(contentsOf: left), try Data(contentsOf: right))
        let head = Data(repeating: 0xff, count: Envelope.byteCount)
        try (head + b.dropFirst(Envelope.byteCount)).write(to: left)
        try (head + a.dropFirst(Envelope.byteCount)).write(to: right)
        return (first, newest)
    }

    /// Damages the first page group of the newest checkpoint and the mark that confirms it, the
    /// last record of all.
    func damageNewestAndItsMark() throws -> [String] {
        let pack = try #require(try packs().last)
        let groups = try records(.pageGroup).filter { $0.pack == pack }
        let newest = try #require(groups.last).transaction
        let group = try #require(groups.first { $0.transaction == newest })
        let mark = try #require(try records(.mark).last { $0.pack == pack })
        // The checksum of each.
        try flip(PackName.path(pack), in: group.bytes.lowerBound + 28..<group.bytes.lowerBound + 32)
        try flip(PackName.path(pack), in: mark.bytes.lowerBound + 28..<mark.bytes.lowerBound + 32)
        return [group, mark].map { "the record at \($0.bytes.lowerBound) of pack \(pack)" }
    }

    private struct Record {
        let pack: UInt32
        let bytes: Range<Int>
        let transaction: UInt64
    }

    private func records(_ type: RecordType) throws -> [Record] {
        var found: [Record] = []
        for pack in try packs() {
            let bytes = [UInt8](try Data(contentsOf: url(PackName.path(pack))))
            var offset = 64
            while offset + 32 <= bytes.count,
                let header = try? bytes[offset...].withUnsafeBytes({ try RecordHeader($0) })
            {
                let range = offset..<offset + header.recordByteCount
                if header.type == type {
                    found.append(Record(pack: pack, bytes: range, transaction: header.transaction))
                }
                offset = range.upperBound
            }
        }
        return found
    }

    private func flipRecord(_ type: RecordType) throws -> String {
        let places = try records(type).map { ($0.pack, $0.bytes) }
        guard let (pack, range) = places.randomElement(using: &random) else { return "nothing" }
        // The header as often as the rest.
        let head = range.lowerBound..<min(range.lowerBound + 48, range.upperBound)
        try flip(PackName.path(pack), in: Bool.random(using: &random) ? head : range)
        return "\(type) at \(range.lowerBound) of pack \(pack)"
    }

    /// The damaged repository as the oracle needs it.
    func damaged() throws -> RepairOracle.Damaged {
        var found: [UInt32: [UInt8]] = [:]
        var strangers: [UInt32: [UInt8]] = [:]
        for pack in try packs() {
            let bytes = [UInt8](try Data(contentsOf: url(PackName.path(pack))))
            let head = try? Envelope.decode(bytes, kind: .pack)
            if let head, head.repository != id { continue }
            let number =
                head.flatMap { UInt32(exactly: $0.number) }
                ?? oracle?.number(of: bytes, named: pack) ?? pack
            if number != pack {
                strangers[number] = bytes
            } else {
                found[pack] = bytes
            }
        }
        found.merge(strangers) { named, _ in named }
        let index = try? Data(contentsOf: url("index/data.mdb"))
        return RepairOracle.Damaged(
            packs: found, hasIndex: index.map { $0.contains { $0 != 0 } } ?? false,
            confirmed: confirmedByHead())
    }

    private func confirmedByHead() -> (pack: UInt32, offset: Int)? {
        guard let bytes = try? Data(contentsOf: url("head")),
            let head = try? Envelope.decode([UInt8](bytes), kind: .head), head.repository == id
        else { return nil }
        return (UInt32(truncatingIfNeeded: head.number >> 32), Int(head.number & 0xffff_ffff))
    }
}
