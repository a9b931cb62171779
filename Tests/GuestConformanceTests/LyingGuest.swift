import GuestModel
import Synchronization

/// A guest in an array that breaks exactly one rule.
final class LyingGuest: WritableGuest {
    /// The rule that it breaks.
    enum Lie: CaseIterable, Sendable {
        case layoutChanges, layoutDiffersInThePause
        case copiesAStalePage, copiesWithGaps
        case pauseHoldsNothing, resumeIsForgotten
        case firstTakeIsEmpty, someWritesAreLost, takeNeverClears, takeReplaces
        case finalTakeIsEmpty, readIsEmpty, peekClears, peekIsZero
        case ownWritesAreUnlogged, mappedWritesAreUnlogged
        case stoppedLogIsComplete, stoppedLogRuns
        case oneLogForAll, endedLogIsComplete, endedLogTakes, endedLogStops, strangeLogIsComplete
        case secondLogIsDeaf, logComesAgain, outsideEndIsUnnoticed
        case everybodyMayOwn, ownerIsRefusedOddly, ownedForEver, oldClaimIsGiven, othersMayOwn
        case writesElsewhere, writesTooMuch, mapsACopy, adoptsByClearing
        case changesACopy, changesTooFew
        case stateIsForgotten, stateFlickers
    }

    struct State: Sendable {
        var dirty = DirtyBitmap()
        var log: DirtyLog?
        var lastLog: DirtyLog?
        /// All logs that `start` ever returned.
        var begun: Set<DirtyLog> = []
        var isEndedFromOutside = false
        var startCount = 0
        var isDeaf = false
        var takeCount = 0
        var writeCount = 0
        var callCount = 0
        var isPaused = false
        var pauseCount = 0
        var value: UInt8 = 1
        var isOwned = false
        var claim: GuestClaim?

        /// A different number at each call.
        mutating func next() -> Int {
            callCount += 1
            return callCount
        }
    }

    /// The first frame of each run, and how many there are.
    static let runs = [
        PageRange(first: PageFrameNumber(0), count: 40),
        PageRange(first: PageFrameNumber(50), count: 11),
    ]

    let lie: Lie?
    private let state = Mutex(State())
    // Freed with this object; used only by the thread of a check.
    private nonisolated(unsafe) let memory: UnsafeMutableRawBufferPointer
    private nonisolated(unsafe) let copies: UnsafeMutableRawBufferPointer

    init(_ lie: Lie?) {
        self.lie = lie
        let count = LyingGuest.runs.reduce(0) { $0 + $1.byteCount }
        memory = .allocate(byteCount: count, alignment: Page.byteCount)
        copies = .allocate(byteCount: count, alignment: Page.byteCount)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
        copies.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit {
        memory.deallocate()
        copies.deallocate()
    }

    func with<T: Sendable>(_ body: (inout State) -> T) -> T { state.withLock { body(&$0) } }

    private func offset(_ frame: PageFrameNumber) -> Int {
        var passed = 0
        for run in LyingGuest.runs {
            if run.contains(frame) {
                return passed + Int(frame.rawValue - run.first.rawValue) * Page.byteCount
            }
            passed += run.byteCount
        }
        preconditionFailure("frame \(frame) does not exist")
    }

    func page(_ frame: PageFrameNumber) -> UnsafeMutableRawBufferPointer {
        let start = offset(frame)
        return UnsafeMutableRawBufferPointer(rebasing: memory[start..<start + Page.byteCount])
    }

    /// A write by the guest.
    func write(_ frame: PageFrameNumber, _ bytes: [UInt8]) {
        page(frame).copyBytes(from: bytes)
        with { state in
            state.writeCount += 1
            let isLost =
                switch lie {
                case .firstTakeIsEmpty: state.takeCount == 0
                case .someWritesAreLost: state.takeCount > 12 && state.writeCount % 9 == 0
                case .secondLogIsDeaf: state.isDeaf
                default: false
                }
            if !isLost { state.mark(frame) }
        }
    }

    /// A write on the guest's own initiative, and a change of its state.
    func work() {
        let frame = with { state -> PageFrameNumber? in
            guard !state.isPaused || lie == .pauseHoldsNothing else { return nil }
            state.value &+= 1
            return PageFrameNumber(UInt64(state.next() % 40))
        }
        guard let frame else { return }
        let value = UInt8(truncatingIfNeeded: with { $0.next() })
        write(frame, [UInt8](repeating: value, count: Page.byteCount))
    }

    /// Another tool ends the log.
    func endLog() { with { $0.isEndedFromOutside = true } }
}

extension LyingGuest.State {
    mutating func mark(_ frame: PageFrameNumber) {
        if log != nil && !isEndedFromOutside { dirty.insert(frame) }
    }
}

// MARK: - Guest

extension LyingGuest {
    func layout() throws(GuestError) -> GuestLayout {
        let (count, isPaused) = with { ($0.next(), $0.isPaused) }
        let isOdd =
            lie == .layoutChanges && count % 2 == 0 || lie == .layoutDiffersInThePause && isPaused
        return GuestLayout(runs: isOdd ? [LyingGuest.runs[0]] : LyingGuest.runs)
    }

