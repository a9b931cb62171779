import Glibc
public import GuestModel
import Synchronization

/// Regions of the process's own memory as a guest.
///
/// Frames are numbered from 0 in the order in which regions are added. Writes are tracked by the
/// kernel: the first write to a page after each take costs about 1.5 us, later ones nothing. Memory
/// that is never written costs nothing.
///
/// What tracking sees (tested on Linux 6.18): stores of all threads; the kernel's own writes on the
/// process's behalf (`read` into a region); pages never touched (they are in the first set);
/// `MADV_DONTNEED` of anonymous memory. What it does not see: writes to a shared region by another
/// process, through another mapping or through the descriptor, and `MADV_REMOVE` of it; remapping
/// of a region. A child of `fork` has its own memory, which is not checkpointed.
public final class ProcessMemory: WritableGuest {
    /// How changed pages are found.
    public enum Tracking: Sendable {
        /// userfaultfd write-protection and `PAGEMAP_SCAN`; Linux 6.7 or later, no privilege.
        case writeProtect
        /// No log: every capture compares every page. Any kernel.
        case compareAll
    }

    /// The kind of memory that a region has.
    public enum Backing: Sendable {
        /// Private memory.
        case anonymous
        /// Shared memory (memfd), which children and other processes can map.
        case shared
    }

    private let hold: @Sendable () throws -> Void
    private let release: @Sendable () -> Void
    private let saveState: @Sendable () throws -> GuestState
    private let putStateBack: @Sendable (GuestState) throws -> Void
    private let tracker: WriteTracker?
    private let regions = Mutex<[MemoryRegion]>([])
    /// That of the regions: asked for in every pause, so it is there.
    private let currentLayout = Mutex(GuestLayout.empty)

    /// Creates a guest without regions.
    ///
    /// - Parameters:
    ///   - tracking: how changed pages are found.
    ///   - hold: stops every thread that writes to the regions, and returns when none does. When it
    ///     throws, all must be running.
    ///   - release: resumes them. Called once for each `hold` that returned.
    ///   - saveState: returns state to keep with each checkpoint; called in the pause, so it must
    ///     be fast.
    ///   - restoreState: restores such state; called in the pause, after the pages.
    public init(
        tracking: Tracking = .writeProtect,
        hold: @escaping @Sendable () throws -> Void = {},
        release: @escaping @Sendable () -> Void = {},
        saveState: @escaping @Sendable () throws -> GuestState = { .empty },
        restoreState: @escaping @Sendable (GuestState) throws -> Void = { _ in }
    ) {
        self.hold = hold
        self.release = release
        self.saveState = saveState
        putStateBack = restoreState
        tracker = tracking == .writeProtect ? WriteTracker() : nil
    }

    deinit {
        tracker?.stop()
        for region in regions.withLock({ $0 }) where region.isOwned {
            system_munmap(region.bytes)
        }
    }

    /// Throws one sentence if this kernel cannot track writes.
    public static func checkSupport() throws(GuestError) {
        let tracker = WriteTracker()
        defer { tracker.stop() }
        let log = try tracker.start([])
        var bitmap = DirtyBitmap()
        guard let probe = system_mmap(Page.byteCount, nil) else {
            throw GuestError.call("mmap", "a page")
        }
        let bytes = UnsafeMutableRawBufferPointer(start: probe, count: Page.byteCount)
        defer { system_munmap(bytes) }
        let range = PageRange(first: PageFrameNumber(0), count: 1)
        try tracker.add(MemoryRegion(bytes: bytes, pages: range, isOwned: false))
        _ = try tracker.scan(log, clear: true) { bitmap.insert($0) }
    }

    /// The regions, in frame order.
    public var allRegions: [MemoryRegion] { regions.withLock { $0 } }

