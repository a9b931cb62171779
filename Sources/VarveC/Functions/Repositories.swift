public import CVarve
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Glibc
import GuestModel
import PackStore
import SystemPackage

// The functions of varve.h. `@c @implementation` has the compiler compare each with its declaration
// there, so the two cannot differ; the header has their documentation.

/// See `varve.h`.
@c @implementation
public func varve_free(_ memory: UnsafeMutableRawPointer?) {
    free(memory)
}

// MARK: - Cancellation

/// See `varve.h`.
@c @implementation
public func varve_cancellation_create(
    _ cancellation: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(cancellation, "the place for the cancellation")
        place.pointee = nil
        place.pointee = try Handles.add(Cancellation())
    }
}

/// See `varve.h`.
@c @implementation
public func varve_cancellation_cancel(_ cancellation: OpaquePointer?) -> Int32 {
    boundaryInCallbacks { try Handles.find(cancellation, Cancellation.self).cancel() }
}

/// See `varve.h`.
@c @implementation
public func varve_cancellation_free(_ cancellation: OpaquePointer?) -> Int32 {
    boundary { try Handles.remove(cancellation, Cancellation.self) }
}

// MARK: - Opening and closing

/// See `varve.h`.
@c @implementation
public func varve_repository_create(
    _ path: UnsafePointer<CChar>?, _ repository: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(repository, "the place for the repository")
        place.pointee = nil
        let path = try filePath(path, "the path")
        place.pointee = try Handles.add(OpenRepository(try Repository.create(at: path)))
    }
}

/// See `varve.h`.
@c @implementation
public func varve_repository_create_volatile(
    _ parent: UnsafePointer<CChar>?, _ repository: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(repository, "the place for the repository")
        place.pointee = nil
        let created =
            if parent == nil {
                try Repository.createVolatile()
            } else {
                try Repository.createVolatile(in: try filePath(parent, "the path"))
            }
        place.pointee = try Handles.add(OpenRepository(created))
    }
}

/// See `varve.h`.
@c @implementation
public func varve_repository_open(
    _ path: UnsafePointer<CChar>?, _ options: UnsafePointer<varve_open_options>?,
    _ repository: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(repository, "the place for the repository")
        place.pointee = nil
        let path = try filePath(path, "the path")
        let options = try varve_open_options.read(options) ?? varve_open_options()
        let access: Repository.Access =
            switch options.access {
            case Int32(VARVE_READING.rawValue): .reading
            case Int32(VARVE_WRITING.rawValue): .writing
            default: throw invalid("access", options.access)
            }
        let waiting = try lockWaiting(options.wait_nanoseconds)
        let cancellation: Cancellation? =
            options.cancellation == nil ? nil : try Handles.find(options.cancellation)
        let opened = try Repository.open(
            at: path, access, waiting: waiting, cancellation: cancellation)
        place.pointee = try Handles.add(OpenRepository(opened))
    }
}

/// See `varve.h`.
@c @implementation
public func varve_repository_close(_ repository: OpaquePointer?) -> Int32 {
    boundary {
        try Handles.find(repository, OpenRepository.self).end()
        // Of two threads that close it, one gets it.
        try Handles.remove(repository, OpenRepository.self).repository.close()
    }
}

/// A path of the caller's; throws for NULL and for an empty one.
func filePath(_ path: UnsafePointer<CChar>?, _ name: String) throws(Failure) -> FilePath {
    guard let path else { throw Failure(VARVE_INVALID_ARGUMENT, "\(name) is NULL") }
    let result = FilePath(platformString: path)
    guard !result.isEmpty else { throw Failure(VARVE_INVALID_ARGUMENT, "\(name) is empty") }
    return result
}

/// A path of the caller's; nil for NULL.
func optional(
    path: UnsafePointer<CChar>?, _ name: String
) throws(Failure) -> FilePath? { path == nil ? nil : try filePath(path, name) }

/// How long to wait for another writer; -1: without limit.
func lockWaiting(_ nanoseconds: Int64) throws(Failure) -> LockWaiting {
    guard nanoseconds >= -1 else { throw invalid("wait_nanoseconds", nanoseconds) }
    return LockWaiting(atMost: nanoseconds < 0 ? nil : .nanoseconds(nanoseconds))
}

/// The failure for an option whose value is not one of the interface's.
func invalid(_ name: String, _ value: some BinaryInteger) -> Failure {
    Failure(VARVE_INVALID_ARGUMENT, "\(name) is \(value), which varve.h does not allow")
}

// MARK: - Upkeep

/// See `varve.h`.
@c @implementation
public func varve_repository_statistics(
    _ repository: OpaquePointer?, _ statistics: UnsafeMutablePointer<varve_statistics>?
) -> Int32 {
    boundary {
        try varve_statistics.checkPlace(statistics)
        let found = try Handles.find(repository, OpenRepository.self).repository.statistics()
        varve_statistics.write(statistics) { statistics in
            statistics.checkpoint_count = UInt64(found.checkpointCount)
            statistics.page_count = UInt64(found.pageCount)
            statistics.zero_page_count = UInt64(found.zeroPageCount)
            statistics.unique_page_count = UInt64(found.uniquePageCount)
            statistics.changed_page_count = UInt64(found.changedPageCount)
            statistics.logical_byte_count = UInt64(found.logicalByteCount)
            statistics.byte_count = UInt64(found.byteCount)
            statistics.metadata_byte_count = UInt64(max(0, found.metadataByteCount))
            statistics.abandoned_byte_count = UInt64(found.abandonedByteCount)
        }
    }
}

