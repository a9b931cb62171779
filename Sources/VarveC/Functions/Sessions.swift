public import CVarve
import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestDisks
import GuestModel
import PackStore
import Synchronization
import Varve

/// A session that the program has open.
final class OpenSession: Sendable {
    /// Whom it captures.
    enum Guest: Sendable {
        case regions(RegionGuest)
        case callbacks(CallbackGuest)
        case domain(DomainGuest)
    }

    let session: CaptureSession
    let guest: Guest
    private let owner: OpenRepository
    /// Why what a process that died had left beside the files could not be dropped.
    private let leftoverFailure: GuestError?
    /// Held by a call until the guest runs again: what it passed to the guest is for it alone.
    private let turn = Mutex(())

    init(
        _ guest: Guest, in owner: OpenRepository, _ lineage: String,
        _ options: UnsafePointer<varve_session_options>?
    ) throws {
        let given = try varve_session_options.read(options) ?? varve_session_options()
        var settings = try CaptureOptions(given)
        let anyGuest: any GuestModel.Guest
        switch guest {
        case .regions(let guest):
            // The guest is paused all the time, so there is no use in copying before the pause but
            // where the pool is too small for one pause; and then there must be a round for it.
            settings.pauseBudget = .seconds(3600)
            if settings.precopyRoundsMax >= 0 {
                settings.precopyRoundsMax = max(2, settings.precopyRoundsMax)
            }
            anyGuest = guest
        case .callbacks(let guest): anyGuest = guest
        case .domain: preconditionFailure("a domain's session is its checkpointer's")
        }
        let name = try LineageName(lineage)
        // Reverts alone would be possible; a session that cannot capture is a mistake, though.
        _ = try owner.repository.openWriter()
        let files = try FileDisks.make(given.files)
        let disks: (any DiskGroup)? = try guest.disks(besides: files)
        try owner.beginSession()
        do {
            let parent: Checkpoint? =
                given.parent == nil
                ? nil : try owner.repository.checkpoint(id: try CheckpointID(given.parent))
            session = try CaptureSession(
                of: anyGuest, in: owner.repository, lineage: name, parent: parent,
                disks: disks, options: settings)
        } catch {
            owner.endSession()
            throw error
        }
        self.guest = guest
        self.owner = owner
        // The session has taken over the cut that it continues from.
        do throws(GuestError) {
            _ = try files?.dropLeftovers()
            leftoverFailure = nil
        } catch {
            leftoverFailure = error
        }
    }

    /// A session over a domain, which `begin` begins.
    init(in owner: OpenRepository, _ begin: () throws -> DomainGuest) throws {
        _ = try owner.repository.openWriter()
        try owner.beginSession()
        do {
            let domain = try begin()
            guard let session = domain.checkpointer.session else {
                throw Failure(VARVE_UNSUPPORTED, "a PV domain has no session")
            }
            self.session = session
            guest = .domain(domain)
        } catch {
            owner.endSession()
            throw error
        }
        self.owner = owner
        leftoverFailure = nil
    }

    /// Why something of the disks could not be dropped; nil if nothing ever was.
    var diskFailure: Failure? {
        (session.diskReleaseFailure ?? leftoverFailure).map { guest.failure(for: $0) }
    }

    /// Runs what drives the guest.
    ///
    /// A failed callback is told from other failures of a guest.
    func withTurn<T: Sendable>(_ body: (Guest) throws -> T) throws(Failure) -> T {
        try turn.withLock { _ -> Result<T, Failure> in guest.reportingCallbacks { try body(guest) }
        }
        .get()
    }

    /// A checkpoint of the session's repository.
    func checkpoint(_ id: CheckpointID) throws(RepositoryError) -> Checkpoint {
        try owner.repository.checkpoint(id: id)
    }

    fileprivate func revert(
        to checkpoint: Checkpoint, _ control: CallControl
    ) throws -> RevertResult {
        if case .domain(let domain) = guest { return try domain.revert(to: checkpoint, control) }
        return try session.revert(
            to: checkpoint, cancellation: control.cancellation, progress: control.progress)
    }

    func close() {
        session.close()
        owner.endSession()
    }
}

extension OpenSession.Guest {
    /// Runs `body`; if it fails because a callback did, the error says that.
    func reportingCallbacks<T>(_ body: () throws -> T) -> Result<T, Failure> {
        if case .callbacks(let guest) = self { guest.failures.forgetLast() }
        do {
            return .success(try body())
        } catch {
            return .failure(failure(for: error))
        }
    }

    /// The failure for an error of the engine.
    func failure(for error: any Error) -> Failure {
        switch self {
        case .regions, .domain: Failure(error)
        case .callbacks(let guest): guest.failures.failure(for: error)
        }
    }

    /// The guest's disks: the files that a session was given, or the guest's own callbacks.
    func disks(besides files: ReflinkDisks?) throws(Failure) -> (any DiskGroup)? {
        guard case .callbacks(let guest) = self, let own = guest.disks else { return files }
        guard files == nil else {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "the guest has callbacks for disks, and the session files; give one of the two")
        }
        return own
    }
}

