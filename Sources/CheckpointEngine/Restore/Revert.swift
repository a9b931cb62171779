import CPageKernels
public import CheckpointIndex
import CheckpointStore
public import GuestModel
import PackStore
import Synchronization

// Reverts in place: the guest goes back to a checkpoint, and only pages that differ are written.
//
//   while it runs:   candidates = difference of the page maps + pages written since
//                    their contents in the checkpoint are read, verified, and staged;
//                    the same for pages that were written meanwhile, in rounds, until few come
//                    the disks are prepared
//   in the pause:    devices stop; meanwhile the pages written since the last round are staged too,
//                    and after it those that devices have written
//                    the state is prepared, and the disks go back
//                    every candidate is compared with the live page; those that differ are written
//                    the state is restored
//   afterwards:      the log is taken; pages in it that equal the checkpoint's are removed
//
// Nothing is written before everything that will be written is staged and verified. So a damaged
// repository leaves the guest unchanged.

/// The result of a revert.
public struct RevertResult: Sendable {
    /// The number of pages that differed and were written.
    public let writtenPageCount: Int
    /// The number of pages that were compared.
    public let comparedPageCount: Int
    /// How long the guest took to pause, and how long it was paused.
    public let pauseTimes: PauseTimes
    /// How long the guest was paused.
    public var pause: Duration { pauseTimes.downtime }
    /// The number of bytes that were read from packs in the pause, for pages that were first
    /// written after the last round.
    public let pausedReadByteCount: Int
    /// The number of blocks of disks that differed, and were written.
    public let writtenBlockCount: Int
    /// What the pause consisted of, in this order, and how long each part took.
    public let steps: [Step]
    /// Devices that the guest had not connected again after the revert, in the time that its domain
    /// gives them.
    public let unconnectedDevices: [String]

    /// A part of the pause.
    public struct Step: Hashable, Sendable {
        /// What was done: `stop`, `devices`, `late`, `prepare`, `disks`, `pages`, `state`,
        /// `resume`; and `reconnect`, in which the guest runs.
        public let name: String
        /// How long it took.
        public let duration: Duration
    }
}

extension CaptureSession {
    /// Reverts the guest's memory and state to a checkpoint, in place.
    ///
    /// The next capture follows that checkpoint. The session's disks go back too, if they are
    /// `RevertibleDisks` or `ExchangeableDisks` and the checkpoint has the same ones; other disks
    /// are refused with `unsupported`, and disks that the session does not know of are not put
    /// back. Restore the checkpoint as a new guest instead.
    ///
    /// Blocks, and waits until captures in progress have ended. Needs memory for the pages that may
    /// differ: those in which the checkpoint differs from the newest one, and those that were
    /// written since the last capture.
    ///
    /// When this throws before it has written a page, the guest runs unchanged. When writing fails,
    /// the guest runs with a part of the checkpoint's pages: the message says so, and the next
    /// capture compares every page. Disks are written before the memory: if that fails, what they
    /// held is put back and the guest runs unchanged, unless that fails too, which the message
    /// says. If the memory fails after them, they are the checkpoint's. Reverting again completes
    /// what was left. Until the pause, cancelling wakes it wherever it waits, and the
    /// guest runs unchanged. From the pause on cancelling has no effect.
    ///
    /// - Parameters:
    ///   - checkpoint: a checkpoint of the session's repository.
    ///   - cancellation: ends the revert with `cancelled`.
    ///   - progress: called in phase `reading`, before the pause, with pages; the total is not
    ///     known.
    @discardableResult
    public func revert(
        to checkpoint: Checkpoint, cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> RevertResult {
        guard let writable = guest as? any WritableGuest else {
            throw CheckpointError(
                GuestError(code: .unsupported, message: "this guest cannot be written in place"))
        }
        return try reverting(to: checkpoint, cancellation, progress) { disks, control in
            try RevertOperation(
                session: self, guest: writable, target: checkpoint, disks, control
            ).run()
        }
    }
}

/// One revert, on the caller's thread.
private struct RevertOperation {
    /// Rounds in which pages are staged while the guest runs; each stages what was first written
    /// since the one before.
    private static let roundsMax = 8
    /// This many pages may be left to the pause.
    private static let pausePageCountMax = 16

    /// Runs that are asked for ahead of the one that is compared.
    private static let prefetchDistance = 4