    var dirtyTracking: (any DirtyTracking)? { self }

    func pause() throws(GuestError) {
        with { state in
            state.isPaused = true
            state.pauseCount += 1
        }
    }

    func resume() throws(GuestError) {
        with { state in
            if lie == .resumeIsForgotten && state.pauseCount % 2 == 0 { return }
            state.isPaused = false
        }
    }

    func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        var frames: [PageFrameNumber] = []
        for index in runs.indices { frames += runs[index].frames.map { PageFrameNumber($0) } }
        let isShort = lie == .copiesWithGaps && runs.count > 1
        destination.withUnsafeMutableBytes { bytes in
            for (index, frame) in frames.dropLast(isShort ? 1 : 0).enumerated() {
                let start = index * Page.byteCount
                let place = UnsafeMutableRawBufferPointer(
                    rebasing: bytes[start..<start + Page.byteCount])
                place.copyMemory(from: UnsafeRawBufferPointer(page(frame)))
                if lie == .copiesAStalePage && frame.rawValue == 7 { place[0] = ~place[0] }
            }
        }
    }

    func captureState() throws(GuestError) -> GuestState {
        let value = with { state -> UInt8 in
            if lie == .stateFlickers { state.value &+= 1 }
            return state.value
        }
        return GuestState(records: [GuestState.Record(kind: "value", bytes: [value])])
    }

    func claim() throws(GuestError) -> GuestClaim {
        switch lie {
        case .everybodyMayOwn: return try GuestClaim(of: LyingGuest(nil))
        case .ownerIsRefusedOddly:
            do {
                return try GuestClaim(of: self)
            } catch {
                throw GuestError(code: .unavailable, message: error.message)
            }
        case .ownedForEver:
            let isOwned = with { state in
                defer { state.isOwned = true }
                return state.isOwned
            }
            guard !isOwned else { throw GuestError(code: .busy, message: "it is owned for ever") }
            return try GuestClaim(of: self)
        case .oldClaimIsGiven:
            let fresh = try GuestClaim(of: self)
            guard let old = with({ $0.claim }) else {
                with { $0.claim = fresh }
                return fresh
            }
            fresh.release()
            return old
        default: return try GuestClaim(of: self)
        }
    }
}

// MARK: - WritableGuest

extension LyingGuest {
    var startsZeroed: Bool { false }

