import Glibc
import Synchronization

/// The library's own threads: the store and the engine block on the disk, which Swift's cooperative
/// pool must not.
package enum Threads {
    /// Number of processors that this process may run on.
    package static var processorCount: Int {
        max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))
    }

    /// CPU time used by this process so far, over all threads, user and kernel.
    package static var processorTime: Duration {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
    }

    /// Runs `body` on `count` threads, including the caller's, and returns when all have ended.
    package static func concurrently(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
        let threads = (1..<max(count, 1)).map { index in Thread { body(index) } }
        body(0)
        for thread in threads { thread.join() }
    }

    /// A single thread.
    package final class Thread: Sendable {
        private let handle: Mutex<pthread_t?>

        /// Starts a thread that runs `body`.
        package init(_ body: @escaping @Sendable () -> Void) {
            let box = Unmanaged.passRetained(Body(body))
            var handle = pthread_t()
            let code = pthread_create(
                &handle, nil,
                { argument in
                    guard let argument else { return nil }
                    Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
                    return nil
                }, box.toOpaque())
            precondition(code == 0, "the system has no thread left (pthread_create: \(code))")
            self.handle = Mutex(handle)
        }

        /// Waits until it has ended.
        ///
        /// Later calls return at once.
        package func join() {
            let handle = handle.withLock { handle in
                defer { handle = nil }
                return handle
            }
            if let handle { pthread_join(handle, nil) }
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

    /// Blocks until `body` returns a value, and returns that.
    ///
    /// `body` may change the value, and is called again after each change. Wakes no other thread:
    /// none may wait for what `body` changes.
    package func wait<T>(_ body: (inout Value) -> T?) -> T {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while true {
            if let result = body(&value) { return result }
            pthread_cond_wait(condition, mutex)
        }
    }

    /// The same, and wakes every thread that waits: one may wait for what `body` changed.
    package func waitAndNotify<T>(_ body: (inout Value) -> T?) -> T {
        let result = wait(body)
        wake()
        return result
    }

    /// Wakes every thread that waits, after a `wait` whose `body` changed what one waits for.
    package func wake() {
        pthread_cond_broadcast(condition)
    }

    /// Blocks until `body` returns a value, and returns that; nil after `limit`.
    ///
    /// `body` may change the value, and is called again after each change, and once at the end.
    /// Wakes no other thread.
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