    private let session: CaptureSession
    private let guest: any WritableGuest
    private let target: Checkpoint
    private let lease: SessionLease
    private let maps: PageMap
    /// The memory's.
    private let map: VolumeMap
    private let guestState: GuestState
    private let staged: StagedPages
    private let disks: (any RevertedDisks)?
    private let control: WorkControl
    private let steps = StepTimes()

    init(
        session: CaptureSession, guest: any WritableGuest, target: Checkpoint,
        _ disks: (any RevertedDisks)?, _ control: WorkControl
    ) throws {
        self.disks = disks
        self.control = control
        self.session = session
        self.guest = guest
        self.target = target
        let repository = session.pipeline.repository
        lease = try repository.leaseForSession(target)
        // Repeated reverts to the newest checkpoint, as a fuzzer does: its map is in memory.
        let isParent = session.pipeline.parent?.id == target.id
        maps =
            isParent
            ? try session.pipeline.withMap { $0 } : try repository.pageMap(of: target).map
        map = maps.memory
        guestState = try repository.state(of: target)
        staged = StagedPages(
            map: map, supply: PageSupply(repository: repository, checkpoint: target))
    }

    func run() throws -> RevertResult {
        try guest.checkState(guestState)
        var (candidates, known) = try candidatesWhileRunning()
        try stage(candidates)
        try disks?.prepare(maps, control)
        if known != nil, try !stageRounds(&candidates) { known = nil }
        var sets = RevertSets(candidates, in: map.layout)
        var work = RevertWork(pageCount: candidates.count)
        session.state.withLock { $0.unsaved.reserveCapacity(frameEnd: sets.frameEnd) }
        let start = ContinuousClock.now
        steps.begin()
        let paused = try PausedGuest(stopping: guest)
        let pausedSince = ContinuousClock.now
        steps.end("stop")
        var (written, pausedReadByteCount) = (0, 0)
        var failure: (any Error)?
        do {
            pausedReadByteCount = try readLate(known, &sets)
            try exchangeDisks()
            written = try write(sets, &work)
        } catch {
            failure = error
        }
        do {
            try paused.resume()
        } catch {
            // What the guest has is not known, and the next capture does not follow the target.
            session.state.mergeBack(DirtyBitmap(), comparesAll: true)
            disks?.leaveHalfway()
            guard let failure, "\(failure)" != "\(error)" else { throw error }
            throw CheckpointError(
                GuestError(
                    code: error.code,
                    message: "\(failure); \(error)"))
        }
        if let failure { throw failure }
        let times =
            guest.pauseTimes
            ?? PauseTimes(
                request: pausedSince - start, downtime: ContinuousClock.now - pausedSince)
        steps.end("resume", at: pausedSince + times.downtime)
        session.pipeline.rebase(on: target, lease: lease, map: maps)
        disks?.complete()
        let unconnected = guest.awaitDevices()
        steps.end("reconnect")
        forgetOwnWrites(sets.candidates)
        return RevertResult(
            writtenPageCount: written, comparedPageCount: sets.candidates.count,
            pauseTimes: times,
            pausedReadByteCount: pausedReadByteCount, writtenBlockCount: disks?.blockCount ?? 0,
            steps: steps.all, unconnectedDevices: unconnected)
    }

    /// In the pause: reads what is still missing, and writes disks that are the guest's own.
    ///
    /// - Returns: bytes read from packs.
    private func readLate(_ known: GuestLayout?, _ sets: inout RevertSets) throws -> Int {
        do {
            var byteCount = 0
            if try guest.beginStoppingDevices() {
                try disks?.load()
                // Without a log all memory would be read twice.
                if known != nil { byteCount = try stageLate(known, &sets) }
            }
            try guest.stopDevices()
            steps.end("devices")
            byteCount += try stageLate(known, &sets)
            if let disks {
                byteCount += try disks.plan(within: session.options.diskCutBudget)
                try disks.write()
            }
            guest.noteRevert(
                NotedRevert(
                    checkpoint: target.id, pages: sets.candidates, layout: map.layout,
                    diskCut: disks?.cutName ?? ""))
            steps.end("late")
            try adoptLayout()
            return byteCount
        } catch {
            try unloadDisks(after: error)
            throw error
        }
    }

    /// The guest is about to continue as it was, because of an error.
    private func unloadDisks(after error: any Error) throws {
        do { try disks?.unload() } catch let failure {
            throw CheckpointError(.guest, "\(error); and \(failure)")
        }
    }

