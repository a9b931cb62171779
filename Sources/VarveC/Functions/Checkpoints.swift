public import CVarve
import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import GuestModel
import VarveCore

/// See `varve.h`.
@c @implementation
public func varve_checkpoint_list(
    _ repository: OpaquePointer?, _ selection: UnsafePointer<varve_selection>?,
    _ ids: UnsafeMutablePointer<UnsafeMutablePointer<varve_id>?>?,
    _ count: UnsafeMutablePointer<Int>?
) -> Int32 {
    boundary {
        let ids = try require(ids, "the place for the ids")
        let count = try require(count, "the place for their number")
        let selection = try varve_selection.read(selection).map(CheckpointSelection.init)
        let found = try Handles.find(repository, OpenRepository.self).repository.checkpoints(
            selection ?? CheckpointSelection())
        ids.pointee = try CallerMemory.copy(found.map { varve_id($0.id) })
        count.pointee = found.count
    }
}

extension CheckpointSelection {
    fileprivate init(_ selection: varve_selection) throws {
        self.init()
        if let name = try optional(string: selection.lineage, "the lineage") {
            lineage = try LineageName(name)
        }
        if selection.newest > 0 { newest = Int(clamping: selection.newest) }
        if selection.before != nil { before = try CheckpointID(selection.before) }
        since = selection.since?.pointee
        until = selection.until?.pointee
    }
}

/// See `varve.h`.
@c @implementation
public func varve_checkpoint_find(
    _ repository: OpaquePointer?, _ name: UnsafePointer<CChar>?,
    _ id: UnsafeMutablePointer<varve_id>?
) -> Int32 {
    boundary {
        let id = try require(id, "the place for the id")
        let name = try require(string: name, "the name")
        let repository = try Handles.find(repository, OpenRepository.self).repository
        id.pointee = varve_id(try repository.checkpoint(named: name).id)
    }
}

/// A checkpoint by its id.
func checkpoint(
    _ id: UnsafePointer<varve_id>?, in repository: OpaquePointer?
) throws -> (Checkpoint, Repository) {
    let id = try CheckpointID(id)
    let repository = try Handles.find(repository, OpenRepository.self).repository
    return (try repository.checkpoint(id: id), repository)
}

/// The name of a volume; NULL is the memory.
func volume(_ name: UnsafePointer<CChar>?) throws(Failure) -> String {
    try optional(string: name, "the volume") ?? "memory"
}

/// See `varve.h`.
@c @implementation
public func varve_checkpoint_show(
    _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?,
    _ place: UnsafeMutablePointer<varve_checkpoint>?
) -> Int32 {
    boundary {
        try varve_checkpoint.checkPlace(place)
        let (found, _) = try checkpoint(id, in: repository)
        varve_checkpoint.write(place) { checkpoint in
            checkpoint.id = varve_id(found.id)
            if let parent = found.parent {
                checkpoint.parent = varve_id(parent)
                checkpoint.has_parent = 1
            }
            checkpoint.omits_disks = found.omitsDisks ? 1 : 0
            checkpoint.time_nanoseconds = found.timeNanoseconds
            checkpoint.pause_nanoseconds = found.pause.wholeNanoseconds
            checkpoint.page_count = UInt64(found.pageCount)
            checkpoint.zero_page_count = UInt64(found.zeroPageCount)
            checkpoint.changed_page_count = UInt64(found.changedPageCount)
            checkpoint.stored_page_count = UInt64(found.storedPageCount)
            checkpoint.added_byte_count = UInt64(found.addedByteCount)
            checkpoint.volume_count = UInt64(found.volumes.count)
            CallerMemory.copy(found.lineage.text, into: &checkpoint.lineage)
            CallerMemory.copy(found.label?.text ?? "", into: &checkpoint.label)
        }
    }
}

extension Duration {
    /// In nanoseconds, at most what the type holds.
    var wholeNanoseconds: Int64 {
        let (seconds, attoseconds) = components
        let (product, isLarge) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        return isLarge ? .max : product + attoseconds / 1_000_000_000
    }
}

/// See `varve.h`.
@c @implementation
public func varve_checkpoint_volume(
    _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?, _ index: Int,
    _ place: UnsafeMutablePointer<varve_volume>?
) -> Int32 {
    boundary {
        try varve_volume.checkPlace(place)
        let volumes = try checkpoint(id, in: repository).0.volumes
        guard volumes.indices.contains(index) else {
            throw Failure(
                VARVE_NOT_FOUND,
                "the checkpoint has \(counted(volumes.count, "volume")), numbered from 0")
        }
        let found = volumes[index]
        varve_volume.write(place) { volume in
            CallerMemory.copy(found.name, into: &volume.name)
            volume.is_disk = found.isDisk ? 1 : 0
            volume.block_byte_count = Int32(found.blockByteCount)
            volume.byte_count = found.byteCount
            volume.page_count = UInt64(found.pageCount)
            volume.zero_page_count = UInt64(found.zeroPageCount)
            volume.changed_page_count = UInt64(found.changedPageCount)
            withUnsafeMutableBytes(of: &volume.root) { $0.copyBytes(from: found.root.bytes) }
            volume.extent_byte_count =
                found.isDisk
                ? found.byteCount : found.record.frameEnd * UInt64(Page.byteCount)
        }
    }
}

