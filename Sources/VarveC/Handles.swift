import CVarve
import CheckpointEngine
import CheckpointStore
import GuestModel
import Synchronization

// Handles are numbers in the shape of pointers. The objects are in a table, so a handle that was
// freed is known to be that, whatever its memory would be used for now. Numbers are odd, which no
// pointer to an object is, and are never used twice.

/// The objects that the program has handles of.
enum Handles {
    private struct Table: Sendable {
        var last: UInt = 0
        var objects: [UInt: any AnyObject & Sendable] = [:]
    }

    private static let table = Mutex(Table())

    /// Makes a handle.
    static func add(_ object: some AnyObject & Sendable) throws(Failure) -> OpaquePointer {
        let number = table.withLock { table in
            table.last += 1
            table.objects[table.last << 1 | 1] = object
            return table.last << 1 | 1
        }
        guard let handle = OpaquePointer(bitPattern: number) else {
            throw Failure(VARVE_NO_MEMORY, "there are no numbers left for handles")
        }
        return handle
    }

    /// The object of a handle.
    static func find<T: AnyObject & Sendable>(
        _ handle: OpaquePointer?, _: T.Type = T.self
    ) throws(Failure) -> T {
        let number = UInt(bitPattern: handle)
        guard let object = table.withLock({ $0.objects[number] }) as? T else {
            throw invalid(handle)
        }
        return object
    }

    /// Frees a handle.
    ///
    /// - Returns: its object, of which other threads may still use references.
    @discardableResult
    static func remove<T: AnyObject & Sendable>(
        _ handle: OpaquePointer?, _: T.Type = T.self
    ) throws(Failure) -> T {
        let number = UInt(bitPattern: handle)
        let object = table.withLock { table -> T? in
            guard let object = table.objects[number] as? T else { return nil }
            table.objects[number] = nil
            return object
        }
        guard let object else { throw invalid(handle) }
        return object
    }

    static func invalid(_ handle: OpaquePointer?) -> Failure {
        Failure(
            VARVE_INVALID_HANDLE,
            handle == nil
                ? "the handle is NULL"
                : "the handle was freed, or is not of the kind that this function takes")
    }
}

/// A repository that the program has open.
final class OpenRepository: Sendable {
    private struct State {
        var sessionCount = 0
        var isClosed = false
    }

    let repository: Repository
    private let state = Mutex(State())

    init(_ repository: Repository) {
        self.repository = repository
    }

    /// Counts a session that begins; throws if the repository was closed meanwhile.
    func beginSession() throws(Failure) {
        let isOpen = state.withLock { state in
            if !state.isClosed { state.sessionCount += 1 }
            return !state.isClosed
        }
        guard isOpen else { throw Failure(VARVE_INVALID_HANDLE, "the repository was closed") }
    }

    func endSession() {
        state.withLock { $0.sessionCount -= 1 }
    }

    /// Allows no session any more; throws if one is open.
    func end() throws(Failure) {
        let count = state.withLock { state in
            if state.sessionCount == 0 { state.isClosed = true }
            return state.sessionCount
        }
        guard count == 0 else {
            throw Failure(
                VARVE_BUSY, "\(counted(count, "session")) of the repository must be closed first")
        }
    }
}

/// A plan that the program has.
final class OpenPlan: Sendable {
    let plan: PrunePlan

    init(_ plan: PrunePlan) {
        self.plan = plan
    }
}

/// A reader that the program has open: one read at a time.
final class OpenReader: Sendable {
    private let reader: Mutex<VolumeReader>

    init(_ reader: sending VolumeReader) {
        self.reader = Mutex(reader)
    }

    func read(at offset: UInt64, into bytes: UnsafeMutableRawBufferPointer) throws(CheckpointError)
    {
        nonisolated(unsafe) let bytes = bytes
        try reader.withLock { (reader) throws(CheckpointError) in
            var span = bytes.mutableBytes
            try reader.readBytes(at: offset, into: &span)
        }
    }

    /// The frames that are not zero.
    func extents() -> [PageRange] { reader.withLock { $0.contentRuns } }
}

/// How a call is watched and ended early.
struct CallControl {
    let cancellation: Cancellation?
    let progress: ProgressHandler?

    /// The caller's; without either for NULL.
    init(_ call: UnsafePointer<varve_call>?) throws(Failure) {
        guard let call = try varve_call.read(call) else {
            (cancellation, progress) = (nil, nil)
            return
        }
        cancellation = call.cancellation == nil ? nil : try Handles.find(call.cancellation)
        guard let report = call.progress else {
            progress = nil
            return
        }
        let context = CallerContext(call.context)
        progress = { progress in
            let result = progress.phase.name.withCString { name in
                var structure = varve_progress(progress, name)
                return inCallback { report(context.pointer, &structure) }
            }
            guard result == 0 else {
                throw Failure(VARVE_CANCELLED, "the progress callback returned \(result)")
            }
        }
    }
}

extension varve_progress {
    fileprivate init(_ progress: Progress, _ phase: UnsafePointer<CChar>) {
        self.init()
        size = MemoryLayout<varve_progress>.stride
        self.phase = phase
        let unit =
            switch progress.unit {
            case .pages: VARVE_PAGES
            case .bytes: VARVE_BYTES
            case .packs: VARVE_PACKS
            case .checkpoints: VARVE_CHECKPOINTS
            }
        self.unit = Int32(unit.rawValue)
        done = UInt64(progress.done)
        total = UInt64(progress.total ?? 0)
        has_total = progress.total == nil ? 0 : 1
    }
}

/// A pointer of the program's that is passed to its callbacks.
struct CallerContext: @unchecked Sendable {
    // Unchecked: the program is responsible for what its callbacks do with it.
    let pointer: UnsafeMutableRawPointer?

    init(_ pointer: UnsafeMutableRawPointer?) {
        self.pointer = pointer
    }
}

/// Calls a callback of the program's: what that may call is limited meanwhile.
func inCallback<T>(_ body: () -> T) -> T {
    cvarve_enter_callback()
    defer { cvarve_leave_callback() }
    return body()
}