    /// Stages pages that were written since the last round, or since this was called before.
    ///
    /// - Returns: bytes read from packs.
    private func stageLate(_ known: GuestLayout?, _ sets: inout RevertSets) throws -> Int {
        try addLate(known, to: &sets)
        return try staged.add(sets.late, .none)
    }

    /// Prepares the guest's state, and exchanges the disks: no page is written yet.
    private func exchangeDisks() throws {
        do {
            try guest.prepareState(guestState)
            steps.end("prepare")
            try disks?.exchange()
            steps.end("disks")
        } catch {
            session.state.mergeBack(DirtyBitmap(), comparesAll: true)
            // The memory is as it was: the disks follow it.
            try unloadDisks(after: error)
            try disks?.takeBack(after: error)
            throw CheckpointError(
                .guest,
                "the revert to \(target.id.short) failed before a page was written (\(error)); "
                    + "revert again or restore it")
        }
    }

    private func adoptLayout() throws {
        do throws(GuestError) {
            try guest.adoptLayout(map.layout)
        } catch {
            // The memory is as it was: the disks follow it.
            try disks?.takeBack(after: error)
            throw error
        }
    }

    /// Reads pages while the guest runs.
    ///
    /// - Parameter all: these and those that were staged before.
    private func stage(_ pages: DirtyBitmap, of all: DirtyBitmap? = nil) throws {
        _ = try staged.add(pages, control)
        try control.report(.reading, .pages, (all ?? pages).count, of: nil)
    }

    /// Stages what is written meanwhile, until so few new pages come that the pause may read them.
    ///
    /// What a page held in the checkpoint does not change, so a page that is written repeatedly is
    /// read once.
    ///
    /// - Returns: false if the log lost count meanwhile.
    private func stageRounds(_ candidates: inout DirtyBitmap) throws -> Bool {
        guard let log = SessionLog(session) else { return false }
        var last = Int.max
        for _ in 0..<RevertOperation.roundsMax {
            guard try readLog(log, isFinal: false) == .complete else { return false }
            var new = session.state.withLock { $0.unsaved }
            new.subtract(candidates)
            let count = new.count
            guard count > RevertOperation.pausePageCountMax, count < last else { return true }
            last = count
            candidates.formUnion(new)
            try stage(new, of: candidates)
        }
        return true
    }

    /// Pages that may differ from the target, as far as is known while the guest runs, and the
    /// layout that this applies to; nil if every page must be compared in the pause.
    private func candidatesWhileRunning() throws -> (DirtyBitmap, GuestLayout?) {
        guard let log = SessionLog(session) else { return (DirtyBitmap(), nil) }
        let (comparesAll, layout) = session.state.withLock { ($0.comparesAll, $0.layout) }
        if log.isRunning && !comparesAll {
            var candidates = try session.pipeline.withMap { map.difference(from: $0.memory) }
            guard try readLog(log, isFinal: false) == .complete else {
                return (candidates, nil)
            }
            candidates.formUnion(session.state.withLock { $0.unsaved })
            return (candidates, layout)
        }
        // Nothing is known about the memory: it is read while the guest runs, and what is written
        // meanwhile is in the log.
        try log.begin()
        _ = try takeLog(log)
        let noted = guest.notedRevert()
        let now = try guest.layout()
        guard let noted, noted.checkpoint == target.id else {
            return (map.difference(from: try guest.pageMap()), now)
        }
        // The guest stands still since another process reverted it: no other page differs.
        var present = noted.pages
        present.formIntersection(DirtyBitmap(now))
        var differing = map.difference(
            from: try guest.pageMap(of: GuestLayout(runs: present.runs())))
        differing.formIntersection(noted.pages)
        return (differing, now)
    }

    /// Adds what joins the candidates in the pause: pages written since the last round; or, without
    /// a log, every page that differs now.
    ///
    /// Allocates nothing where there is a log and the layout is the target's.
    private func addLate(_ known: GuestLayout?, to sets: inout RevertSets) throws {
        if let log = SessionLog(session), let known,
            try readLog(log, isFinal: true, into: &sets.late) == .complete
        {
            session.state.withLock { sets.late.formUnion($0.unsaved) }
            let live = try guest.layout()
            if live != known || live != map.layout {
                sets.late.formUnion(ballooned(live, since: known))
            }
        } else {
            sets.late = map.difference(from: try guest.pageMap())
        }
        sets.joinLate()
    }

