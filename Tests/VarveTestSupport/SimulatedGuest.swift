public import GuestModel
import Synchronization

/// A guest in an array, with a dirty log, that writes to itself while it is copied and fails on
/// request.
public final class SimulatedGuest: WritableGuest {
    /// The state of the guest.
    public struct State: Sendable {
        /// Pages that exist.
        public var pages: [UInt64: [UInt8]] = [:]
        /// The state other than memory.
        public var state = GuestState.empty
        var dirty = DirtyBitmap()
        /// The active log; nil if there is none.
        var log: DirtyLog?
        var isTracking: Bool { log != nil }
        /// True between `pause` and `resume`.
        public internal(set) var isPaused = false
        /// Called when it is resumed, and after each copy while it runs, so that it can write.
        var live: (@Sendable (inout State) -> Void)?
        /// Called after each read of the log while it runs.
        public var afterRead: (@Sendable (inout State) -> Void)?
        /// Calls until an intruder begins a log, and whether the intruder ends it; nil: no
        /// intruder.
        var intruder: (callsLeft: Int, ends: Bool)?
        /// Calls until the one that fails; nil: none fails.
        var callsUntilFailure: Int?
        /// The number of pauses so far.
        public internal(set) var pauseCount = 0
        var resumeCount = 0
        /// What a revert noted last, as a file would keep it.
        public var noted: NotedRevert?
        /// Whether it has not run since.
        public var standsStill = false
        /// Called when a revert notes something.
        public var onNote: (@Sendable () -> Void)?
        /// Calls of `resume` that fail from now on.
        public var failingResumeCount = 0
        /// The pages when it was last resumed.
        public fileprivate(set) var resumedPages: [UInt64: [UInt8]] = [:]
        /// The result of `layout`, if not the frames of `pages`.
        public var statedLayout: GuestLayout?
        /// Frames whose writes are not logged: a tracker that loses writes.
        public var unloggedFrames: Set<UInt64> = []
        /// The results of the next takes.
        public var knowledge = DirtyKnowledge.complete

        /// Before a call: an intruder who shares the log may act.
        mutating func letIntruderIn() {
            guard let (callsLeft, ends) = intruder else { return }
            intruder = callsLeft == 0 ? nil : (callsLeft - 1, ends)
            guard callsLeft == 0 else { return }
            log = ends ? nil : DirtyLog()
            dirty.removeAll()
        }

        /// A write by the guest.
        public mutating func write(_ frame: UInt64, _ page: [UInt8]) {
            precondition(!isPaused, "a paused guest writes nothing")
            pages[frame] = page
            if isTracking && !unloggedFrames.contains(frame) {
                dirty.insert(PageFrameNumber(frame))
            }
        }
    }

    private let state: Mutex<State>
    private let hasLog: Bool

    /// Creates a guest of zero pages.
    public init(layout: GuestLayout, hasLog: Bool = true) {
        var initial = State()
        for run in layout.runs {
            for frame in run.frames {
                initial.pages[frame] = [UInt8](repeating: 0, count: Page.byteCount)
            }
        }
        state = Mutex(initial)
        self.hasLog = hasLog
    }

    /// Reads or changes the guest's state.
    public func with<T: Sendable>(_ body: (inout State) -> T) -> T {
        state.withLock { body(&$0) }
    }

    /// Makes the guest write whenever it is resumed, or copied while running.
    public func setLive(_ body: (@Sendable (inout State) -> Void)?) {
        state.withLock { $0.live = body }
    }

    /// Makes the n-th call from now fail; 0 is the next one.
    public func failCall(_ count: Int?) {
        state.withLock { $0.callsUntilFailure = count }
    }

    /// Makes an intruder begin a log after some calls, and take its dirty set.
    ///
    /// - Parameter ends: the intruder ends the log too, so that none is active.
    public func intrude(after count: Int, ends: Bool) {
        state.withLock { $0.intruder = (count, ends) }
    }

    /// The number of pauses without a resume.
    public var pausesOpen: Int { state.withLock { $0.pauseCount - $0.resumeCount } }

    private func call<T: Sendable>(
        _ name: String, _ body: (inout State) -> T
    ) throws(GuestError) -> T {
        let result = state.withLock { state -> T? in
            state.letIntruderIn()
            if let left = state.callsUntilFailure {
                state.callsUntilFailure = left == 0 ? nil : left - 1
                if left == 0 { return nil }
            }
            return body(&state)
        }
        guard let result else {
            throw GuestError(code: .callFailed, message: "\(name) failed, as the test asked")
        }
        return result
    }

    /// The frames that exist.
    public func layout() throws(GuestError) -> GuestLayout {
        try call("layout") { state in
            if let layout = state.statedLayout { return layout }
            var frames = DirtyBitmap()
            for frame in state.pages.keys { frames.insert(PageFrameNumber(frame)) }
            return GuestLayout(runs: frames.runs())
        }
    }

