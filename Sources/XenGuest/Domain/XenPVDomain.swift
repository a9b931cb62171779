import Glibc
package import GuestModel
import Synchronization
import XenStream

/// A running PV domain, checkpointed through the stream that libxenguest writes.
///
/// Page tables of a PV domain name machine frames; libxenguest makes them canonical. The domain is
/// always paused by suspension. Without log-dirty mode (Debian's hypervisor has none for PV) it is
/// paused while all of its memory is written, as with `xl save -c`.
package final class XenPVDomain: Sendable {
    /// The domain ID.
    package let domainID: UInt32
    /// xl's configuration as JSON, for `Repository.importXenStream`: the stream has none.
    package let configuration: [UInt8]
    let calls: any XenCalls
    private let pauser: DomainPauser

    /// Takes ownership of a domain, which runs unaffected until the first save.
    ///
    /// - Parameter options: `suspendTimeout` and `guardCommand` are used.
    package convenience init(
        _ domainID: UInt32, options: XenDomain.Options = XenDomain.Options()
    ) throws(GuestError) {
        try self.init(domainID, calls: LibxenCalls(), options: options)
    }

    package init(
        _ domainID: UInt32, calls: any XenCalls, options: XenDomain.Options
    ) throws(GuestError) {
        guard let facts = try calls.facts(domainID), !facts.isDying else {
            throw XenDomain.gone(domainID)
        }
        guard !facts.isHVM, options.pauseMode == .suspend else {
            throw GuestError(
                code: .unsupported,
                message: facts.isHVM
                    ? "domain \(domainID) is not a PV domain; use XenDomain"
                    : "domain \(domainID) is a PV domain, which can only be paused by suspension: "
                        + "its page tables are canonical only then")
        }
        self.domainID = domainID
        self.calls = calls
        configuration = try calls.configuration(domainID)
        pauser = try DomainPauser(domainID, calls, options)
    }

    /// True if the hypervisor logs this domain's writes, as `Mode.checkpointed` needs.
    ///
    /// Debian's does not: it is built without shadow paging. This turns the log on and off.
    package func logsWrites() throws(GuestError) -> Bool {
        try XenPVDomain.logsWrites(domainID, calls)
    }

    static func logsWrites(_ domainID: UInt32, _ calls: any XenCalls) throws(GuestError) -> Bool {
        do throws(GuestError) {
            try calls.enableLog(domainID)
        } catch {
            guard error.errno == EOPNOTSUPP || error.errno == ENOSYS else { throw error }
            return false
        }
        try calls.disableLog(domainID)
        return true
    }

    /// How a save proceeds.
    package enum Mode: Sendable {
        /// One epoch, all memory, written while the domain is paused.
        case plain
        /// Epoch after epoch of a live, checkpointed stream (Remus): needs log-dirty mode.
        ///
        /// The closure is called after each epoch, while the domain runs, with the durations of
        /// that epoch's pause: it may wait, and returns whether to take another.
        case checkpointed(next: @Sendable (PauseTimes) -> Bool)
    }

    /// What the two threads of one save share.
    private final class Run: Sendable {
        struct State {
            var times: [PauseTimes] = []
            var failure: GuestError?
        }
        let state = Mutex(State())
    }

    /// Saves the domain: a thread writes its stream, `body` reads it here.
    ///
    /// The domain runs again when this returns or throws.
    ///
    /// - Parameter body: gets the stream as a source for `Repository.importXenStream`, and must
    ///   read it to its end.
    /// - Returns: the durations of each epoch's pause.
    package func save(
        _ mode: Mode,
        _ body: (_ source: @escaping (UnsafeMutableRawBufferPointer) throws -> Int) throws -> Void
    ) throws -> [PauseTimes] {
        let run = Run()
        let pipe = try Pipe()
        let writer = try CallThread { [self] in
            defer { pipe.closeWriting() }
            write(mode, pipe, run)
        }
        var bodyFailure: (any Error)?
        do { try body { try pipe.read($0) } } catch { bodyFailure = error }
        // If the body failed, the writer finds the pipe broken, and resumes the domain.
        pipe.closeReading()
        writer.join()
        // The writer's failure is the cause of any error that the reader found.
        let (failure, times) = run.state.withLock { ($0.failure, $0.times) }
        if let failure, bodyFailure == nil || bodyFailure is XenStreamError { throw failure }
        if let bodyFailure { throw bodyFailure }
        return times
    }

    private func write(_ mode: Mode, _ pipe: Pipe, _ run: Run) {
        var isCheckpointed = false
        var next: @Sendable (PauseTimes) -> Bool = { _ in false }
        if case .checkpointed(let closure) = mode { (isCheckpointed, next) = (true, closure) }
        let steps = SaveSteps(
            suspend: { [self] in step(run) { () throws(GuestError) in try pauser.pause() } },
            postcopy: { [self] in step(run) { () throws(GuestError) in try end(run) } },
            checkpoint: { [pauser] in next(pauser.times) })
        do throws(GuestError) {
            try calls.save(
                domainID, to: pipe.writingEnd, isCheckpointed: isCheckpointed,
                isLive: isCheckpointed, steps)
        } catch {
            run.state.withLock { $0.failure = $0.failure ?? error }
        }
        guard pauser.isPaused else { return }
        if !step(run, { () throws(GuestError) in try end(run) }) {
            _ = step(run) { () throws(GuestError) in try end(run) }
        }
    }

    private func end(_ run: Run) throws(GuestError) {
        try pauser.release()
        run.state.withLock { $0.times.append(pauser.times) }
    }

    /// Runs a step of a save; a failure is kept and ends the save.
    private func step(_ run: Run, _ body: () throws(GuestError) -> Void) -> Bool {
        do throws(GuestError) {
            try body()
            return true
        } catch {
            run.state.withLock { $0.failure = $0.failure ?? error }
            return false
        }
    }
}