    /// Maps zeroed memory and adds it as a region.
    ///
    /// It is unmapped when this guest is released.
    ///
    /// - Parameter byteCount: a positive multiple of 4096.
    public func allocate(
        byteCount: Int, backing: Backing = .anonymous
    ) throws(GuestError) -> MemoryRegion {
        guard byteCount > 0, byteCount % Page.byteCount == 0 else {
            throw GuestError(
                code: .invalidRange,
                message: "a region needs a positive multiple of 4096 bytes, not \(byteCount)")
        }
        var descriptor: Int32?
        defer { if let descriptor { system_close(descriptor) } }
        if backing == .shared {
            let file = system_memfd("varve-region")
            guard file >= 0 else { throw GuestError.call("memfd_create", "a region") }
            descriptor = file
            guard system_ftruncate(file, byteCount) == 0 else {
                throw GuestError.call("ftruncate", "a region of \(byteCount) bytes")
            }
        }
        guard let address = system_mmap(byteCount, descriptor) else {
            throw GuestError.call("mmap", "a region of \(byteCount) bytes")
        }
        let bytes = UnsafeMutableRawBufferPointer(start: address, count: byteCount)
        do throws(GuestError) {
            return try add(bytes, isOwned: true)
        } catch {
            system_munmap(bytes)
            throw error
        }
    }

    /// Adds memory that the embedder mapped as a region.
    ///
    /// It must stay mapped while this guest lives, and is not unmapped with it.
    ///
    /// - Parameter bytes: page-aligned, a positive multiple of 4096 bytes, in no other region.
    public func register(
        _ bytes: UnsafeMutableRawBufferPointer
    ) throws(GuestError) -> MemoryRegion {
        let address = UInt(bitPattern: bytes.baseAddress)
        guard bytes.count > 0, bytes.count % Page.byteCount == 0,
            address % UInt(Page.byteCount) == 0
        else {
            throw GuestError(
                code: .invalidRange,
                message: "a region must be page-aligned, with a positive multiple of 4096 bytes")
        }
        let isTaken = regions.withLock { regions in
            regions.contains { region in
                let start = UInt(bitPattern: region.bytes.baseAddress)
                return address < start + UInt(region.bytes.count)
                    && start < address + UInt(bytes.count)
            }
        }
        guard !isTaken else {
            throw GuestError(
                code: .invalidRange, message: "the memory overlaps an existing region")
        }
        return try add(bytes, isOwned: false)
    }

    private func add(
        _ bytes: UnsafeMutableRawBufferPointer, isOwned: Bool
    ) throws(GuestError) -> MemoryRegion {
        try regions.withLock { (regions) throws(GuestError) -> MemoryRegion in
            let first = regions.last?.pages.end ?? PageFrameNumber(0)
            let region = MemoryRegion(
                bytes: bytes, pages: PageRange(first: first, count: bytes.count / Page.byteCount),
                isOwned: isOwned)
            // A session that owns this guest owns its new memory too, if no other session does.
            try GuestClaim.extend(of: self, to: UnsafeRawBufferPointer(bytes))
            do throws(GuestError) {
                try tracker?.add(region)
            } catch {
                GuestClaim.withdraw(UnsafeRawBufferPointer(bytes), of: self)
                throw error
            }
            regions.append(region)
            currentLayout.withLock { $0 = GuestLayout(runs: regions.map(\.pages)) }
            return region
        }
    }

    // MARK: - Guest

    /// One run for all regions, from frame 0.
    public func layout() -> GuestLayout {
        currentLayout.withLock { $0 }
    }

    /// Claims the regions, including later ones: no other `ProcessMemory` that includes a byte of
    /// them can be claimed meanwhile.
    ///
    /// Memory that is mapped twice counts as two memories here, as it does for the log of writes.
    public func claim() throws(GuestError) -> GuestClaim {
        try regions.withLock { (regions) throws(GuestError) in
            try GuestClaim(of: self, memory: regions.map { UnsafeRawBufferPointer($0.bytes) })
        }
    }

    /// The log of writes; nil with `.compareAll`.
    public var dirtyTracking: (any DirtyTracking)? {
        tracker == nil ? nil : self
    }

    /// Calls the embedder's `hold`.
    public func pause() throws(GuestError) {
        do {
            try hold()
        } catch {
            throw GuestError(
                code: .pauseFailed, message: "the process's threads could not be paused: \(error)")
        }
    }

    /// Calls the embedder's `release`.
    public func resume() { release() }

    /// Calls the embedder's `saveState`.
    public func captureState() throws(GuestError) -> GuestState {
        do {
            return try saveState()
        } catch {
            throw GuestError(
                code: .unavailable, message: "the process's state could not be saved: \(error)")
        }
    }

