public import CVarve
import CheckpointEngine
import CheckpointIndex
import GuestModel
import Synchronization

/// A capture that has begun, of which the program has a handle.
final class OpenCapture: Sendable {
    let pending: PendingCapture
    private let guest: OpenSession.Guest
    /// Made when the program asks for it.
    private let event = Mutex<EventDescriptor?>(nil)

    init(_ pending: PendingCapture, of guest: OpenSession.Guest) {
        self.pending = pending
        self.guest = guest
    }

    /// Waits until the capture has ended.
    func wait() throws(Failure) -> CaptureResult { try OpenCapture.wait(pending, guest) }

    /// Waits until a capture has ended: its disks are read after the call that began it.
    static func wait(
        _ pending: PendingCapture, _ guest: OpenSession.Guest
    ) throws(Failure) -> CaptureResult {
        do throws(CheckpointError) {
            return try pending.wait()
        } catch {
            throw guest.failure(for: error)
        }
    }

    /// The descriptor that is readable once the capture has ended.
    func descriptor() throws(Failure) -> Int32 {
        let (event, isNew) = try event.withLock {
            (event) throws(Failure) -> (EventDescriptor, Bool) in
            if let event { return (event, false) }
            let new = try EventDescriptor()
            event = new
            return (new, true)
        }
        // The thread that ends the capture keeps the event until then, whatever is freed meanwhile.
        if isNew { pending.whenEnded { event.signal() } }
        return event.number
    }
}

/// What a program passes to a capture.
struct CaptureInput {
    let label: String?
    let state: [UInt8]
    private let dirty: UnsafePointer<varve_dirty>?

    /// The failure of a call that passes what only sessions over regions take.
    static let foreign = Failure(
        VARVE_INVALID_ARGUMENT,
        "only a session over regions takes dirty pages and a state; leave them NULL")

    init(_ input: UnsafePointer<varve_capture_input>?) throws(Failure) {
        let input = try varve_capture_input.read(input) ?? varve_capture_input()
        label = try optional(string: input.label, "the label")
        guard input.state_byte_count >= 0, input.state_byte_count == 0 || input.state != nil else {
            throw Failure(VARVE_INVALID_ARGUMENT, "the state is NULL")
        }
        state = Array(
            UnsafeRawBufferPointer(start: input.state, count: input.state_byte_count))
        dirty = input.dirty
    }

    /// Passes it to the guest; throws before that if an argument is wrong.
    func apply(to guest: OpenSession.Guest) throws(Failure) {
        switch guest {
        case .regions(let guest):
            try guest.add(dirty)
            guest.save(state)
        case .callbacks, .domain:
            guard dirty == nil, state.isEmpty else { throw CaptureInput.foreign }
        }
    }
}

extension OpenSession {
    fileprivate func begin(
        _ input: CaptureInput, _ control: CallControl
    ) throws -> PendingCapture {
        try withTurn { guest in
            try input.apply(to: guest)
            let label = try input.label.map { (label) in try Label(label) }
            return try session.begin(
                label: label, cancellation: control.cancellation, progress: control.progress)
        }
    }

    /// The second attempt of a capture whose audit found that the log had missed pages: it compares
    /// every page, whatever the log says.
    fileprivate func beginAgain(
        _ input: CaptureInput, _ control: CallControl
    ) throws -> PendingCapture {
        try withTurn { guest in
            if case .regions(let guest) = guest { guest.save(input.state) }
            let label = try input.label.map { (label) in try Label(label) }
            return try session.begin(
                label: label, cancellation: control.cancellation, progress: control.progress)
        }
    }
}

/// See `varve.h`.
@c @implementation
public func varve_session_capture(
    _ session: OpaquePointer?, _ input: UnsafePointer<varve_capture_input>?,
    _ call: UnsafePointer<varve_call>?, _ result: UnsafeMutablePointer<varve_capture_result>?
) -> Int32 {
    boundary {
        try varve_capture_result.checkPlace(result, isOptional: true)
        let open = try Handles.find(session, OpenSession.self)
        let input = try CaptureInput(input)
        let control = try CallControl(call)
        let pending = try open.begin(input, control)
        do {
            write(try pending.wait(), to: result)
        } catch let error as CheckpointError {
            guard let audit = error.audit else { throw open.guest.failure(for: error) }
            let again = try open.beginAgain(input, control)
            write(try OpenCapture.wait(again, open.guest), to: result, audit)
        }
    }
}

/// See `varve.h`.
@c @implementation
public func varve_session_begin(
    _ session: OpaquePointer?, _ input: UnsafePointer<varve_capture_input>?,
    _ call: UnsafePointer<varve_call>?, _ capture: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(capture, "the place for the capture")
        place.pointee = nil
        let open = try Handles.find(session, OpenSession.self)
        let input = try CaptureInput(input)
        let control = try CallControl(call)
        let pending = try open.begin(input, control)
        place.pointee = try Handles.add(OpenCapture(pending, of: open.guest))
    }
}

/// See `varve.h`.
@c @implementation
public func varve_capture_descriptor(
    _ capture: OpaquePointer?, _ descriptor: UnsafeMutablePointer<Int32>?
) -> Int32 {
    boundary {
        let place = try require(descriptor, "the place for the descriptor")
        place.pointee = try Handles.find(capture, OpenCapture.self).descriptor()
    }
}

/// See `varve.h`.
@c @implementation
public func varve_capture_wait(
    _ capture: OpaquePointer?, _ timeout: Int64,
    _ result: UnsafeMutablePointer<varve_capture_result>?
) -> Int32 {
    boundary {
        try varve_capture_result.checkPlace(result, isOptional: true)
        let open = try Handles.find(capture, OpenCapture.self)
        let pending = open.pending
        guard timeout >= -1 else { throw invalid("timeout_nanoseconds", timeout) }
        if timeout >= 0 {
            let time = ContinuousClock.now + .nanoseconds(timeout)
            guard pending.hasEnded(by: time, until: Cancellation()) else {
                throw Failure(VARVE_TIMED_OUT, "the capture has not ended yet")
            }
        }
        write(try open.wait(), to: result)
    }
}

/// See `varve.h`.
@c @implementation
public func varve_capture_cancel(_ capture: OpaquePointer?) -> Int32 {
    boundaryInCallbacks { try Handles.find(capture, OpenCapture.self).pending.cancel() }
}

/// See `varve.h`.
@c @implementation
public func varve_capture_free(_ capture: OpaquePointer?) -> Int32 {
    boundary { try Handles.remove(capture, OpenCapture.self) }
}

private func write(
    _ done: CaptureResult, to place: UnsafeMutablePointer<varve_capture_result>?,
    _ audit: CaptureAudit? = nil
) {
    varve_capture_result.write(place) { result in
        result.id = varve_id(done.checkpoint.id)
        result.dirty_page_count = UInt64(done.dirtyPageCount)
        result.copied_page_count = UInt64(done.copiedPageCount)
        result.paused_page_count = UInt64(done.pausedPageCount)
        result.changed_page_count = UInt64(done.checkpoint.changedPageCount)
        result.stored_page_count = UInt64(done.checkpoint.storedPageCount)
        result.added_byte_count = UInt64(done.checkpoint.addedByteCount)
        result.request_nanoseconds = done.pauseTimes.request.wholeNanoseconds
        result.downtime_nanoseconds = done.pauseTimes.downtime.wholeNanoseconds
        result.missed_page_count = UInt64(audit?.missedPageCount ?? 0)
        result.disk_nanoseconds = (done.diskTimes.drain + done.diskTimes.cut).wholeNanoseconds
    }
}
