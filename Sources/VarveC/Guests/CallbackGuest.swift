import CVarve
import CheckpointFormat
import GuestModel
import LinuxGuest
import Synchronization

/// A guest that a program's table of callbacks stands for.
final class CallbackGuest: WritableGuest {
    private struct State {
        var log: DirtyLog?
        /// The end of the frames of the last layout.
        var frameEnd: UInt64 = 0
        /// Room for what the log says: it is taken in the pause.
        var words: [UInt64] = []
    }

    /// Callbacks that are always there.
    private struct Required {
        let layout:
            @convention(c) (
                UnsafeMutableRawPointer?, UnsafeMutablePointer<UnsafePointer<varve_range>?>?,
                UnsafeMutablePointer<Int>?
            ) -> Int32
        let pause: @convention(c) (UnsafeMutableRawPointer?) -> Int32
        let resume: @convention(c) (UnsafeMutableRawPointer?) -> Int32
    }

    private let required: Required
    private let calls: CallerTable<varve_callbacks>
    private var table: varve_callbacks { calls.table }
    private let context: CallerContext
    let failures = CallbackFailures()
    /// Nil if the table has none.
    let disks: (any DiskGroup)?
    let startsZeroed: Bool
    private let state = Mutex(State())

    init(
        _ callbacks: UnsafePointer<varve_callbacks>?, _ context: UnsafeMutableRawPointer?,
        startsZeroed: Bool = false
    ) throws(Failure) {
        guard let table = try varve_callbacks.read(callbacks) else {
            throw Failure(VARVE_INVALID_ARGUMENT, "the table of callbacks is NULL")
        }
        guard let layout = table.layout, let pause = table.pause, let resume = table.resume,
            table.copy_pages != nil || table.map_pages != nil
        else {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "the callbacks layout, pause, resume, and copy_pages or map_pages must not be NULL")
        }
        required = Required(layout: layout, pause: pause, resume: resume)
        calls = CallerTable(table: table, context: context)
        if let table = try varve_disk_callbacks.read(table.disks) {
            let calls = try DiskCalls(table, context, failures)
            disks = calls.canWrite ? WritableCallbackDisks(calls) : CallbackDisks(calls)
        } else {
            disks = nil
        }
        self.context = CallerContext(context)
        self.startsZeroed = startsZeroed
    }

    /// Calls a callback that returns 0 or a failure.
    private func call(_ name: String, _ body: () -> Int32) throws(GuestError) {
        try failures.call(name, body)
    }

    private func failure(_ name: String, _ result: Int) -> GuestError {
        failures.note(name, result)
    }

    // MARK: - Guest

    func layout() throws(GuestError) -> GuestLayout {
        var ranges: UnsafePointer<varve_range>?
        var count = 0
        try call("layout") { required.layout(context.pointer, &ranges, &count) }
        guard count >= 0, count == 0 || ranges != nil else {
            throw GuestError(
                code: .invalidRange,
                message: "the guest's callback layout returned \(count) ranges and no array")
        }
        var runs: [PageRange] = []
        for range in UnsafeBufferPointer(start: ranges, count: count) {
            let end = range.first.addingReportingOverflow(range.count)
            guard range.count > 0, !end.overflow, end.partialValue <= MapBounds.frameEndMax else {
                throw GuestError(
                    code: .invalidRange,
                    message: "the guest's callback layout returned \(range.count) frames from "
                        + "0x\(String(range.first, radix: 16)) on; a range has at least one frame, "
                        + "and ends at frame 2^32 or before")
            }
            runs.append(
                PageRange(first: PageFrameNumber(range.first), count: Int(range.count)))
        }
        runs.sort { $0.first < $1.first }
        for (one, other) in zip(runs, runs.dropFirst()) where one.end > other.first {
            throw GuestError(
                code: .invalidRange,
                message: "the guest's callback layout returned ranges \(one) and \(other), which "
                    + "overlap")
        }
        let layout = GuestLayout(runs: runs)
        state.withLock { $0.frameEnd = layout.frameEnd }
        return layout
    }

    var dirtyTracking: (any DirtyTracking)? { table.take_dirty == nil ? nil : self }

    func pause() throws(GuestError) {
        try call("pause") { required.pause(context.pointer) }
    }

    func resume() throws(GuestError) {
        try call("resume") { required.resume(context.pointer) }
        // The engine tries twice: a failure that was made good is none.
        failures.forgive("resume")
    }

    func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        try destination.withUnsafeMutableBytes { (bytes) throws(GuestError) in
            guard table.map_pages != nil else { return try copy(runs, to: bytes.baseAddress) }
            var pieces = PieceCopy(to: bytes)
            for index in runs.indices {
                guard let memory = try map(runs[index]) else {
                    return try copyEach(runs, to: bytes)
                }
                pieces.add(memory)
            }
            pieces.flush()
        }
    }

    private func copy(
        _ runs: Span<PageRange>, to destination: UnsafeMutableRawPointer?
    ) throws(GuestError) {
        guard let copy = table.copy_pages else {
            throw GuestError(
                code: .unavailable,
                message: "the guest's callback map_pages has no memory for frames "
                    + "\(runs[0]), and there is no copy_pages")
        }
        let result = CallbackGuest.withRanges(runs) { ranges in
            inCallback {
                copy(context.pointer, ranges.baseAddress, ranges.count, destination)
            }
        }
        guard result == 0 else { throw failure("copy_pages", Int(result)) }
    }

    /// The same of runs some of which have no memory in this process.
    private func copyEach(
        _ runs: Span<PageRange>, to destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        var offset = 0
        for index in runs.indices {
            let run = runs[index]
            let place = UnsafeMutableRawBufferPointer(
                rebasing: destination[offset..<offset + run.byteCount])
            if let memory = try map(run) {
                place.copyMemory(from: UnsafeRawBufferPointer(memory))
            } else {
                try copy([run].span, to: place.baseAddress)
            }
            offset += run.byteCount
        }
    }

    /// The memory of a run; nil if it has none in this process.
    private func map(_ run: PageRange) throws(GuestError) -> UnsafeMutableRawBufferPointer? {
        guard let map = table.map_pages else { return nil }
        var memory: UnsafeMutableRawPointer?
        try call("map_pages") {
            map(context.pointer, run.first.rawValue, UInt64(run.count), &memory)
        }
        return memory.map { UnsafeMutableRawBufferPointer(start: $0, count: run.byteCount) }
    }

    /// Calls `body` with runs as the interface has them, in memory of the stack.
    private static func withRanges(
        _ runs: Span<PageRange>, _ body: (UnsafeBufferPointer<varve_range>) -> Int32
    ) -> Int32 {
        withUnsafeTemporaryAllocation(of: varve_range.self, capacity: runs.count) { ranges in
            for index in runs.indices {
                ranges.initializeElement(
                    at: index,
                    to: varve_range(
                        first: runs[index].first.rawValue, count: UInt64(runs[index].count)))
            }
            return body(UnsafeBufferPointer(ranges))
        }
    }

    func captureState() throws(GuestError) -> GuestState {
        guard let save = table.save_state else { return .empty }
        var bytes: UnsafeRawPointer?
        var count = 0
        try call("save_state") { save(context.pointer, &bytes, &count) }
        guard count >= 0, count == 0 || bytes != nil else {
            throw GuestError(
                code: .unavailable,
                message: "the guest's callback save_state returned \(count) bytes and no memory")
        }
        return MachineState.make(Array(UnsafeRawBufferPointer(start: bytes, count: count)))
    }

    // MARK: - WritableGuest

    private static let readOnly = GuestError(
        code: .unsupported,
        message: "the guest cannot be written: it has neither write_pages nor map_pages")

    func checkState(_ state: GuestState) throws(GuestError) {
        guard table.write_pages != nil || table.map_pages != nil else {
            throw CallbackGuest.readOnly
        }
        let bytes = try MachineState.bytes(of: state)
        guard bytes.isEmpty || table.restore_state != nil else {
            throw GuestError(
                code: .stateRejected,
                message: "the checkpoint has \(counted(bytes.count, "byte")) of state, and the "
                    + "guest has no restore_state")
        }
    }

    func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        let mine = try self.layout()
        guard layout == mine else {
            throw GuestError(
                code: .sizeMismatch,
                message: "the checkpoint has \(counted(layout.pageCount, "page")) in "
                    + "\(counted(layout.runs.count, "run")), but the guest has \(mine.pageCount) "
                    + "in \(mine.runs.count)")
        }
    }

    func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError) {
        guard let write = table.write_pages else { return try writeMapped(runs, from: source) }
        let result = source.withUnsafeBytes { bytes in
            CallbackGuest.withRanges(runs) { ranges in
                inCallback {
                    write(context.pointer, ranges.baseAddress, ranges.count, bytes.baseAddress)
                }
            }
        }
        guard result == 0 else { throw failure("write_pages", Int(result)) }
    }

    private func writeMapped(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError) {
        guard table.map_pages != nil else { throw CallbackGuest.readOnly }
        try source.withUnsafeBytes { (bytes) throws(GuestError) in
            var offset = 0
            for index in runs.indices {
                let run = runs[index]
                guard let memory = try map(run) else {
                    throw GuestError(
                        code: .unavailable,
                        message: "the guest's callback map_pages has no memory for frames \(run), "
                            + "and there is no write_pages")
                }
                let end = offset + run.byteCount
                memory.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[offset..<end]))
                offset = end
            }
        }
    }

    /// Nil also if the callback fails: `writePages`, which is called then, calls it again.
    func mappedMemory(of range: PageRange) -> UnsafeMutableRawBufferPointer? {
        guard table.write_pages == nil else { return nil }
        return try? map(range)
    }

    func restoreState(_ state: GuestState) throws(GuestError) {
        let bytes = try MachineState.bytes(of: state)
        guard let restore = table.restore_state else { return }
        let result = bytes.withUnsafeBytes { bytes in
            inCallback { restore(context.pointer, bytes.baseAddress, bytes.count) }
        }
        guard result == 0 else { throw failure("restore_state", Int(result)) }
    }
}