    /// Frames that came since the last capture, and those that the target has and the guest has no
    /// longer: no log names them.
    private func ballooned(_ live: GuestLayout, since layout: GuestLayout) -> DirtyBitmap {
        let live = DirtyBitmap(live)
        var missing = DirtyBitmap(map.layout)
        missing.subtract(live)
        var added = live
        added.subtract(DirtyBitmap(layout))
        return missing.union(added)
    }

    /// Reads the log into the session's unsaved pages: should it be cleared by that, a failure from
    /// here on loses none.
    private func readLog(_ log: SessionLog, isFinal: Bool) throws -> DirtyKnowledge {
        var pages = DirtyBitmap()
        return try readLog(log, isFinal: isFinal, into: &pages)
    }

    /// The same by way of an empty set that has room.
    private func readLog(
        _ log: SessionLog, isFinal: Bool, into pages: inout DirtyBitmap
    ) throws -> DirtyKnowledge {
        try keep(&pages) { (pages) throws(GuestError) in
            try log.read(into: &pages, isFinal: isFinal)
        }
    }

    /// Takes the log into the session's unsaved pages.
    private func takeLog(_ log: SessionLog) throws -> DirtyKnowledge {
        var pages = DirtyBitmap()
        return try keep(&pages) { (pages) throws(GuestError) in
            try log.take(into: &pages, isFinal: false)
        }
    }

    private func keep(
        _ pages: inout DirtyBitmap,
        _ read: (inout DirtyBitmap) throws(GuestError) -> DirtyKnowledge
    ) throws -> DirtyKnowledge {
        do {
            let knowledge = try read(&pages)
            session.state.mergeBack(pages, comparesAll: knowledge == .unknown)
            return knowledge
        } catch {
            session.state.mergeBack(pages, comparesAll: true)
            throw error
        }
    }

    /// Writes the candidates that differ, and the state.
    private func write(_ sets: RevertSets, _ work: inout RevertWork) throws -> Int {
        var written = 0
        do {
            sets.present.forEachRun { work.add($0, of: guest) }
            try write(work, &written)
            steps.end("pages")
            try guest.restoreState(guestState)
            steps.end("state")
        } catch {
            session.state.mergeBack(DirtyBitmap(), comparesAll: true)
            disks?.leaveHalfway()
            throw CheckpointError(
                .guest,
                "the revert to \(target.id.short) failed after writing \(counted(written, "page")) "
                    + "(\(error)); the guest has part of them"
                    + (disks == nil ? "" : ", and the disks are the checkpoint's")
                    + "; revert again or restore it")
        }
        return written
    }

    /// Writes the pages that differ.
    private func write(_ work: RevertWork, _ written: inout Int) throws {
        let mapped = work.mapped
        for index in mapped.indices {
            // Neither page is likely to be in the caches: ask for those to come.
            if index + RevertOperation.prefetchDistance < mapped.count {
                let (range, memory) = mapped[index + RevertOperation.prefetchDistance]
                ckernels_prefetch(memory.baseAddress)
                staged.prefetch(range.first)
            }
            written += staged.put(mapped[index].range, to: mapped[index].memory)
        }
        guard !work.scattered.isEmpty else { return }
        let isChanged = try guest.changePages(work.scattered.span) { frame, page in
            written += staged.put(PageRange(first: frame, count: 1), to: page)
        }
        guard !isChanged else { return }
        for batch in StagedBatches.cut(work.scattered) { written += try writeDiffering(batch) }
    }

    /// Takes the log, and removes our own writes from it.
    ///
    /// A page that equals the target's after that need not be saved, because a later write is
    /// logged again. So the guest may run meanwhile.
    private func forgetOwnWrites(_ candidates: DirtyBitmap) {
        var unsaved = DirtyBitmap()
        var comparesAll = true
        if let log = SessionLog(session), log.isRunning {
            do {
                comparesAll = try log.take(into: &unsaved, isFinal: false) != .complete
                var own = unsaved
                own.formIntersection(candidates)
                own.formIntersection(DirtyBitmap(map.layout))
                unsaved.subtract(own)
                unsaved.formUnion(try differing(own))
            } catch {
                // Nothing is lost: every page is compared next time.
                comparesAll = true
            }
        }
        session.state.withLock { [unsaved, comparesAll] state in
            state.unsaved = unsaved
            state.comparesAll = comparesAll
            state.layout = map.layout
        }
    }

