import CLinux
import Glibc
import GuestModel
import Synchronization

// The kernel's log of written pages.
//
// A region is registered with a userfaultfd in write-protect mode. With UFFD_FEATURE_WP_ASYNC the
// kernel itself resolves a write to a protected page: it removes the protection and continues.
// `PAGEMAP_SCAN` finds the pages without protection ("written") and protects them again in the same
// step, under the page table's lock: a write comes either before that, and is in this set, or
// after, and is in the next. Documentation/admin-guide/mm/pagemap.rst of Linux 6.7.
//
// A page that was never touched counts as written until it is protected (WP_UNPOPULATED), so the
// first take of a region has all of its pages. A huge page is split when it is protected, so
// single pages are found there too.

/// Tracks writes to regions of this process.
final class WriteTracker: Sendable {
    private struct State {
        var userfaultfd: Int32 = -1
        var pagemap: Int32 = -1
        var regions: [MemoryRegion] = []
        /// The running log; nil if there is none.
        var log: DirtyLog?
        var isOpen: Bool { userfaultfd >= 0 }
    }

    // Runs of written pages that one kernel call can return.
    private static let regionCount = 1024

    private let state = Mutex(State())
    // What one call hands over; used with the lock of `state` held only. Allocated once, because
    // the log is read in every pause.
    private nonisolated(unsafe) let found = UnsafeMutableBufferPointer<clinux_page_region>.allocate(
        capacity: regionCount)

    deinit {
        stop()
        found.deallocate()
    }

    /// Begins a log; a running one ends.
    ///
    /// - Parameter regions: all current regions; `add` tracks later ones.
    func start(_ regions: [MemoryRegion]) throws(GuestError) -> DirtyLog {
        try state.withLock { (state) throws(GuestError) -> DirtyLog in
            let log = DirtyLog()
            // Already protected: the new log begins with pages that were written before, which is
            // more than required.
            guard !state.isOpen else {
                state.log = log
                return log
            }
            do throws(GuestError) {
                try WriteTracker.open(&state)
                for region in regions {
                    try WriteTracker.register(region, &state)
                    // What was written before is the caller's to copy.
                    try scan(region, state, clear: true) { _ in }
                }
            } catch {
                WriteTracker.close(&state)
                throw error
            }
            state.log = log
            return log
        }
    }

    /// True if this log runs.
    func isRunning(_ log: DirtyLog) -> Bool { state.withLock { $0.log == log } }

    /// Tracks one more region; all its pages are in the next set.
    ///
    /// Does nothing before `start`.
    func add(_ region: MemoryRegion) throws(GuestError) {
        try state.withLock { (state) throws(GuestError) in
            if state.isOpen { try WriteTracker.register(region, &state) }
        }
    }

    /// Calls `body` with runs of the pages written since the log was last cleared, in order.
    ///
    /// - Parameter clear: true to clear it in the same step.
    /// - Returns: false, without doing anything, if this log is not running.
    func scan(
        _ log: DirtyLog, clear: Bool, _ body: (PageRange) -> Void
    ) throws(GuestError) -> Bool {
        try state.withLock { (state) throws(GuestError) -> Bool in
            guard state.log == log else { return false }
            for region in state.regions {
                try scan(region, state, clear: clear, body)
            }
            return true
        }
    }

    /// Ends a log: the kernel removes all protection.
    ///
    /// Does nothing if it has already ended.
    func stop(_ log: DirtyLog) {
        state.withLock { state in
            if state.log == log { WriteTracker.close(&state) }
        }
    }

    /// Ends any running log, when the tracker is released.
    func stop() {
        state.withLock { WriteTracker.close(&$0) }
    }

    // MARK: - Under the lock

    private static func open(_ state: inout State) throws(GuestError) {
        state.userfaultfd = system_userfaultfd()
        guard state.userfaultfd >= 0 else { throw GuestError.userfaultfd() }
        guard system_enableWriteProtect(state.userfaultfd) == 0 else {
            throw GuestError.writeProtect()
        }
        state.pagemap = system_open("/proc/self/pagemap", O_RDONLY)
        guard state.pagemap >= 0 else { throw GuestError.call("open", "/proc/self/pagemap") }
    }

    private static func close(_ state: inout State) {
        if state.isOpen {
            // Memory that outlives the tracker must not stay protected.
            for region in state.regions { _ = system_unregister(state.userfaultfd, region.bytes) }
            system_close(state.userfaultfd)
        }
        if state.pagemap >= 0 { system_close(state.pagemap) }
        state = State()
    }

    private static func register(
        _ region: MemoryRegion, _ state: inout State
    ) throws(GuestError) {
        guard system_register(state.userfaultfd, region.bytes) == 0 else {
            guard errno != EBUSY else {
                throw GuestError(
                    code: .busy,
                    message: "region \(region.pages) is registered with another userfaultfd: its "
                        + "writes are tracked already, by another ProcessMemory or by other code; "
                        + "end that first", errno: EBUSY)
            }
            throw GuestError.call("UFFDIO_REGISTER", "region \(region.pages)")
        }
        state.regions.append(region)
    }

    /// Calls `body` with runs of written pages, in order.
    private func scan(
        _ region: MemoryRegion, _ state: borrowing State, clear: Bool,
        _ body: (PageRange) -> Void
    ) throws(GuestError) {
        let start = UInt64(UInt(bitPattern: region.bytes.baseAddress))
        let end = start + UInt64(region.bytes.count)
        let pagemap = state.pagemap
        var position = start
        while position < end {
            var walkEnd = position
            let count = system_pagemapScan(
                pagemap, position..<end, clear: clear, found, &walkEnd)
            guard count >= 0 else { throw GuestError.pagemapScan() }
            for run in found[..<count] {
                let first = (run.start - start) / UInt64(Page.byteCount)
                body(
                    PageRange(
                        first: PageFrameNumber(region.pages.first.rawValue + first),
                        count: Int((run.end - run.start) / UInt64(Page.byteCount))))
            }
            // The kernel stops early only when `found` is full.
            guard walkEnd > position else { throw GuestError.call("PAGEMAP_SCAN", "a region") }
            position = walkEnd
        }
    }
}
