import Glibc
import Synchronization
import Varve

/// Ends a command on `^C`, SIGTERM or SIGHUP, between two reads.
enum Interruption {
    /// Thrown by `wait` when the user wants the command to end.
    struct Requested: Error {}

    /// Cancelled when the user wants the command to end; for the calls of the library.
    static let cancellation = Cancellation()

    // Written by the thread that waits for signals.
    private static let signal = Atomic<Int32>(0)
    /// The end of a pipe that can be read when the user wants the command to end; -1 before `arm`.
    private static let wakeup = Atomic<Int32>(-1)

    /// True if the user wants the command to end.
    static var isRequested: Bool { cancellation.isCancelled }

    /// True if an error means that a command ended because the user wanted it.
    static func isRequest(_ error: any Error) -> Bool {
        guard isRequested else { return false }
        guard let error = error as? CheckpointError else { return error is Requested }
        return error.code == .cancelled || error.cause is Requested
    }

    /// How a command ends that is stopped before its work is done.
    static var ending: ToolError.Kind {
        switch signal.load(ordering: .relaxed) {
        case SIGTERM: .terminated
        case SIGHUP: .hungUp
        default: .interrupted
        }
    }

    /// From here on `^C`, SIGTERM and SIGHUP cancel `cancellation` and end `wait`, once.
    ///
    /// SIGHUP is left out if it was ignored at the start, as under `nohup`. Called before any
    /// thread is started: threads inherit the mask, so one thread receives these signals.
    static func arm() throws {
        var set = sigset_t()
        sigemptyset(&set)
        for number in [SIGINT, SIGTERM, SIGHUP] {
            var before = sigaction()
            sigaction(number, nil, &before)
            if number == SIGHUP, before.isIgnored { continue }
            sigaddset(&set, number)
        }
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0, ends.allSatisfy({ fcntl($0, F_SETFD, FD_CLOEXEC) == 0 }) else {
            throw ToolError("no pipe can be created: \(Output.reason())")
        }
        wakeup.store(ends[0], ordering: .relaxed)
        pthread_sigmask(SIG_BLOCK, &set, nil)
        _ = cancellation
        let waiter = SignalWaiter(set: set, wakeup: ends[1])
        // One that came before is not left to a thread, which may be late: nothing is begun.
        var noTime = timespec()
        let pending = sigtimedwait(&set, nil, &noTime)
        if pending > 0 { return waiter.end(by: pending) }
        var thread = pthread_t()
        let code = pthread_create(
            &thread, nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<SignalWaiter>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            }, Unmanaged.passRetained(waiter).toOpaque())
        guard code == 0 else { throw ToolError("no thread can be created (error \(code))") }
        pthread_detach(thread)
    }

    /// What the thread that waits for signals needs.
    private final class SignalWaiter: Sendable {
        private let set: sigset_t
        private let wakeup: Int32

        init(set: sigset_t, wakeup: Int32) {
            self.set = set
            self.wakeup = wakeup
        }

        func run() {
            var set = set
            var number: Int32 = 0
            guard sigwait(&set, &number) == 0 else { return }
            end(by: number)
        }

        func end(by number: Int32) {
            signal.store(number, ordering: .relaxed)
            cancellation.cancel()
            close(wakeup)
        }
    }

    /// Waits until a descriptor can be read; throws `Requested` if the user wants to end.
    static func wait(for descriptor: Int32) throws {
        let end = wakeup.load(ordering: .relaxed)
        guard end >= 0 else { return }
        var both = [
            pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0),
            pollfd(fd: end, events: Int16(POLLIN), revents: 0),
        ]
        let result = poll(&both, 2, -1)
        try check()
        guard result >= 0 || errno == EINTR else {
            throw ToolError("poll failed: \(Output.reason())")
        }
    }

    /// Throws `Requested` if the user wants to end.
    static func check() throws {
        if isRequested { throw Requested() }
    }
}

extension sigaction {
    /// True if the signal is ignored.
    fileprivate var isIgnored: Bool {
        unsafeBitCast(__sigaction_handler, to: UInt.self) == unsafeBitCast(SIG_IGN, to: UInt.self)
    }
}