    func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        guard layout == GuestLayout(runs: LyingGuest.runs) else {
            throw GuestError(code: .sizeMismatch, message: "the layout is fixed")
        }
        if lie == .adoptsByClearing { memory.initializeMemory(as: UInt8.self, repeating: 0) }
    }

    func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError) {
        var frames: [PageFrameNumber] = []
        for index in runs.indices { frames += runs[index].frames.map { PageFrameNumber($0) } }
        if lie == .writesElsewhere { frames.swapAt(0, frames.count - 1) }
        source.withUnsafeBytes { bytes in
            for (index, frame) in frames.enumerated() {
                let start = index * Page.byteCount
                page(frame).copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: bytes[start..<start + Page.byteCount]))
            }
        }
        if lie == .writesTooMuch {
            let strange = LyingGuest.runs[0].frames.map { PageFrameNumber($0) }
                .first { !frames.contains($0) }
            if let strange { page(strange)[9] &+= 1 }
        }
        with { state in
            if lie != .ownWritesAreUnlogged { for frame in frames { state.mark(frame) } }
        }
    }

    func mappedMemory(of range: PageRange) -> UnsafeMutableRawBufferPointer? {
        let start = offset(range.first)
        with { state in
            // Nothing reports writes to it: it is treated as dirty from now on.
            guard lie != .mappedWritesAreUnlogged else { return }
            for frame in range.frames { state.mark(PageFrameNumber(frame)) }
        }
        let place = start..<start + range.byteCount
        let mapped = UnsafeMutableRawBufferPointer(rebasing: memory[place])
        guard lie == .mapsACopy else { return mapped }
        let copy = UnsafeMutableRawBufferPointer(rebasing: copies[place])
        copy.copyMemory(from: UnsafeRawBufferPointer(mapped))
        return copy
    }

    func changePages(
        _ runs: Span<PageRange>,
        _ body: (PageFrameNumber, UnsafeMutableRawBufferPointer) -> Void
    ) throws(GuestError) -> Bool {
        var frames: [PageFrameNumber] = []
        for index in runs.indices { frames += runs[index].frames.map { PageFrameNumber($0) } }
        for frame in frames.dropLast(lie == .changesTooFew ? 1 : 0) {
            guard lie == .changesACopy else {
                body(frame, page(frame))
                continue
            }
            let copy = UnsafeMutableRawBufferPointer(rebasing: copies[..<Page.byteCount])
            copy.copyMemory(from: UnsafeRawBufferPointer(page(frame)))
            body(frame, copy)
        }
        return true
    }

    func restoreState(_ newState: GuestState) throws(GuestError) {
        guard let value = newState.bytes(ofKind: "value")?.first else {
            throw GuestError(code: .stateRejected, message: "the state has no value")
        }
        with { if lie != .stateIsForgotten { $0.value = value } }
    }
}

// MARK: - DirtyTracking

extension LyingGuest: DirtyTracking {
    func start() throws(GuestError) -> DirtyLog {
        with { state in
            state.startCount += 1
            state.isEndedFromOutside = false
            let isKept = lie == (state.log == nil ? .logComesAgain : .oneLogForAll)
            let log = isKept ? state.lastLog ?? DirtyLog() : DirtyLog()
            state.lastLog = log
            // Only a log that begins after another was stopped.
            state.isDeaf = state.log == nil && state.startCount > 1
            if state.log == nil { state.dirty.removeAll() }
            state.log = log
            state.begun.insert(log)
            return log
        }
    }

    func isRunning(_ log: DirtyLog) -> Bool {
        with { state in
            state.log == log || lie == .stoppedLogRuns && state.log == nil && state.lastLog == log
        }
    }

    /// The answer for a log that is not active.
    private func answer(_ log: DirtyLog, _ state: inout State) -> DirtyKnowledge {
        switch lie {
        case .stoppedLogIsComplete: return state.log == nil ? .complete : .unknown
        case .endedLogIsComplete:
            return state.log != nil && state.begun.contains(log) ? .complete : .unknown
        case .strangeLogIsComplete: return state.begun.contains(log) ? .unknown : .complete
        case .endedLogTakes:
            state.dirty.removeAll()
            return .unknown
        default: return .unknown
        }
    }

    private func read(
        _ log: DirtyLog, _ bitmap: inout DirtyBitmap, isFinal: Bool, clears: Bool
    ) -> DirtyKnowledge {
        let taken = with { state -> DirtyBitmap? in
            guard state.log == log else {
                return answer(log, &state) == .complete ? DirtyBitmap() : nil
            }
            if state.isEndedFromOutside {
                state.isEndedFromOutside = lie == .outsideEndIsUnnoticed
                return lie == .outsideEndIsUnnoticed ? DirtyBitmap() : nil
            }
            state.takeCount += 1
            let set = state.dirty
            if clears && lie != .takeNeverClears { state.dirty.removeAll() }
            let isEmpty =
                lie == .finalTakeIsEmpty && isFinal && clears || lie == .readIsEmpty && !clears
            return isEmpty ? DirtyBitmap() : set
        }
        guard let taken else { return .unknown }
        if lie == .takeReplaces { bitmap.removeAll() }
        bitmap.formUnion(taken)
        return .complete
    }

    func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        read(log, &bitmap, isFinal: isFinal, clears: true)
    }

    func readDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        read(log, &bitmap, isFinal: isFinal, clears: false)
    }

    func peekDirtyCount(_ log: DirtyLog) throws(GuestError) -> Int {
        with { state in
            defer { if lie == .peekClears && state.log == log { state.dirty.removeAll() } }
            return lie == .peekIsZero ? 0 : state.dirty.count
        }
    }

    func stop(_ log: DirtyLog) {
        with { state in
            if state.log == log || lie == .endedLogStops { state.log = nil }
        }
    }
}
