import Synchronization

/// What is known after a dirty log was read.
public enum DirtyKnowledge: Hashable, Sendable {
    /// Every page written since the last take is in the set.
    case complete
    /// Pages may be missing (Xen `ENOMEM`, a log that was stopped or restarted): every page must be
    /// compared.
    case unknown
}

/// One dirty log, from the `start` that began it to its end.
///
/// It ends when it is stopped, or when any caller of `start` begins another one. Each value is used
/// once in a process, so an old log is never mistaken for the current one.
public struct DirtyLog: Hashable, Sendable {
    private static let last = Atomic<UInt64>(0)

    private let number: UInt64

    /// Names a log that begins now; an implementation of `DirtyTracking.start` returns it.
    public init() {
        number = DirtyLog.last.wrappingAdd(1, ordering: .relaxed).newValue
    }
}

/// Finds the pages that a running guest writes.
///
/// Called on the engine's capture thread, one call at a time; `stop` is called on the thread that
/// closes or drops the session. At most one log runs, and each call names the log that it refers
/// to. Once a log has ended, calls that name it return `unknown` or throw, and never return
/// `complete`.
public protocol DirtyTracking: AnyObject, Sendable {
    /// Begins a log. Earlier writes are not in it: the caller copies everything once, after this
    /// call.
    ///
    /// This ends a running log; an implementation may throw `busy` instead, and that log continues.
    /// Called while the guest runs, and in the pause if a log has ended unexpectedly.
    ///
    /// - Returns: a new value for each log.
    func start() throws(GuestError) -> DirtyLog

    /// True while `log` is the newest log and has not been stopped.
    ///
    /// Called as a capture begins: if it is false, the session begins another log and compares
    /// every page. It must be fast, and need not ask the hypervisor.
    func isRunning(_ log: DirtyLog) -> Bool

    /// Adds the pages written since the last take (or since `start`) to `bitmap` and clears the log
    /// in the same step: each write is either in this set or in the next one.
    ///
    /// For a log that has ended it returns `unknown` or throws, and clears nothing: what the log
    /// that runs now has recorded belongs to its owner. If it throws, the log may have been
    /// cleared: the caller treats the set as unknown.
    ///
    /// - Parameters:
    ///   - log: what `start` returned.
    ///   - bitmap: pages are added to it and never removed.
    ///   - isFinal: true in the pause. Xen's `XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL`.
    func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge

    /// Adds the pages written since the last take to `bitmap`; the log need not be cleared.
    ///
    /// Used by a revert, which writes these pages next: where a logged page can be written without
    /// being logged again, not clearing saves one fault per page. The default takes the log. For a
    /// log that has ended, the result is as in `takeDirty`.
    func readDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge

    /// How many pages the log holds now, without clearing it.
    ///
    /// The engine uses it to decide when to pause. It may be an estimate; for a log that has ended,
    /// any number.
    func peekDirtyCount(_ log: DirtyLog) throws(GuestError) -> Int

    /// Ends this log; the guest runs at full speed again.
    ///
    /// Does nothing if `log` has ended: the log that runs now has another owner.
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
