import Glibc
import Synchronization

/// The threads of the library: the store and the engine block on the disk, and a thread of Swift's
/// cooperative pool must not.
package enum Threads {
    /// The number of processors that are online; at least 1.
    package static var processorCount: Int {
        max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))
    }

    /// The processor time that all threads of this process have used so far, user and kernel.
    package static var processorTime: Duration {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
    }

    /// Calls `body` with each number below `count`, and in any case with 0; returns when all calls
    /// have returned.
    ///
    /// Each call runs on a thread of its own, except that with 0, which runs on the caller's. If
    /// the system has no more threads, the remaining calls run on the caller's thread, one after
    /// another.
    package static func concurrently(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
        var threads: [Thread] = []
        while threads.count + 1 < count {
            let index = threads.count + 1
            guard let thread = try? Thread({ body(index) }) else { break }
            threads.append(thread)
        }
        body(0)
        for index in threads.count + 1..<max(count, threads.count + 1) { body(index) }
        for thread in threads { thread.join() }
    }

    /// Lets the creation of threads fail, for tests, in the task that sets it.
    @TaskLocal package static var shortage: Shortage?

    /// The number of threads that can still be created.
    package final class Shortage: Sendable {
        private let left: Atomic<Int>

        package init(after count: Int) { left = Atomic(count) }

        fileprivate var isReached: Bool { left.subtract(1, ordering: .relaxed).oldValue <= 0 }
    }

    private static func tooMany(errno: Int32) -> RepositoryError {
        RepositoryError(
            .callFailed,
            "no thread can be started: \(String(cString: strerror(errno))); raise the limit of "
                + "threads (ulimit -u, pids.max of the cgroup) or end other programs", errno: errno)
    }

    /// A thread; if the object is released without `join`, the thread continues and ends by itself.
    package final class Thread: Sendable {
        private let handle: Mutex<pthread_t?>

        /// Starts a thread that runs `body`.
        ///
        /// Throws `callFailed` if the system allows this process or its user no more threads.
        package init(_ body: @escaping @Sendable () -> Void) throws(RepositoryError) {
            let box = Unmanaged.passRetained(Body(body))
            var handle = pthread_t()
            let code =
                shortage?.isReached == true
                ? EAGAIN
                : pthread_create(
                    &handle, nil,
                    { argument in
                        guard let argument else { return nil }
                        Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
                        return nil
                    }, box.toOpaque())
            guard code == 0 else {
                box.release()
                throw Threads.tooMany(errno: code)
            }
            self.handle = Mutex(handle)
        }

        deinit {
            if let handle = take() { pthread_detach(handle) }
        }

        /// Blocks until the thread has ended.
        ///
        /// Later calls return at once.
        package func join() {
            if let handle = take() { pthread_join(handle, nil) }
        }

        private func take() -> pthread_t? {
            handle.withLock { handle in
                defer { handle = nil }
                return handle
            }
        }
    }

    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
}

/// A value that threads change under a lock and wait for.
package final class Monitor<Value: Sendable>: @unchecked Sendable {
    // Unchecked: `value` is accessed only with the mutex held.
    private var value: Value
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>

    package init(_ value: Value) {
        self.value = value
        mutex = .allocate(capacity: 1)
        mutex.initialize(to: pthread_mutex_t())
        pthread_mutex_init(mutex, nil)
        condition = .allocate(capacity: 1)
        condition.initialize(to: pthread_cond_t())
        // Timeouts use the monotonic clock.
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    /// Changes the value, and wakes all waiting threads.
    package func change<T>(_ body: (inout Value) -> T) -> T {
        pthread_mutex_lock(mutex)
        defer {
            pthread_cond_broadcast(condition)
            pthread_mutex_unlock(mutex)
        }
        return body(&value)
    }

    /// Changes the value, and wakes the waiting threads if `body` returns true.
    ///
    /// Waking a thread that cannot continue costs two context switches.
    package func update(_ body: (inout Value) -> Bool) {
        pthread_mutex_lock(mutex)
        if body(&value) { pthread_cond_broadcast(condition) }
        pthread_mutex_unlock(mutex)
    }

    /// Reads the value.
    package func read<T>(_ body: (Value) -> T) -> T {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body(value)
    }

    /// Calls `body` once, without waiting; wakes no other thread.
    package func attempt<T>(_ body: (inout Value) -> T?) -> T? {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body(&value)
    }

    /// Blocks until `body` returns a value, and returns that value.
    ///
    /// `body` may change the monitor's value, and is called again after each change by another
    /// thread. No thread is woken, so none may wait for what `body` changes.
    package func wait<T>(_ body: (inout Value) -> T?) -> T {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while true {
            if let result = body(&value) { return result }
            pthread_cond_wait(condition, mutex)
        }
    }

    /// Waits like `wait`, and then wakes every waiting thread: one may wait for the changed value.
    package func waitAndNotify<T>(_ body: (inout Value) -> T?) -> T {
        let result = wait(body)
        wake()
        return result
    }

    /// Wakes every waiting thread, after a `wait` whose `body` changed what one may wait for.
    package func wake() {
        pthread_cond_broadcast(condition)
    }

    /// Blocks until `body` returns a value, and returns that value; returns nil after `limit`.
    ///
    /// `body` is called as by `wait`, and once more after `limit`. No thread is woken.
    package func wait<T>(atMost limit: Duration, _ body: (inout Value) -> T?) -> T? {
        var end = timespec()
        clock_gettime(CLOCK_MONOTONIC, &end)
        // A limit of more than a century counts as none.
        let (seconds, attoseconds) = min(max(limit, .zero), .seconds(1 << 32)).components
        let nanoseconds = end.tv_nsec + Int(attoseconds / 1_000_000_000)
        end.tv_sec += Int(seconds) + nanoseconds / 1_000_000_000
        end.tv_nsec = nanoseconds % 1_000_000_000
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while true {
            if let result = body(&value) { return result }
            if pthread_cond_timedwait(condition, mutex, &end) == ETIMEDOUT { return body(&value) }
        }
    }
}
