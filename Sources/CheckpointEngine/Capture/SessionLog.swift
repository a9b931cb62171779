import GuestModel

// The dirty log as a session uses it. A session remembers which log it began, and every read names
// it, so a log that ended meanwhile is never mistaken for one that recorded no write:
//
//   a capture begins, no log of ours runs     begin one; compare every page
//   a read returns "unknown"                  compare every page; begin another if ours has ended
//   the session ends                          stop ours, and no other

/// A guest's dirty log on behalf of one session; used while holding the session's turn.
struct SessionLog {
    private let tracking: any DirtyTracking
    private let memory: CaptureSession.Memory

    /// nil if the guest has no log.
    init?(_ session: CaptureSession) {
        guard let tracking = session.guest.dirtyTracking else { return nil }
        self.tracking = tracking
        memory = session.state
    }

    /// True if the log that the session began runs.
    var isRunning: Bool { memory.withLock { $0.log }.map { tracking.isRunning($0) } ?? false }

    /// Begins a log unless the session's own runs; every page then counts as unsaved.
    func begin() throws(GuestError) {
        guard !isRunning else { return }
        let log = try tracking.start()
        memory.withLock { state in
            state.log = log
            state.comparesAll = true
        }
    }

    /// Takes and clears the log.
    func take(into bitmap: inout DirtyBitmap, isFinal: Bool) throws(GuestError) -> DirtyKnowledge {
        guard let log = memory.withLock({ $0.log }) else { return .unknown }
        return try known(try tracking.takeDirty(log, into: &bitmap, isFinal: isFinal))
    }

    /// Reads the log without necessarily clearing it.
    func read(into bitmap: inout DirtyBitmap, isFinal: Bool) throws(GuestError) -> DirtyKnowledge {
        guard let log = memory.withLock({ $0.log }) else { return .unknown }
        return try known(try tracking.readDirty(log, into: &bitmap, isFinal: isFinal))
    }

    /// Ensures that later writes are logged, if this read says that the log has ended.
    private func known(_ knowledge: DirtyKnowledge) throws(GuestError) -> DirtyKnowledge {
        guard knowledge == .unknown, !isRunning else { return knowledge }
        let log = try tracking.start()
        memory.withLock { $0.log = log }
        return .unknown
    }

    /// Returns the number of pages in the log, or an estimate.
    func peekCount() throws(GuestError) -> Int {
        guard let log = memory.withLock({ $0.log }) else { return 0 }
        return try tracking.peekDirtyCount(log)
    }

    /// Ends the session's log, if it began one.
    func stop() {
        let log = memory.withLock { state in
            defer { state.log = nil }
            return state.log
        }
        if let log { tracking.stop(log) }
    }
}
