import Synchronization

/// What a dirty log knows after it was read.
public enum DirtyKnowledge: Hashable, Sendable {
    /// Every page written since the last take is in the set.
    case complete
    /// Pages may be missing (Xen `ENOMEM`, a log that was stopped or begun anew): every page must
    /// be compared.
    case unknown
}

/// One dirty log, from the `start` that began it to its end.
///
/// It ends when it is stopped, and when `start` begins another one, whoever asked for that. Each
/// value is used once in a process, so a log of the past is never taken for the present one.
public struct DirtyLog: Hashable, Sendable {
    private static let last = Atomic<UInt64>(0)

    private let number: UInt64

    /// Names a log that begins now: what an implementation of `DirtyTracking.start` returns.
    public init() {
        number = DirtyLog.last.wrappingAdd(1, ordering: .relaxed).newValue
    }
}

/// Finds the pages that a running guest writes.
///
/// Called on the engine's capture thread, one call at a time; `stop` comes from the thread that
/// closes or drops the session. At most one log runs, and each call names the log that it means. A
/// log that has ended knows nothing: it answers `unknown` or throws, and never `complete`.
public protocol DirtyTracking: AnyObject, Sendable {
    /// Begins a log. What was written before is not in it: the caller copies everything once, after
    /// this call.
    ///
    /// A log that runs ends with it; an implementation may throw `busy` instead, and that log goes
    /// on. Called while the guest runs, and in the pause if a log has ended unexpectedly.
    ///
    /// - Returns: a new value each time.
    func start() throws(GuestError) -> DirtyLog

    /// True while `log` is the one that was begun last and it was not stopped.
    ///
    /// Asked as a capture begins: if it is false, the session begins another log and compares
    /// every page. It must be quick, and needs no look at the hypervisor.
    func isRunning(_ log: DirtyLog) -> Bool

    /// Adds the pages written since the last take (or since `start`) to `bitmap` and clears the log
    /// in the same step: a write either is in this set or will be in the next one.
    ///
    /// For a log that has ended it answers `unknown` or throws, and clears nothing: what the log
    /// that runs now has seen belongs to its owner. When it throws, the log may have been cleared:
    /// the caller treats the set as unknown.
    ///
    /// - Parameters:
    ///   - log: what `start` returned.
    ///   - bitmap: the set that grows; never shrinks.
    ///   - isFinal: true in the pause. Xen's `XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL`.
    func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge

    /// Adds the pages written since the last take to `bitmap`; the log need not be cleared.
    ///
    /// For a revert, which writes these pages next: where a logged page can be written without
    /// being logged again, not clearing saves one fault a page. The default takes the log. A log
    /// that has ended answers as in `takeDirty`.
    func readDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge

    /// How many pages the log holds now, without clearing it.
    ///
    /// The engine decides by it when to pause. It may be an estimate; of a log that has ended, any
    /// number.
    func peekDirtyCount(_ log: DirtyLog) throws(GuestError) -> Int

    /// Ends this log; the guest runs at full speed again.
    ///
    /// Does nothing if `log` has ended: the one that runs now is somebody else's.
    func stop(_ log: DirtyLog)
}

extension DirtyTracking {
    /// Takes the log.
    public func readDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        try takeDirty(log, into: &bitmap, isFinal: isFinal)
    }
}