extension CallbackGuest: DirtyTracking {
    func start() throws(GuestError) -> DirtyLog {
        // A take needs to know how many frames there are.
        _ = try layout()
        if let start = table.start_dirty {
            try call("start_dirty") { start(context.pointer) }
        }
        return state.withLock { state in
            let log = DirtyLog()
            state.log = log
            return log
        }
    }

    func isRunning(_ log: DirtyLog) -> Bool { state.withLock { $0.log == log } }

    func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        guard let take = table.take_dirty, isRunning(log) else { return .unknown }
        // Out of the lock: the callback may call back in.
        var words = state.withLock { state in
            defer { state.words = [] }
            let count = Int((state.frameEnd + 63) / 64)
            guard state.words.count == count else { return [UInt64](repeating: 0, count: count) }
            return state.words
        }
        defer {
            for index in words.indices { words[index] = 0 }
            state.withLock { [words] in $0.words = words }
        }
        let result = words.withUnsafeMutableBufferPointer { words in
            inCallback {
                take(context.pointer, words.baseAddress, words.count, isFinal ? 1 : 0)
            }
        }
        guard result == 0 || result == Int32(VARVE_DIRTY_UNKNOWN) else {
            throw failure("take_dirty", Int(result))
        }
        #if _endian(big)
            for index in words.indices { words[index] = words[index].littleEndian }
        #endif
        bitmap.formUnion(words: words.span)
        return result == 0 ? .complete : .unknown
    }

    func peekDirtyCount(_ log: DirtyLog) throws(GuestError) -> Int {
        guard let count = table.count_dirty else { return 0 }
        let result = inCallback { count(context.pointer) }
        guard result >= 0 else { throw failure("count_dirty", Int(result)) }
        return Int(result)
    }

    func stop(_ log: DirtyLog) {
        let wasRunning = state.withLock { state in
            defer { if state.log == log { state.log = nil } }
            return state.log == log
        }
        guard wasRunning, let stop = table.stop_dirty else { return }
        _ = inCallback { stop(context.pointer) }
    }
}
