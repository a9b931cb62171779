public import GuestModel
import Synchronization

/// A guest in an array, with a dirty log, that writes to itself while it is copied and fails when
/// told to.
public final class SimulatedGuest: WritableGuest {
    /// What the guest is made of.
    public struct State: Sendable {
        /// Pages that exist.
        public var pages: [UInt64: [UInt8]] = [:]
        /// The state besides memory.
        public var state = GuestState.empty
        var dirty = DirtyBitmap()
        /// The log that runs; nil if none does.
        var log: DirtyLog?
        var isTracking: Bool { log != nil }
        /// True between `pause` and `resume`.
        public internal(set) var isPaused = false
        /// Called when it is resumed, and after each copy while it runs: its chance to write.
        var live: (@Sendable (inout State) -> Void)?
        /// Called after each read of the log while it runs.
        public var afterRead: (@Sendable (inout State) -> Void)?
        /// Calls until somebody else begins a log, and whether they end it; nil: nobody does.
        var intruder: (callsLeft: Int, ends: Bool)?
        /// Calls until the one that fails; nil: none does.
        var callsUntilFailure: Int?
        /// How often it was paused so far.
        public internal(set) var pauseCount = 0
        var resumeCount = 0
        /// Calls of `resume` that fail from now on.
        public var failingResumeCount = 0
        /// What the pages held when it was resumed last.
        public fileprivate(set) var resumedPages: [UInt64: [UInt8]] = [:]
        /// What `layout` answers, if not the frames of `pages`.
        public var statedLayout: GuestLayout?
        /// Frames whose writes the log does not notice: a tracker that lies.
        public var unloggedFrames: Set<UInt64> = []
        /// What the next takes answer.
        public var knowledge = DirtyKnowledge.complete

        /// Before a call: somebody who shares the log has a turn.
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

    /// Makes a guest of zero pages.
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

    /// Looks at, or changes, the guest.
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

    /// Makes somebody else begin a log of their own after some calls, whose set they take.
    ///
    /// - Parameter ends: they end it too, so that no log runs.
    public func intrude(after count: Int, ends: Bool) {
        state.withLock { $0.intruder = (count, ends) }
    }

    /// How often it was paused and not resumed.
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

    /// The log, if it was made with one.
    public var dirtyTracking: (any DirtyTracking)? { hasLog ? self : nil }

    /// Stops writes.
    public func pause() throws(GuestError) {
        try call("pause") { state in
            precondition(!state.isPaused, "paused twice")
            state.isPaused = true
            state.pauseCount += 1
        }
    }

    /// Lets writes go on.
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

    /// False: it may hold anything.
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
    /// A failing take has destroyed it, as Xen's may.
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

    /// Counts the log.
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