extension CaptureOptions {
    init(_ options: varve_session_options) throws(Failure) {
        self.init()
        if options.pool_byte_count > 0 { poolByteCount = Int(clamping: options.pool_byte_count) }
        if options.pause_budget_nanoseconds != 0 {
            pauseBudget = .nanoseconds(options.pause_budget_nanoseconds)
        }
        switch options.precopy_rounds_max {
        case 0: break
        case -1: precopyRoundsMax = 0
        default: precopyRoundsMax = Int(options.precopy_rounds_max)
        }
        if options.overlapping_captures_max != 0 {
            overlappingCapturesMax = Int(options.overlapping_captures_max)
        }
        if options.worker_count != 0 { workerCount = Int(options.worker_count) }
        if options.compression_level != 0 {
            compression = CompressionLevel(rawValue: options.compression_level)
        }
        auditPageCount = Int(options.audit_page_count)
        acceptsGuestChange = options.accepts_guest_change != 0
        omitsDisks = options.omits_disks != 0
        if options.disk_cut_budget_nanoseconds != 0 {
            diskCutBudget = .nanoseconds(options.disk_cut_budget_nanoseconds)
        }
        keepsDiskCut = options.keeps_disk_cut != 0
    }
}

/// See `varve.h`.
@c @implementation
public func varve_session_open_regions(
    _ repository: OpaquePointer?, _ lineage: UnsafePointer<CChar>?,
    _ regions: UnsafePointer<varve_region>?, _ count: Int,
    _ options: UnsafePointer<varve_session_options>?,
    _ session: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(session, "the place for the session")
        place.pointee = nil
        let lineage = try require(string: lineage, "the lineage")
        let owner = try Handles.find(repository, OpenRepository.self)
        let guest = RegionGuest(try RegionSet(regions, count: count))
        place.pointee = try Handles.add(
            try OpenSession(.regions(guest), in: owner, lineage, options))
    }
}

/// See `varve.h`.
@c @implementation
public func varve_session_open_callbacks(
    _ repository: OpaquePointer?, _ lineage: UnsafePointer<CChar>?,
    _ callbacks: UnsafePointer<varve_callbacks>?, _ context: UnsafeMutableRawPointer?,
    _ options: UnsafePointer<varve_session_options>?,
    _ session: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(session, "the place for the session")
        place.pointee = nil
        let lineage = try require(string: lineage, "the lineage")
        let owner = try Handles.find(repository, OpenRepository.self)
        let guest = try CallbackGuest(callbacks, context)
        place.pointee = try Handles.add(
            try OpenSession(.callbacks(guest), in: owner, lineage, options))
    }
}

/// See `varve.h`.
@c @implementation
public func varve_session_parent(
    _ session: OpaquePointer?, _ id: UnsafeMutablePointer<varve_id>?
) -> Int32 {
    boundary {
        let id = try require(id, "the place for the id")
        guard let parent = try Handles.find(session, OpenSession.self).session.parent else {
            throw Failure(VARVE_NOT_FOUND, "the session's lineage has no checkpoint yet")
        }
        id.pointee = varve_id(parent.id)
    }
}

/// See `varve.h`.
@c @implementation
public func varve_session_disk_failure(_ session: OpaquePointer?) -> Int32 {
    boundary {
        if let failure = try Handles.find(session, OpenSession.self).diskFailure { throw failure }
    }
}

/// See `varve.h`.
@c @implementation
public func varve_session_cancel(_ session: OpaquePointer?) -> Int32 {
    boundaryInCallbacks { try Handles.find(session, OpenSession.self).session.cancel() }
}

/// See `varve.h`.
@c @implementation
public func varve_session_close(_ session: OpaquePointer?) -> Int32 {
    boundary { try Handles.remove(session, OpenSession.self).close() }
}

// MARK: - Revert

/// See `varve.h`.
@c @implementation
public func varve_session_revert(
    _ session: OpaquePointer?, _ id: UnsafePointer<varve_id>?,
    _ dirty: UnsafePointer<varve_dirty>?, _ call: UnsafePointer<varve_call>?,
    _ result: UnsafeMutablePointer<varve_revert_result>?,
    _ state: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
    _ stateByteCount: UnsafeMutablePointer<Int>?
) -> Int32 {
    boundary {
        try varve_revert_result.checkPlace(result, isOptional: true)
        let place = try StatePlace(state, stateByteCount, isOptional: true)
        let open = try Handles.find(session, OpenSession.self)
        let control = try CallControl(call)
        let id = try CheckpointID(id)
        let (done, bytes) = try open.withTurn { guest -> (RevertResult, [UInt8]) in
            switch guest {
            case .regions(let guest): try guest.add(dirty)
            case .callbacks, .domain:
                guard dirty == nil, state == nil else { throw CaptureInput.foreign }
            }
            let done = try open.revert(to: try open.checkpoint(id), control)
            guard case .regions(let guest) = guest else { return (done, []) }
            return (done, guest.restoredState)
        }
        try place.put(bytes)
        varve_revert_result.write(result) { result in
            result.written_page_count = UInt64(done.writtenPageCount)
            result.compared_page_count = UInt64(done.comparedPageCount)
            result.request_nanoseconds = done.pauseTimes.request.wholeNanoseconds
            result.downtime_nanoseconds = done.pauseTimes.downtime.wholeNanoseconds
            result.written_block_count = UInt64(done.writtenBlockCount)
        }
    }
}
