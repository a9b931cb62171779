import Glibc
public import GuestModel
import Synchronization

// What the log of a domain does not report, and how that is handled:
//
//   a failed allocation in the hypervisor (ENOMEM)   off and on again; every page is compared
//   another domctl on the log at the same time       EBUSY: retried for a second
//   the log is on already                            refused, or taken over by option
//   the log is off though it was turned on           on again; every page is compared. A log that
//                                                    is off reads as empty, and "xl save" or
//                                                    "xl migrate" turn it off when they end
//   a PCI device is assigned                         no log: every page is compared
//   writes through a grant that stays mapped         marked only at unmap (grant_table.c,
//                                                    unmap_common_complete), so every frame with a
//                                                    writable mapping counts as dirty each time
//   frames that were added since the layout scan     a bit outside the layout: scanned again

extension XenDomain: DirtyTracking {
    private static let busyTries = 100

    /// Turns log-dirty mode on.
    ///
    /// The hypervisor splits superpages; a guest with nested paging runs a few percent slower. A
    /// second log begins with what the first one had not returned.
    public func start() throws(GuestError) -> DirtyLog {
        if state.withLock({ $0.log == nil }) { try turnOn() }
        let log = DirtyLog()
        state.withLock { $0.log = log }
        return log
    }

    /// True from `start` to the next `start` or `stop` of this object.
    ///
    /// If another tool turns the log off, that is found at the next take.
    public func isRunning(_ log: DirtyLog) -> Bool { state.withLock { $0.log == log } }

    private func turnOn() throws(GuestError) {
        pauser.note(.logging)
        do throws(GuestError) {
            try calls.enableLog(domainID)
        } catch {
            guard error.errno == EINVAL || error.errno == EEXIST else {
                pauser.note(.notLogging)
                throw pauser.cause(of: XenDomain.noLog(error, domainID))
            }
            guard options.takesLogOver else {
                pauser.note(.notLogging)
                throw GuestError(
                    code: .busy,
                    message: "log-dirty mode of domain \(domainID) is on already: a migration, a "
                        + "save or another checkpointer is running, or died; wait for it, or take "
                        + "the log over (--take-over)", errno: error.errno)
            }
            try restartLog()
        }
    }

    private static func noLog(_ error: GuestError, _ domainID: UInt32) -> GuestError {
        switch error.errno {
        case EOPNOTSUPP, ENOSYS:
            GuestError(
                code: .unsupported,
                message: "this hypervisor logs no writes of domain \(domainID): it is built "
                    + "without shadow paging; compare every page instead (--compare-all)",
                errno: error.errno)
        case ENOMEM:
            GuestError(
                code: .callFailed,
                message: "the hypervisor lacks memory for the dirty log of domain \(domainID); "
                    + "give it some (xl mem-set 0), or compare every page (--compare-all)",
                errno: error.errno)
        default: error
        }
    }

    /// Turns the log off and on: what it held is lost.
    ///
    /// If it stays off, the next take finds that.
    private func restartLog() throws(GuestError) {
        try retrying { () throws(GuestError) in try calls.disableLog(domainID) }
        try retrying { () throws(GuestError) in try calls.enableLog(domainID) }
    }

    /// Turns the log on if another tool, or a restart that failed, left it off; false if it was on.
    private func enableIfOff() throws(GuestError) -> Bool {
        do throws(GuestError) {
            try retrying { () throws(GuestError) in try calls.enableLog(domainID) }
            return true
        } catch {
            guard error.errno == EINVAL || error.errno == EEXIST else { throw error }
            return false
        }
    }

    /// Takes and clears the log, and adds what it does not report.
    public func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        guard isRunning(log) else { return .unknown }
        do throws(GuestError) {
            return try readLog(into: &bitmap, isFinal: isFinal)
        } catch {
            throw pauser.cause(of: error)
        }
    }

    private func readLog(
        into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        let frameCount = try calls.frameCount(domainID)
        let buffer = try logBuffer(frameCount)
        do throws(GuestError) {
            _ = try retrying { () throws(GuestError) in
                try calls.readLog(
                    domainID, .clean, into: buffer, frameCount: frameCount, isFinal: isFinal)
            }
        } catch {
            guard error.errno == ENOMEM else { throw error }
            try restartLog()
            return .unknown
        }
        // After the take: if it is on now, it was on when it was read.
        if try enableIfOff() { return .unknown }
        bitmap.formUnion(words: buffer.words.span)
        for entry in try calls.grantTable(domainID)
        where entry.isWritten && entry.frame < frameCount {
            bitmap.insert(PageFrameNumber(entry.frame))
        }
        try noticeNewFrames(bitmap)
        return .complete
    }

    /// The buffer for the log; created again when the domain has a different number of frames.
    private func logBuffer(_ frameCount: Int) throws(GuestError) -> any LogBuffer {
        if let kept = state.withLock({ $0.logBuffer }), kept.frameCount == frameCount {
            return kept.buffer
        }
        let buffer = try calls.makeLogBuffer(frameCount: frameCount)
        state.withLock { $0.logBuffer = (frameCount, buffer) }
        return buffer
    }

    /// Drops the layout if it lacks frames of dirty pages.
    private func noticeNewFrames(_ bitmap: DirtyBitmap) throws(GuestError) {
        guard let layout = state.withLock({ $0.scan?.layout }) else { return }
        var strange = bitmap
        strange.subtract(DirtyBitmap(layout))
        guard try !FrameScan.existing(strange, domainID, calls).isEmpty else { return }
        state.withLock { $0.scan = nil }
    }

    /// Counts the log without clearing it.
    ///
    /// All pages, for a log that has ended or failed.
    public func peekDirtyCount(_ log: DirtyLog) throws(GuestError) -> Int {
        try explaining { () throws(GuestError) in
            isRunning(log) ? try countLog() : try layout().pageCount
        }
    }

    private func countLog() throws(GuestError) -> Int {
        let frameCount = try calls.frameCount(domainID)
        do throws(GuestError) {
            return try retrying { () throws(GuestError) in
                try calls.logCount(domainID, frameCount: frameCount)
            }
        } catch {
            // The set is unknown until the log is taken: as if every page were dirty.
            guard error.errno == ENOMEM else { throw error }
            return state.withLock { $0.scan?.layout.pageCount } ?? frameCount
        }
    }

    /// Turns log-dirty mode off.
    public func stop(_ log: DirtyLog) {
        guard isRunning(log) else { return }
        do throws(GuestError) {
            try retrying { () throws(GuestError) in try calls.disableLog(domainID) }
            state.withLock { $0.log = nil }
            pauser.note(.notLogging)
        } catch {
            // Logging is still on, and this log has not ended: a second `stop` tries again, as do
            // this object's deinit, and the guard when this process ends.
        }
    }

    private func retrying<T>(
        _ body: () throws(GuestError) -> T
    ) throws(GuestError) -> T {
        for _ in 1..<XenDomain.busyTries {
            do throws(GuestError) {
                return try body()
            } catch {
                guard error.errno == EBUSY || error.errno == EAGAIN else { throw error }
                usleep(10_000)
            }
        }
        return try body()
    }
}