    /// Copies pages out of the regions.
    public func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        let regions = allRegions
        try destination.withUnsafeMutableBytes { (bytes) throws(GuestError) in
            var copy = PieceCopy(to: bytes)
            for index in runs.indices {
                try ProcessMemory.forEachPiece(of: runs[index], regions) { copy.add($0) }
            }
            copy.flush()
        }
    }

    // MARK: - WritableGuest

    /// A process cannot change its own layout for a checkpoint: it must have the same layout.
    public func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        let mine = self.layout()
        guard layout == mine else {
            throw GuestError(
                code: .sizeMismatch,
                message: "the checkpoint has \(counted(layout.pageCount, "page")), but the regions "
                    + "have \(mine.pageCount); register the regions that it was taken from")
        }
    }

    /// False: regions have old contents.
    public var startsZeroed: Bool { false }

    /// Copies pages into the regions.
    public func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError) {
        let regions = allRegions
        try source.withUnsafeBytes { (bytes) throws(GuestError) in
            var offset = 0
            for index in runs.indices {
                try ProcessMemory.forEachPiece(of: runs[index], regions) { piece in
                    piece.baseAddress.unsafelyUnwrapped.copyMemory(
                        from: bytes.baseAddress.unsafelyUnwrapped + offset, byteCount: piece.count)
                    offset += piece.count
                }
            }
        }
    }

    /// The memory itself; nil for frames of more than one region.
    public func mappedMemory(of range: PageRange) -> UnsafeMutableRawBufferPointer? {
        regions.withLock { regions in
            for region in regions
            where region.pages.contains(range.first) && range.end <= region.pages.end {
                return UnsafeMutableRawBufferPointer(
                    start: region.address(of: range.first), count: range.byteCount)
            }
            return nil
        }
    }

    /// Calls the embedder's `restoreState`.
    public func restoreState(_ state: GuestState) throws(GuestError) {
        do {
            try putStateBack(state)
        } catch {
            throw GuestError(
                code: .stateRejected,
                message: "the process rejected its state: \(error)")
        }
    }

    /// Calls `body` with the memory of a run, region by region.
    private static func forEachPiece(
        of run: PageRange, _ regions: [MemoryRegion],
        _ body: (UnsafeMutableRawBufferPointer) -> Void
    ) throws(GuestError) {
        var frame = run.first
        while frame < run.end {
            guard let region = regions.first(where: { $0.pages.contains(frame) }) else {
                throw GuestError(
                    code: .invalidRange, message: "frame \(frame) is not in any of the regions")
            }
            let end = min(run.end, region.pages.end)
            let count = Int(end.rawValue - frame.rawValue) * Page.byteCount
            body(UnsafeMutableRawBufferPointer(start: region.address(of: frame), count: count))
            frame = end
        }
    }
}

extension ProcessMemory: DirtyTracking {
    /// Write-protects all regions.
    ///
    /// Throws `busy` if another userfaultfd of this process has registered one of them.
    public func start() throws(GuestError) -> DirtyLog {
        guard let tracker else {
            throw GuestError(
                code: .unsupported,
                message: "this memory was created without a log of writes; use .writeProtect")
        }
        // Under the lock: a region that is added concurrently is either in the array or added
        // afterwards.
        return try regions.withLock { (regions) throws(GuestError) in try tracker.start(regions) }
    }

    /// True from `start` to the next `start` or `stop`.
    public func isRunning(_ log: DirtyLog) -> Bool { tracker?.isRunning(log) ?? false }

    /// Takes and clears the log: one scan of the regions' page tables, about 1 ms for 1 GiB.
    public func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        try scan(log, clear: true) { bitmap.insert($0) }
    }

    /// Reads the log without clearing it: logged pages stay writable without a fault.
    public func readDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        try scan(log, clear: false) { bitmap.insert($0) }
    }

    private func scan(
        _ log: DirtyLog, clear: Bool, _ body: (PageRange) -> Void
    ) throws(GuestError) -> DirtyKnowledge {
        guard let tracker else { return .unknown }
        return try tracker.scan(log, clear: clear, body) ? .complete : .unknown
    }

    /// Counts the log without clearing it: the same scan.
    ///
    /// All pages, for a log that has ended.
    public func peekDirtyCount(_ log: DirtyLog) throws(GuestError) -> Int {
        var count = 0
        let knowledge = try scan(log, clear: false) { count += $0.count }
        return knowledge == .complete ? count : layout().pageCount
    }

    /// Removes the protection.
    public func stop(_ log: DirtyLog) {
        tracker?.stop(log)
    }
}