/// See `varve.h`.
@c @implementation
public func varve_checkpoint_state(
    _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?,
    _ state: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
    _ byteCount: UnsafeMutablePointer<Int>?
) -> Int32 {
    boundary {
        let place = try StatePlace(state, byteCount, isOptional: false)
        let (checkpoint, repository) = try checkpoint(id, in: repository)
        try place.put(try MachineState.bytes(of: try repository.state(of: checkpoint)))
    }
}

/// Where a function returns a state.
struct StatePlace {
    private let state: UnsafeMutablePointer<UnsafeMutableRawPointer?>?
    private let byteCount: UnsafeMutablePointer<Int>?

    /// The caller's; both pointers are there, or neither if that is allowed.
    init(
        _ state: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
        _ byteCount: UnsafeMutablePointer<Int>?, isOptional: Bool
    ) throws(Failure) {
        guard (state == nil) == (byteCount == nil), isOptional || state != nil else {
            throw Failure(
                VARVE_INVALID_ARGUMENT, "the place for the state, or for its size, is NULL")
        }
        self.state = state
        self.byteCount = byteCount
    }

    func put(_ bytes: [UInt8]) throws(Failure) {
        guard let state, let byteCount else { return }
        state.pointee = try CallerMemory.copy(bytes).map { UnsafeMutableRawPointer($0) }
        byteCount.pointee = bytes.count
    }
}

/// See `varve.h`.
@c @implementation
public func varve_checkpoint_diff(
    _ repository: OpaquePointer?, _ from: UnsafePointer<varve_id>?, _ to: UnsafePointer<varve_id>?,
    _ name: UnsafePointer<CChar>?,
    _ ranges: UnsafeMutablePointer<UnsafeMutablePointer<varve_range>?>?,
    _ count: UnsafeMutablePointer<Int>?
) -> Int32 {
    boundary {
        let ranges = try require(ranges, "the place for the ranges")
        let count = try require(count, "the place for their number")
        let volume = try volume(name)
        let (first, store) = try checkpoint(from, in: repository)
        let (second, _) = try checkpoint(to, in: repository)
        let found = try store.difference(from: first, to: second, volume: volume)
        ranges.pointee = try CallerMemory.copy(
            found.map { varve_range(first: $0.first.rawValue, count: UInt64($0.count)) })
        count.pointee = found.count
    }
}

/// See `varve.h`.
@c @implementation
public func varve_checkpoint_export(
    _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?, _ name: UnsafePointer<CChar>?,
    _ format: Int32, _ descriptor: Int32, _ call: UnsafePointer<varve_call>?
) -> Int32 {
    boundary {
        let volume = try volume(name)
        let control = try CallControl(call)
        let format: ExportFormat =
            switch format {
            case Int32(VARVE_FORMAT_RAW.rawValue): .raw
            case Int32(VARVE_FORMAT_ELF.rawValue): .elf
            case Int32(VARVE_FORMAT_LIBXC.rawValue): .libxc
            case Int32(VARVE_FORMAT_XL.rawValue): .xl(configuration: nil)
            default: throw invalid("format", format)
            }
        let (checkpoint, store) = try checkpoint(id, in: repository)
        try store.export(
            checkpoint, volume: volume, as: format, cancellation: control.cancellation,
            progress: control.progress
        ) { bytes in
            try bytes.withUnsafeBytes { (bytes) throws(Failure) in
                try Syscalls.write(descriptor, bytes)
            }
        }
    }
}

// MARK: - Readers

/// See `varve.h`.
@c @implementation
public func varve_reader_open(
    _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?, _ name: UnsafePointer<CChar>?,
    _ reader: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(reader, "the place for the reader")
        place.pointee = nil
        let volume = try volume(name)
        let (checkpoint, store) = try checkpoint(id, in: repository)
        let opened = try VolumeReader(checkpoint, from: store, volume: volume)
        place.pointee = try Handles.add(OpenReader(opened))
    }
}

/// See `varve.h`.
@c @implementation
public func varve_reader_read(
    _ reader: OpaquePointer?, _ offset: UInt64, _ bytes: UnsafeMutableRawPointer?,
    _ byteCount: Int
) -> Int32 {
    boundary {
        let reader = try Handles.find(reader, OpenReader.self)
        guard byteCount >= 0, byteCount == 0 || bytes != nil else {
            throw Failure(VARVE_INVALID_ARGUMENT, "the place for the bytes is NULL")
        }
        try reader.read(
            at: offset, into: UnsafeMutableRawBufferPointer(start: bytes, count: byteCount))
    }
}

/// See `varve.h`.
@c @implementation
public func varve_reader_extents(
    _ reader: OpaquePointer?, _ ranges: UnsafeMutablePointer<UnsafeMutablePointer<varve_range>?>?,
    _ count: UnsafeMutablePointer<Int>?
) -> Int32 {
    boundary {
        let ranges = try require(ranges, "the place for the ranges")
        let count = try require(count, "the place for their number")
        let found = try Handles.find(reader, OpenReader.self).extents()
        ranges.pointee = try CallerMemory.copy(
            found.map { varve_range(first: $0.first.rawValue, count: UInt64($0.count)) })
        count.pointee = found.count
    }
}

/// See `varve.h`.
@c @implementation
public func varve_reader_close(_ reader: OpaquePointer?) -> Int32 {
    boundary { try Handles.remove(reader, OpenReader.self) }
}
