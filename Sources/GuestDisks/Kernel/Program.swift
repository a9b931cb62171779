import CLinux
import Glibc
import GuestModel

// Programs of others, and the guard: how they are started, heard and ended. Every call for that is
// in this file.

/// How a program ended.
struct ProgramEnd: Sendable {
    /// Its exit status; 128 plus the signal's number if a signal ended it.
    let status: Int32
    /// The last lines that it wrote to standard error, at most 4 KiB.
    let complaint: String
}

/// A running program in a process group of its own.
struct Program: ~Copyable {
    /// A closed end is -1.
    private struct Ends {
        var reading: Int32 = -1
        var writing: Int32 = -1

        static func make() throws(GuestError) -> Ends {
            var ends: [Int32] = [-1, -1]
            guard clinux_pipe(&ends) == 0 else { throw GuestError.call("pipe2", "a program") }
            return Ends(reading: ends[0], writing: ends[1])
        }

        mutating func closeReading() {
            if reading >= 0 { close(reading) }
            reading = -1
        }

        mutating func closeWriting() {
            if writing >= 0 { close(writing) }
            writing = -1
        }
    }

    private let identifier: pid_t
    private var input = Ends()
    private var output = Ends()
    private var errors = Ends()
    private var status: Int32?
    private let name: String

    /// Starts a program; the first word is its path, or a name to look up in PATH.
    ///
    /// - Parameters:
    ///   - command: the program and its arguments.
    ///   - isTold: its standard input is a pipe, for `write`, its standard error is this process's,
    ///     and it is in a session of its own; else its standard input is empty and its standard
    ///     error a pipe.
    ///   - inherited: an open file that it inherits, under another number.
    init(
        _ command: [String], isTold: Bool = false, inherited: Int32? = nil
    ) throws(GuestError) {
        name = command[0]
        var (input, output, errors) = (Ends(), Ends(), Ends())
        func closeAll() {
            for end in [input, output, errors] {
                if end.reading >= 0 { close(end.reading) }
                if end.writing >= 0 { close(end.writing) }
            }
        }
        do throws(GuestError) {
            if isTold { input = try Ends.make() }
            output = try Ends.make()
            if !isTold { errors = try Ends.make() }
        } catch {
            closeAll()
            throw error
        }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        if isTold {
            posix_spawn_file_actions_adddup2(&actions, input.reading, STDIN_FILENO)
        } else {
            posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        }
        posix_spawn_file_actions_adddup2(&actions, output.writing, STDOUT_FILENO)
        if !isTold {
            posix_spawn_file_actions_adddup2(&actions, errors.writing, STDERR_FILENO)
        }
        // To the same number: posix_spawn then leaves it open in the child (glibc 2.29 and later).
        // Not one of the standard streams, which are others there. If there is no room for it, the
        // program is started without it.
        let shared = inherited.map { fcntl($0, F_DUPFD_CLOEXEC, 3) } ?? -1
        defer { if shared >= 0 { close(shared) } }
        if shared >= 0 { posix_spawn_file_actions_adddup2(&actions, shared, shared) }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        Program.separate(&attributes, inNewSession: isTold)
        var words = command.map { strdup($0) } + [nil]
        defer { for word in words { free(word) } }
        var child: pid_t = 0
        let code = posix_spawnp(&child, command[0], &actions, &attributes, &words, environ)
        guard code == 0 else {
            closeAll()
            throw GuestError(
                code: code == ENOENT ? .unsupported : .callFailed,
                message: "\(command[0]) cannot be started: \(String(cString: strerror(code)))"
                    + (code == ENOENT ? "; install it, or check its path" : ""),
                errno: code)
        }
        identifier = child
        input.closeReading()
        output.closeWriting()
        errors.closeWriting()
        self.input = input
        self.output = output
        self.errors = errors
    }

    /// Makes the child the leader of a group, or of a session, with the default signals.
    private static func separate(_ attributes: inout posix_spawnattr_t, inNewSession: Bool) {
        // Signals that this process blocks or ignores must not stay so in the child.
        var (none, all) = (sigset_t(), sigset_t())
        sigemptyset(&none)
        sigfillset(&all)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setpgroup(&attributes, 0)
        // POSIX_SPAWN_SETSID of spawn.h; the leader of a session leads its group.
        let group = inNewSession ? 0x80 : Int32(POSIX_SPAWN_SETPGROUP)
        posix_spawnattr_setflags(
            &attributes, Int16(Int32(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF) | group))
    }

    deinit {
        var (input, output, errors) = (input, output, errors)
        input.closeWriting()
        output.closeReading()
        errors.closeReading()
        guard status == nil else { return }
        var code: Int32 = 0
        // It was given up: its whole group ends.
        kill(-identifier, SIGKILL)
        while waitpid(identifier, &code, 0) < 0 && errno == EINTR {}
    }

    // MARK: - One that is run to its end

    /// Runs a program to its end.
    ///
    /// - Parameters:
    ///   - command: the program and its arguments.
    ///   - deadline: after this it is killed with its group, and `timedOut` is thrown.
    ///   - inherited: an open file that it inherits.
    ///   - take: gets its standard output, piece by piece; if it throws, the program is killed.
    static func run(
        _ command: [String], within deadline: Duration, inherited: Int32? = nil,
        _ take: (UnsafeRawBufferPointer) throws(GuestError) -> Void
    ) throws(GuestError) -> ProgramEnd {
        var program = try Program(command, inherited: inherited)
        return try program.collect(until: ContinuousClock.now + deadline, deadline, take)
    }

