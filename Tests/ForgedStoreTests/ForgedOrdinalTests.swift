import CheckpointFormat
import CheckpointStore
import CheckpointUpkeep
import Forgeries
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

/// Page maps and page groups that disagree about the locations of pages: every page exists, so a
/// repair keeps every checkpoint, and verify finds nothing afterwards.
@Suite struct ForgedOrdinalTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }

    private func makeWhole() throws -> ForgedStore {
        try WholeStore.make(at: path, seed: 240)
        return try ForgedStore(path)
    }

    /// Repairs a forged store that verify reports as damaged, and checks that all of it is whole.
    ///
    /// - Returns: the result of the repair; nil if no checkpoint has the pages that are not found.
    private func expectRepaired(
        _ forged: ForgedStore, count: Int, _ what: String
    ) throws -> [RepairPlan.Finding]? {
        try forged.write(path)
        let plan = try Repository.planRepair(at: path)
        if try Repository.open(at: path, .reading).verify().isClean {
            #expect(plan.isEmpty, "\(what)")
            return nil
        }
        #expect(plan.losses.isEmpty && plan.wholeCheckpoints.count == count, "\(what)")
        let report = try plan.execute().report
        #expect(report.isClean, "\(what): \(report.corruptions)")
        #expect(try Repository.planRepair(at: path).isEmpty, "\(what)")
        try forged.write(path)
        let trial = StoreTrial.run(path)
        #expect(trial.isDamaged && trial.complaints.isEmpty, "\(what): \(trial.complaints)")
        return plan.findings
    }

    private func checkpointCount() throws -> Int {
        try Repository.open(at: path, .reading).checkpoints().count
    }

    /// The location of a map part in an original pack, and its contents.
    private func parts(_ store: ForgedStore) throws -> [(place: RecordPlace, part: MapPart)] {
        try store.places(2).filter { !store.packs[$0.pack].isRewritten }.map { place in
            let part = try store[place].payload.withUnsafeBytes {
                try MapPart.decode($0, decompressor: try Decompressor())
            }
            return (place, part)
        }
    }

    /// The page groups of a transaction, with their ordinals.
    private func frames(
        _ store: ForgedStore, _ transaction: UInt64
    ) -> [(place: RecordPlace, ordinals: Range<UInt32>)] {
        store.places(1).filter { store[$0].transaction == transaction }.map { place in
            let payload = store[place].payload
            let first = UInt32(Little.read(payload[...], 0, 4))
            return (place, first..<first + UInt32(payload[4]))
        }
    }

    /// The part with another ordinal for each page that its transaction stored.
    ///
    /// - Parameter change: called with a page's ordinal, and with true for the last one.
    private func renumbered(
        _ part: MapPart, startingRunAt start: UInt32? = nil,
        _ change: (_ ordinal: UInt32, _ isLast: Bool) -> UInt32 = { ordinal, _ in ordinal }
    ) throws -> [UInt8] {
        let last = part.runs.lastIndex { $0.content == .storedHere }
        var runs: [MapRun] = []
        for (index, run) in part.runs.enumerated() {
            guard run.content == .storedHere else {
                runs.append(run)
                continue
            }
            var begun: MapRun?
            for (position, frame) in run.range.frames.enumerated() {
                let old = run.firstOrdinal + UInt32(position)
                let new = change(old, index == last && position == run.range.count - 1)
                let next = PageRange(first: PageFrameNumber(frame), count: 1)
                if let open = begun, old != start,
                    open.firstOrdinal + UInt32(open.range.count) == new
                {
                    begun = MapRun(
                        range: PageRange(first: open.range.first, count: open.range.count + 1),
                        content: .storedHere, firstOrdinal: open.firstOrdinal)
                    continue
                }
                if let begun { runs.append(begun) }
                begun = MapRun(range: next, content: .storedHere, firstOrdinal: new)
            }
            if let begun { runs.append(begun) }
        }
        return MapPart(runs: runs, digests: part.digests)
            .encoded(compressor: try Compressor(level: .standard))
    }

    /// A page map with wrong ordinals for some pages: other pages of the same page groups, for
    /// which it states the right location, are kept as well.
    @Test(arguments: ["the last one nowhere", "all one further", "the last one the first"])
    func pagesBesideMisplacedOnesStay(_ what: String) throws {
        let whole = try makeWhole()
        let count = try checkpointCount()
        var tried = 0
        for (place, part) in try parts(whole) {
            let stored = part.runs.filter { $0.content == .storedHere }.map(\.range.count)
            guard stored.reduce(0, +) > 1 else { continue }
            var forged = whole
            forged[place].payload = try renumbered(part) { ordinal, isLast in
                switch what {
                case "all one further": ordinal + 1
                case "the last one nowhere": isLast ? 1 << 20 : ordinal
                default: isLast ? 0 : ordinal
                }
            }
            // One page that is the first anyway.
            guard forged[place].payload != whole[place].payload else { continue }
            forged.relink(from: whole)
            let findings = try expectRepaired(forged, count: count, "part \(place), \(what)")
            tried += findings == nil ? 0 : 1
        }
        #expect(tried > 3)
    }

    /// A page group after its transaction's manifest: its pages are never found.
    @Test func aPageGroupBehindItsManifestIsNamed() throws {
        let whole = try makeWhole()
        let count = try checkpointCount()
        var tried = 0
        for manifest in whole.places(4) where !whole.packs[manifest.pack].isRewritten {
            let own = frames(whole, whole[manifest].transaction).map(\.place)
            guard let frame = own.last(where: { $0.pack == manifest.pack }) else { continue }
            var forged = whole
            let record = forged.packs[frame.pack].records.remove(at: frame.record)
            forged.packs[frame.pack].records.insert(record, at: manifest.record)
            forged.relink(from: whole)
            let what = "manifest \(manifest)"
            guard let findings = try expectRepaired(forged, count: count, what) else { continue }
            #expect(findings.contains { $0.corruption.reason.contains("after the manifest") })
            tried += 1
        }
        #expect(tried > 3)
    }

    /// Another transaction's page group with ordinals that a page map uses for its own pages, where
    /// the map has a run that begins after them: once the page group of these pages is gone, the
    /// other one would replace it.
    @Test func aPageGroupOfTheSameOrdinalsTakesNoPlace() throws {
        let whole = try makeWhole()
        let count = try checkpointCount()
        var tried = 0
        for (place, part) in try parts(whole) {
            let transaction = whole[place].transaction
            for run in part.runs where run.content == .storedHere {
                let end = run.firstOrdinal + UInt32(run.range.count)
                let own = frames(whole, transaction).first {
                    $0.place.pack == place.pack && $0.ordinals.lowerBound >= run.firstOrdinal
                        && $0.ordinals.upperBound <= end
                }
                let other = whole.places(1).first { frame in
                    whole[frame].transaction != transaction
                        && Int(whole[frame].payload[4]) + 2 <= own?.ordinals.count ?? 0
                }
                guard let own, let other else { continue }
                var record = ForgedRecord(
                    type: 1, transaction: transaction, payload: whole[other].payload)
                let first = own.ordinals.lowerBound + 1
                record.payload.replaceSubrange(0..<4, with: Little.bytes(UInt64(first), 4))
                var forged = whole
                forged[place].payload = try renumbered(
                    part, startingRunAt: first + UInt32(record.payload[4]))
                forged.packs[own.place.pack].records.insert(record, at: own.place.record + 1)
                forged.relink(from: whole)
                let what = "part \(place), run \(run)"
                tried += try expectRepaired(forged, count: count, what) == nil ? 0 : 1
            }
        }
        #expect(tried > 0)
    }
}
