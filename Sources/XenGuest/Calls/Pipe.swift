import CLinux
import Glibc
import GuestModel
import Synchronization

/// A pipe between two threads of this process.
final class Pipe: Sendable {
    private let ends: Mutex<(reading: Int32, writing: Int32)>
    let writingEnd: Int32
    private let readingEnd: Int32

    init() throws(GuestError) {
        var ends: [Int32] = [-1, -1]
        guard clinux_pipe(&ends) == 0 else {
            throw GuestError(
                code: .callFailed,
                message: "pipe2 failed: \(String(cString: strerror(errno)))", errno: errno)
        }
        readingEnd = ends[0]
        writingEnd = ends[1]
        self.ends = Mutex((ends[0], ends[1]))
    }

    deinit {
        closeReading()
        closeWriting()
    }

    /// Fills a buffer from the current position; returns 0 at the end.
    func read(_ buffer: UnsafeMutableRawBufferPointer) throws(GuestError) -> Int {
        while true {
            let count = Glibc.read(readingEnd, buffer.baseAddress, buffer.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else {
                throw GuestError(
                    code: .callFailed,
                    message: "a pipe cannot be read: \(String(cString: strerror(errno)))",
                    errno: errno)
            }
            return count
        }
    }

    func closeReading() {
        ends.withLock { ends in
            if ends.reading >= 0 { close(ends.reading) }
            ends.reading = -1
        }
    }

    func closeWriting() {
        ends.withLock { ends in
            if ends.writing >= 0 { close(ends.writing) }
            ends.writing = -1
        }
    }
}

/// A thread for one long call, in which a broken pipe is an error instead of a signal.
struct CallThread {
    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    private let thread: pthread_t

    init(_ run: @escaping @Sendable () -> Void) throws(GuestError) {
        var thread = pthread_t()
        let body = Unmanaged.passRetained(Body(run))
        let code = pthread_create(
            &thread, nil,
            { argument in
                var set = sigset_t()
                sigfillset(&set)
                pthread_sigmask(SIG_BLOCK, &set, nil)
                if let argument {
                    Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
                }
                return nil
            }, body.toOpaque())
        guard code == 0 else {
            body.release()
            throw GuestError(
                code: .callFailed,
                message: "no thread can be started: \(String(cString: strerror(code))); raise the "
                    + "limit of threads (ulimit -u, pids.max of the cgroup)", errno: code)
        }
        self.thread = thread
    }

    func join() { pthread_join(thread, nil) }
}