    /// The log, if the guest was created with one.
    public var dirtyTracking: (any DirtyTracking)? { hasLog ? self : nil }

    /// Stops writes.
    public func pause() throws(GuestError) {
        try call("pause") { state in
            precondition(!state.isPaused, "paused twice")
            state.isPaused = true
            state.pauseCount += 1
        }
    }

    /// Allows writes again.
    public func resume() throws(GuestError) {
        let fails = state.withLock { state in
            defer { state.failingResumeCount = max(0, state.failingResumeCount - 1) }
            return state.failingResumeCount > 0
        }
        guard !fails else {
            throw GuestError(code: .callFailed, message: "resume failed, as the test asked")
        }
        try call("resume") { state in
            precondition(state.isPaused, "resumed while running")
            state.isPaused = false
            state.resumeCount += 1
            state.resumedPages = state.pages
            if let live = state.live { live(&state) }
        }
    }

    /// Copies pages out.
    public func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        var frames: [UInt64] = []
        for index in runs.indices { frames += runs[index].frames }
        let pages = try call("copyPages") { state -> [[UInt8]?] in
            let pages = frames.map { state.pages[$0] }
            if !state.isPaused, let live = state.live { live(&state) }
            return pages
        }
        destination.withUnsafeMutableBytes { bytes in
            precondition(bytes.count == frames.count * Page.byteCount, "room for the pages exactly")
            for (index, page) in pages.enumerated() {
                guard let page else { preconditionFailure("frame \(frames[index]) does not exist") }
                let place = bytes[index * Page.byteCount..<(index + 1) * Page.byteCount]
                UnsafeMutableRawBufferPointer(rebasing: place).copyBytes(from: page)
            }
        }
    }

    /// The state.
    public func captureState() throws(GuestError) -> GuestState {
        try call("captureState") { $0.state }
    }

    /// Keeps it.
    public func noteRevert(_ found: NotedRevert) {
        let onNote = state.withLock { state in
            state.noted = found
            return state.onNote
        }
        onNote?()
    }

    /// What was noted last, if it has not run since.
    public func notedRevert() -> NotedRevert? {
        state.withLock { $0.standsStill ? $0.noted : nil }
    }

    /// Makes exactly these frames exist.
    public func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        try call("adoptLayout") { state in
            let old = state.pages
            state.pages = [:]
            for run in layout.runs {
                for frame in run.frames {
                    state.pages[frame] = old[frame] ?? [UInt8](repeating: 0, count: Page.byteCount)
                }
            }
        }
    }

    /// False: it may have any contents.
    public var startsZeroed: Bool { false }

    /// Copies pages in.
    public func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError) {
        var frames: [UInt64] = []
        for index in runs.indices { frames += runs[index].frames }
        let pages = source.withUnsafeBytes { bytes in
            frames.indices.map { Array(bytes[$0 * Page.byteCount..<($0 + 1) * Page.byteCount]) }
        }
        try call("writePages") { state in
            for (frame, page) in zip(frames, pages) {
                precondition(state.pages[frame] != nil, "a page outside of the layout was written")
                state.pages[frame] = page
                if state.isTracking { state.dirty.insert(PageFrameNumber(frame)) }
            }
        }
    }

    /// Puts the state back.
    public func restoreState(_ newState: GuestState) throws(GuestError) {
        try call("restoreState") { $0.state = newState }
    }
}

extension SimulatedGuest: DirtyTracking {
    /// Begins to log.
    public func start() throws(GuestError) -> DirtyLog {
        try call("start") { state in
            let log = DirtyLog()
            state.log = log
            return log
        }
    }

    /// True for the log that was begun last.
    public func isRunning(_ log: DirtyLog) -> Bool { state.withLock { $0.log == log } }

    /// Takes the log.
    ///
    /// A failing take has destroyed the set, as Xen may.
    public func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        let (taken, knowledge): (DirtyBitmap, DirtyKnowledge)
        do {
            (taken, knowledge) = try call("takeDirty") { state in
                guard state.log == log else { return (DirtyBitmap(), .unknown) }
                defer {
                    state.dirty.removeAll()
                    state.knowledge = .complete
                    if !state.isPaused, let write = state.afterRead { write(&state) }
                }
                return (state.knowledge == .complete ? state.dirty : DirtyBitmap(), state.knowledge)
            }
        } catch {
            state.withLock { state in
                if state.log == log { state.dirty.removeAll() }
            }
            throw error
        }
        bitmap.formUnion(taken)
        return knowledge
    }

    /// Counts the pages in the log.
    public func peekDirtyCount(_ log: DirtyLog) throws(GuestError) -> Int {
        try call("peekDirtyCount") { $0.dirty.count }
    }

    /// Ends logging.
    public func stop(_ log: DirtyLog) {
        state.withLock { state in
            guard state.log == log else { return }
            state.log = nil
            state.dirty.removeAll()
        }
    }
}