    /// Those candidates that exist and differ from the target.
    ///
    /// They are copied, not compared in place: a running guest may release memory.
    private func differing(_ frames: DirtyBitmap) throws(GuestError) -> DirtyBitmap {
        var result = DirtyBitmap()
        for batch in StagedBatches.cut(try guest.existing(frames).runs()) {
            let slot = session.pipeline.pool.take()
            try forEachDiffering(batch, slot) { frame in result.insert(frame) }
        }
        return result
    }

    /// Copies live pages to a slot, and calls `body` with the frames that differ.
    private func forEachDiffering(
        _ batch: [PageRange], _ slot: StagingPool.Slot, _ body: (PageFrameNumber) -> Void
    ) throws(GuestError) {
        let count = batch.reduce(0) { $0 + $1.byteCount }
        let live = UnsafeMutableRawBufferPointer(rebasing: slot.bytes[..<count])
        var destination = live.mutableBytes
        try guest.copyPages(batch.span, into: &destination)
        var position = 0
        for run in batch {
            let pages = live[position..<position + run.byteCount]
            staged.forEachDiffering(run, from: UnsafeMutableRawBufferPointer(rebasing: pages)) {
                frame, _ in body(frame)
            }
            position += run.byteCount
        }
    }

    /// Compares a batch with the live pages and writes what differs.
    private func writeDiffering(_ batch: [PageRange]) throws -> Int {
        let slot = session.pipeline.pool.take()
        var differing: [PageRange] = []
        var end = 0
        try forEachDiffering(batch, slot) { frame in
            // Differing pages are packed at the front of the slot, over pages that are done.
            let place = slot.bytes[end..<end + Page.byteCount]
            staged.copy(frame, to: UnsafeMutableRawBufferPointer(rebasing: place))
            end += Page.byteCount
            differing.appendJoining(PageRange(first: frame, count: 1))
        }
        guard !differing.isEmpty else { return 0 }
        try guest.writePages(
            differing.span, from: UnsafeRawBufferPointer(rebasing: slot.bytes[..<end]).bytes)
        return end / Page.byteCount
    }
}

/// How long the parts of the pause took; used by one thread.
private final class StepTimes {
    private(set) var all: [RevertResult.Step] = []
    private var last = ContinuousClock.now

    init() { all.reserveCapacity(12) }

    func begin() { last = .now }

    func end(_ name: String, at now: ContinuousClock.Instant = .now) {
        let now = max(now, last)
        all.append(RevertResult.Step(name: name, duration: now - last))
        last = now
    }
}

/// The frames that a revert looks at; with room before the pause for all that may join them in it.
private struct RevertSets {
    private(set) var candidates: DirtyBitmap
    /// What joined them in the pause.
    var late: DirtyBitmap
    /// The candidates that the target has; known once what is late was added.
    private(set) var present: DirtyBitmap
    private let layout: DirtyBitmap

    init(_ candidates: DirtyBitmap, in layout: GuestLayout) {
        self.layout = DirtyBitmap(layout)
        self.candidates = candidates
        let frameEnd = max(layout.frameEnd, UInt64(candidates.words.count) * 64)
        self.candidates.reserveCapacity(frameEnd: frameEnd)
        late = DirtyBitmap(frameEnd: frameEnd)
        present = DirtyBitmap(frameEnd: frameEnd)
    }

    /// One more than the highest frame that there is room for.
    var frameEnd: UInt64 { UInt64(candidates.words.count) * 64 }

    /// Makes the late ones candidates.
    mutating func joinLate() {
        candidates.formUnion(late)
        present.formUnion(candidates)
        present.formIntersection(layout)
    }
}

/// What a revert writes to: runs of memory that this process can reach, and others.
private struct RevertWork {
    private(set) var mapped: [(range: PageRange, memory: UnsafeMutableRawBufferPointer)] = []
    private(set) var scattered: [PageRange] = []

    /// - Parameter pageCount: pages that are expected; a quarter more have room.
    init(pageCount: Int) {
        let count = pageCount + pageCount / 4 + 1024
        mapped.reserveCapacity(count)
        scattered.reserveCapacity(count)
    }

    mutating func add(_ run: PageRange, of guest: any WritableGuest) {
        if let memory = guest.mappedMemory(of: run) {
            mapped.append((run, memory))
        } else {
            scattered.append(run)
        }
    }
}
