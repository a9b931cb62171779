import CLinux
import Glibc
package import GuestModel
import Synchronization

/// A child process with a pipe to its standard input.
///
/// All kernel calls for it are here.
package final class ChildProcess: Sendable {
    private let identifier: pid_t
    private let input: Mutex<Int32>
    private let output: Int32
    private let status = Mutex<Int32?>(nil)
    /// A nameless file that collects what it prints; -1 if nothing is collected.
    private let collected: Int32

    /// Starts a program; the first word is its path, or a name to look up in PATH.
    ///
    /// - Parameters:
    ///   - command: the program and its arguments.
    ///   - readsOutput: its standard output is a pipe, for `readByte`; else it is this process's
    ///     standard error.
    ///   - collectsOutput: everything that it prints is kept for `collectedLines`.
    ///   - inNewSession: signals to this process's group do not reach it.
    ///   - inherited: an open file that it inherits under the same number, at least 3.
    package init(
        _ command: [String], readsOutput: Bool = false, collectsOutput: Bool = false,
        inNewSession: Bool = false, inherited: Int32? = nil
    ) throws(GuestError) {
        var file: Int32 = -1
        if collectsOutput {
            guard let stream = tmpfile() else { throw ChildProcess.failure("tmpfile", "") }
            defer { fclose(stream) }
            file = fcntl(fileno(stream), F_DUPFD_CLOEXEC, 0)
        }
        collected = file
        var (inputEnds, outputEnds): ([Int32], [Int32]) = ([-1, -1], [-1, -1])
        guard clinux_pipe(&inputEnds) == 0, clinux_pipe(&outputEnds) == 0 else {
            let error = ChildProcess.failure("pipe2", "")
            for descriptor in inputEnds + [file] where descriptor >= 0 { close(descriptor) }
            throw error
        }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, inputEnds[0], STDIN_FILENO)
        let outputTarget = readsOutput ? outputEnds[1] : file >= 0 ? file : STDERR_FILENO
        posix_spawn_file_actions_adddup2(&actions, outputTarget, STDOUT_FILENO)
        if file >= 0 { posix_spawn_file_actions_adddup2(&actions, file, STDERR_FILENO) }
        // To the same number: posix_spawn then leaves it open in the child (glibc 2.29 and later).
        if let inherited { posix_spawn_file_actions_adddup2(&actions, inherited, inherited) }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // Signals that this process blocks or ignores must not stay blocked or ignored in the
        // child.
        var (none, all) = (sigset_t(), sigset_t())
        sigemptyset(&none)
        sigfillset(&all)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &all)
        // POSIX_SPAWN_SETSID of spawn.h.
        let session: Int32 = inNewSession ? 0x80 : 0
        posix_spawnattr_setflags(
            &attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | session))
        var words = command.map { strdup($0) } + [nil]
        defer { for word in words { free(word) } }
        var child: pid_t = 0
        let code = posix_spawnp(&child, command[0], &actions, &attributes, &words, environ)
        close(inputEnds[0])
        close(outputEnds[1])
        guard code == 0 else {
            close(inputEnds[1])
            close(outputEnds[0])
            if file >= 0 { close(file) }
            errno = code
            throw ChildProcess.failure("posix_spawn", command[0])
        }
        identifier = child
        input = Mutex(inputEnds[1])
        output = outputEnds[0]
    }

    deinit {
        closeInput()
        close(output)
        if collected >= 0 { close(collected) }
        if isRunning { ChildProcess.reap(identifier) }
    }

    /// Waits for a program, on a thread of its own, when no one else does: its entry in the process
    /// table would otherwise remain as long as this process lives.
    private static func reap(_ identifier: pid_t) {
        var thread = pthread_t()
        let code = pthread_create(
            &thread, nil,
            { argument in
                var code: Int32 = 0
                let identifier = pid_t(Int(bitPattern: argument))
                while waitpid(identifier, &code, 0) < 0 && errno == EINTR {}
                return nil
            }, UnsafeMutableRawPointer(bitPattern: Int(identifier)))
        if code == 0 { pthread_detach(thread) }
    }

    /// The last lines that it printed, at most 4096 bytes.
    package var collectedLines: [String] {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let end = lseek(collected, 0, SEEK_END)
        let count = pread(collected, &bytes, bytes.count, max(0, end - off_t(bytes.count)))
        guard count > 0 else { return [] }
        return String(decoding: bytes[..<count], as: UTF8.self)
            .split(separator: "\n").map { String($0) }
    }

    private static func failure(_ call: String, _ name: String) -> GuestError {
        let code = errno
        return GuestError(
            code: .callFailed,
            message: "\(name.isEmpty ? call : name) cannot be started: "
                + "\(String(cString: strerror(code)))", errno: code)
    }

    /// Writes all bytes to the program's standard input.
    package func write(_ bytes: UnsafeRawBufferPointer) throws(GuestError) {
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let count = input.withLock { ChildProcess.write(rest, to: $0) }
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else {
                throw GuestError(
                    code: .callFailed, message: "the program ended before it had read everything",
                    errno: errno)
            }
            done += count
        }
    }

    /// `write` that never raises SIGPIPE in the embedder's process.
    private static func write(_ bytes: UnsafeRawBufferPointer, to descriptor: Int32) -> Int {
        var (pipeSignal, before) = (sigset_t(), sigset_t())
        sigemptyset(&pipeSignal)
        sigaddset(&pipeSignal, SIGPIPE)
        pthread_sigmask(SIG_BLOCK, &pipeSignal, &before)
        let count = Glibc.write(descriptor, bytes.baseAddress, bytes.count)
        let code = errno
        if count < 0 && code == EPIPE && sigismember(&before, SIGPIPE) == 0 {
            var now = timespec()
            sigtimedwait(&pipeSignal, nil, &now)
        }
        pthread_sigmask(SIG_SETMASK, &before, nil)
        errno = code
        return count
    }

    /// Writes one byte; an error, such as after the program's death, is ignored.
    func write(_ byte: UInt8) {
        withUnsafeBytes(of: byte) { try? write($0) }
    }

    /// Reads one byte of its output; nil at its end.
    func readByte() -> UInt8? { ChildProcess.readByte(output) }

    /// Closes its standard input.
    package func closeInput() {
        input.withLock { descriptor in
            if descriptor >= 0 { close(descriptor) }
            descriptor = -1
        }
    }

    /// False once it has ended.
    package var isRunning: Bool {
        status.withLock { status in
            if status == nil {
                var code: Int32 = 0
                if waitpid(identifier, &code, WNOHANG) == identifier { status = code }
            }
            return status == nil
        }
    }

    /// Closes its standard input, waits for its end, and returns its exit status; 128 plus the
    /// signal's number if a signal ended it.
    @discardableResult
    package func wait() -> Int32 {
        closeInput()
        return status.withLock { status in
            var code = status ?? 0
            if status == nil {
                while waitpid(identifier, &code, 0) < 0 && errno == EINTR {}
                status = code
            }
            return code & 0x7f == 0 ? code >> 8 & 0xff : 128 + code & 0x7f
        }
    }

    // MARK: - In the child itself

    /// Tells the parent that this process is ready.
    static func announceReady() {
        let byte = UInt8(ascii: "+")
        withUnsafeBytes(of: byte) { _ = Glibc.write(STDOUT_FILENO, $0.baseAddress, 1) }
    }

    /// The next byte of standard input; nil at its end.
    static func nextByte() -> UInt8? { readByte(STDIN_FILENO) }

    private static func readByte(_ descriptor: Int32) -> UInt8? {
        var byte: UInt8 = 0
        while true {
            let count = withUnsafeMutableBytes(of: &byte) { read(descriptor, $0.baseAddress, 1) }
            if count < 0 && errno == EINTR { continue }
            return count == 1 ? byte : nil
        }
    }
}
