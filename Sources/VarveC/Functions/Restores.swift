public import CVarve
import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import GuestModel

/// See `varve.h`.
@c @implementation
public func varve_restore_regions(
    _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?,
    _ regions: UnsafePointer<varve_region>?, _ count: Int,
    _ options: UnsafePointer<varve_restore_options>?, _ call: UnsafePointer<varve_call>?,
    _ result: UnsafeMutablePointer<varve_restore_result>?,
    _ state: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
    _ stateByteCount: UnsafeMutablePointer<Int>?
) -> Int32 {
    boundary {
        let place = try StatePlace(state, stateByteCount, isOptional: true)
        let restore = try RestoreCall(repository, id, options, call, result)
        let guest = RegionGuest(
            try RegionSet(regions, count: count), startsZeroed: restore.startsZeroed)
        try restore.run(into: .regions(guest))
        try place.put(guest.restoredState)
    }
}

/// See `varve.h`.
@c @implementation
public func varve_restore_callbacks(
    _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?,
    _ callbacks: UnsafePointer<varve_callbacks>?, _ context: UnsafeMutableRawPointer?,
    _ options: UnsafePointer<varve_restore_options>?, _ call: UnsafePointer<varve_call>?,
    _ result: UnsafeMutablePointer<varve_restore_result>?
) -> Int32 {
    boundary {
        let restore = try RestoreCall(repository, id, options, call, result)
        let guest = try CallbackGuest(callbacks, context, startsZeroed: restore.startsZeroed)
        try restore.run(into: .callbacks(guest))
    }
}

/// The arguments that both forms of a restore have.
private struct RestoreCall {
    private let checkpoint: Checkpoint
    private let repository: Repository
    private let volume: String
    let startsZeroed: Bool
    private let control: CallControl
    private let result: UnsafeMutablePointer<varve_restore_result>?

    init(
        _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?,
        _ options: UnsafePointer<varve_restore_options>?, _ call: UnsafePointer<varve_call>?,
        _ result: UnsafeMutablePointer<varve_restore_result>?
    ) throws {
        try varve_restore_result.checkPlace(result, isOptional: true)
        let options = try varve_restore_options.read(options) ?? varve_restore_options()
        volume = try VarveC.volume(options.volume)
        startsZeroed = options.starts_zeroed != 0
        control = try CallControl(call)
        (checkpoint, self.repository) = try VarveC.checkpoint(id, in: repository)
        self.result = result
    }

    func run(into guest: OpenSession.Guest) throws {
        let writable: any WritableGuest =
            switch guest {
            case .regions(let guest): guest
            case .callbacks(let guest): guest
            case .domain: preconditionFailure("a domain is started, not filled")
            }
        let done = try guest.reportingCallbacks {
            try repository.restore(
                checkpoint, volume: volume, into: writable, cancellation: control.cancellation,
                progress: control.progress)
        }.get()
        varve_restore_result.write(result) { result in
            result.written_page_count = UInt64(done.writtenPageCount)
            result.read_byte_count = UInt64(done.bytesRead)
        }
    }
}