    private mutating func collect(
        until end: ContinuousClock.Instant, _ deadline: Duration,
        _ take: (UnsafeRawBufferPointer) throws(GuestError) -> Void
    ) throws(GuestError) -> ProgramEnd {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 << 10, alignment: 16)
        defer { buffer.deallocate() }
        var complaint: [UInt8] = []
        // What a program in the background has inherited stays open when this one has ended.
        var isOver = false
        while (output.reading >= 0 || errors.reading >= 0) && !isOver {
            guard ContinuousClock.now < end else {
                throw GuestError(
                    code: .timedOut,
                    message: "\(name) did not end within \(deadline), and was killed")
            }
            var polls = [
                pollfd(fd: output.reading, events: Int16(POLLIN), revents: 0),
                pollfd(fd: errors.reading, events: Int16(POLLIN), revents: 0),
            ]
            // In this order: what it wrote before it ended is in the pipes.
            let hadEnded = hasEnded()
            isOver = poll(&polls, 2, 20) == 0 && hadEnded
            if polls[0].revents != 0 {
                let count = read(output.reading, buffer.baseAddress, buffer.count)
                if count > 0 {
                    try take(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
                } else if count == 0 || errno != EINTR {
                    output.closeReading()
                }
            }
            if polls[1].revents != 0 {
                let count = read(errors.reading, buffer.baseAddress, buffer.count)
                if count > 0 {
                    complaint = (complaint + buffer[..<count]).suffix(4096)
                } else if count == 0 || errno != EINTR {
                    errors.closeReading()
                }
            }
        }
        while !hasEnded() {
            guard ContinuousClock.now < end else {
                throw GuestError(
                    code: .timedOut,
                    message: "\(name) did not end within \(deadline), and was killed")
            }
            usleep(1000)
        }
        return ProgramEnd(
            status: exitStatus, complaint: PrintableText.escape(Program.lastLines(complaint)))
    }

    private static func lastLines(_ bytes: [UInt8]) -> String {
        String(decoding: bytes, as: UTF8.self).split(separator: "\n").suffix(3)
            .joined(separator: "; ")
    }

    // MARK: - One that is heard and told

    /// False once it has ended.
    mutating func hasEnded() -> Bool {
        if status == nil {
            var code: Int32 = 0
            if waitpid(identifier, &code, WNOHANG) == identifier { status = code }
        }
        return status != nil
    }

    private var exitStatus: Int32 {
        let code = status ?? 0
        return code & 0x7f == 0 ? code >> 8 & 0xff : 128 + code & 0x7f
    }

    /// Writes to its standard input; false if it does not read any more.
    ///
    /// Never raises SIGPIPE in the embedder's process.
    mutating func write(_ text: String) -> Bool {
        var (pipeSignal, before) = (sigset_t(), sigset_t())
        sigemptyset(&pipeSignal)
        sigaddset(&pipeSignal, SIGPIPE)
        pthread_sigmask(SIG_BLOCK, &pipeSignal, &before)
        let bytes = Array(text.utf8)
        var done = 0
        var isBroken = false
        while done < bytes.count && !isBroken {
            let count = bytes[done...].withUnsafeBytes {
                Glibc.write(input.writing, $0.baseAddress, $0.count)
            }
            if count > 0 { done += count }
            isBroken = count < 0 && errno != EINTR
        }
        if isBroken && sigismember(&before, SIGPIPE) == 0 {
            var now = timespec()
            sigtimedwait(&pipeSignal, nil, &now)
        }
        pthread_sigmask(SIG_SETMASK, &before, nil)
        return !isBroken
    }

    /// Reads one byte of its output; nil at its end, or after the deadline.
    mutating func readByte(within deadline: Duration) -> UInt8? {
        let end = ContinuousClock.now + deadline
        while ContinuousClock.now < end {
            var polled = pollfd(fd: output.reading, events: Int16(POLLIN), revents: 0)
            guard poll(&polled, 1, 20) > 0 else { continue }
            var byte: UInt8 = 0
            let count = read(output.reading, &byte, 1)
            if count < 0 && errno == EINTR { continue }
            return count == 1 ? byte : nil
        }
        return nil
    }

    /// Closes its standard input and waits for its end.
    mutating func finish(within deadline: Duration) -> Bool {
        input.closeWriting()
        let end = ContinuousClock.now + deadline
        while !hasEnded() {
            guard ContinuousClock.now < end else { return false }
            usleep(1000)
        }
        return true
    }

    // MARK: - In the child itself

    /// Tells the parent that this process is ready.
    static func announceReady() {
        let byte = UInt8(ascii: "+")
        withUnsafeBytes(of: byte) { _ = Glibc.write(STDOUT_FILENO, $0.baseAddress, 1) }
    }

    /// The next line of standard input, without its end; nil at the end of the input.
    static func nextLine() -> String? {
        var bytes: [UInt8] = []
        while true {
            var byte: UInt8 = 0
            let count = read(STDIN_FILENO, &byte, 1)
            if count < 0 && errno == EINTR { continue }
            guard count == 1 else { return nil }
            if byte == UInt8(ascii: "\n") { return String(decoding: bytes, as: UTF8.self) }
            bytes.append(byte)
        }
    }
}