/// See `varve.h`.
@c @implementation
public func varve_repository_verify(
    _ repository: OpaquePointer?, _ options: UnsafePointer<varve_verify_options>?,
    _ call: UnsafePointer<varve_call>?, _ report: UnsafeMutablePointer<varve_verify_report>?
) -> Int32 {
    boundary {
        try varve_verify_report.checkPlace(report)
        let options = try varve_verify_options.read(options) ?? varve_verify_options()
        let control = try CallControl(call)
        let depth: VerifyDepth =
            switch options.depth {
            case Int32(VARVE_DEPTH_FULL.rawValue): .full
            case Int32(VARVE_DEPTH_STRUCTURE.rawValue): .structure
            case Int32(VARVE_DEPTH_SAMPLE.rawValue):
                .sample(share: options.share, seed: options.seed)
            default: throw invalid("depth", options.depth)
            }
        let found = try Handles.find(repository, OpenRepository.self).repository.verify(
            depth, cancellation: control.cancellation, progress: control.progress)
        for finding in found.findings { pass(finding, options) }
        varve_verify_report.write(report) { report in
            report.checkpoint_count = UInt64(found.checkpointCount)
            report.pack_count = UInt64(found.packCount)
            report.byte_count = UInt64(found.byteCount)
            report.page_count = UInt64(found.pageCount)
            report.abandoned_byte_count = UInt64(found.abandonedByteCount)
            report.finding_count = UInt64(found.findings.count)
            report.affected_checkpoint_count = UInt64(found.affectedCheckpoints.count)
        }
    }
}

/// Passes a damaged place to the program.
private func pass(_ finding: VerifyFinding, _ options: varve_verify_options) {
    guard let callback = options.finding else { return }
    let affected = finding.affectedCheckpoints.map { varve_id($0) }
    finding.corruption.withStructure { corruption in
        var corruption = corruption
        affected.withUnsafeBufferPointer { affected in
            inCallback {
                callback(options.context, &corruption, affected.baseAddress, affected.count)
            }
        }
    }
}

/// See `varve.h`.
@c @implementation
public func varve_repository_forget(
    _ repository: OpaquePointer?, _ ids: UnsafePointer<varve_id>?, _ count: Int
) -> Int32 {
    boundary {
        guard count >= 0, count == 0 || ids != nil else {
            throw Failure(VARVE_INVALID_ARGUMENT, "the array of ids is NULL")
        }
        var all: [CheckpointID] = []
        for index in 0..<count { all.append(try CheckpointID(ids.map { $0 + index })) }
        try Handles.find(repository, OpenRepository.self).repository.forget(all)
    }
}

/// See `varve.h`.
@c @implementation
public func varve_prune_plan(
    _ repository: OpaquePointer?, _ options: UnsafePointer<varve_prune_options>?,
    _ call: UnsafePointer<varve_call>?, _ plan: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(plan, "the place for the plan")
        place.pointee = nil
        let control = try CallControl(call)
        let options = try varve_prune_options.read(options).map {
            PruneOptions(unusedPercentMax: $0.unused_percent_max)
        }
        let found = try Handles.find(repository, OpenRepository.self).repository.planPrune(
            options ?? PruneOptions(), cancellation: control.cancellation)
        place.pointee = try Handles.add(OpenPlan(found))
    }
}

/// See `varve.h`.
@c @implementation
public func varve_plan_show(
    _ plan: OpaquePointer?, _ info: UnsafeMutablePointer<varve_prune_info>?
) -> Int32 {
    boundary {
        try varve_prune_info.checkPlace(info)
        write(try Handles.find(plan, OpenPlan.self).plan, to: info)
    }
}

/// See `varve.h`.
@c @implementation
public func varve_plan_execute(
    _ plan: OpaquePointer?, _ call: UnsafePointer<varve_call>?,
    _ done: UnsafeMutablePointer<varve_prune_info>?
) -> Int32 {
    boundary {
        try varve_prune_info.checkPlace(done, isOptional: true)
        let control = try CallControl(call)
        let result = try Handles.find(plan, OpenPlan.self).plan.execute(
            cancellation: control.cancellation, progress: control.progress)
        write(result, to: done)
    }
}

/// See `varve.h`.
@c @implementation
public func varve_plan_free(_ plan: OpaquePointer?) -> Int32 {
    boundary { try Handles.remove(plan, OpenPlan.self) }
}

private func write(_ plan: PrunePlan, to info: UnsafeMutablePointer<varve_prune_info>?) {
    varve_prune_info.write(info) { info in
        info.byte_count = UInt64(plan.byteCount)
        info.freed_byte_count = UInt64(max(0, plan.freedByteCount))
        info.copied_byte_count = UInt64(max(0, plan.copiedByteCount))
        info.unused_byte_count = UInt64(max(0, plan.unusedByteCount))
        info.leased_byte_count = UInt64(max(0, plan.leasedByteCount))
        info.dead_page_count = UInt64(plan.deadPageCount)
        info.removed_pack_count = UInt64(plan.packs.count { $0.fate == .removed })
        info.rewritten_pack_count = UInt64(plan.packs.count { $0.fate == .rewritten })
    }
}
