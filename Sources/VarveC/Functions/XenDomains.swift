public import CVarve
import CheckpointIndex
import CheckpointStore
import GuestModel
import SystemPackage
import Varve

extension varve_xen_restore_options: SizedStructure {}

/// See `varve_xen.h`.
@c @implementation
public func varve_xen_find(
    _ name: UnsafePointer<CChar>?, _ domainID: UnsafeMutablePointer<UInt32>?
) -> Int32 {
    boundary {
        let place = try require(domainID, "the place for the domain's ID")
        let name = try require(string: name, "the name")
        let host = try XenHost()
        place.pointee = try DomainGuest.namingTheMissing { try host.domain(named: name).domainID }
    }
}

// MARK: - New domains

extension XenStartOptions {
    /// - Parameter state: the checkpoint's.
    fileprivate init(_ given: varve_xen_restore_options, _ state: () throws -> GuestState) throws {
        self.init()
        name = try optional(string: given.name, "the name")
        isPaused = given.is_paused != 0
        acceptsOmittedDisks = given.accepts_omitted_disks != 0
        if let xl = try optional(string: given.xl, "xl") { self.xl = xl }
        if let bytes = given.configuration {
            guard given.configuration_byte_count > 0 else {
                throw Failure(VARVE_INVALID_ARGUMENT, "the configuration has no bytes")
            }
            configuration = Array(
                UnsafeRawBufferPointer(start: bytes, count: given.configuration_byte_count))
        }
        disks = try XenRestoreDisks(given, state)
    }
}

extension XenRestoreDisks {
    /// Nil if none are given.
    fileprivate init?(
        _ given: varve_xen_restore_options, _ state: () throws -> GuestState
    ) throws {
        func place() throws(Failure) -> FilePath {
            try filePath(given.disks_place, "disks_place")
        }
        switch given.disks {
        case Int32(VARVE_XEN_DISKS_NONE.rawValue): return nil
        case Int32(VARVE_XEN_DISKS_FILES.rawValue): self = .files(in: try place())
        case Int32(VARVE_XEN_DISKS_VOLUMES.rawValue):
            self = .thinVolumes(in: ThinVolumes(in: try place()))
        case Int32(VARVE_XEN_DISKS_SNAPSHOTS.rawValue):
            let pool = ThinVolumes(in: try place())
            guard let origin = XenOrigin(try state()) else {
                throw Failure(
                    VARVE_STATE_REJECTED,
                    "the checkpoint is not one of a running domain, and has no cut of its disks")
            }
            var options = XenDiskOptions()
            if let path = try optional(
                path: given.disk_state_directory, "disk_state_directory")
            {
                options.stateDirectory = path
            }
            let group = try ThinDisks(
                volumes: [], stateDirectory: options.directory(ofDomain: origin.uuid),
                guardCommand: [])
            self = .snapshots(of: group, in: pool)
        case Int32(VARVE_XEN_DISKS_UNCHECKED.rawValue): self = .unchecked
        default: throw invalid("disks", given.disks)
        }
    }
}

/// See `varve_xen.h`.
@c @implementation
public func varve_xen_restore(
    _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?,
    _ options: UnsafePointer<varve_xen_restore_options>?, _ call: UnsafePointer<varve_call>?,
    _ domainID: UnsafeMutablePointer<UInt32>?
) -> Int32 {
    boundary {
        let given = try varve_xen_restore_options.read(options) ?? varve_xen_restore_options()
        let control = try CallControl(call)
        let (checkpoint, store) = try checkpoint(id, in: repository)
        let settings = try XenStartOptions(given) { try store.state(of: checkpoint) }
        let domain = try store.startDomain(
            from: checkpoint, options: settings, cancellation: control.cancellation,
            progress: control.progress)
        domainID?.pointee = domain.domainID
    }
}

// MARK: - Guards

/// Returns a guard's sentence to the caller.
private func put(
    _ sentence: String?, _ place: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
) throws(Failure) {
    guard let place else { return }
    place.pointee = try sentence.flatMap { (text) throws(Failure) in
        try CallerMemory.copy(text.utf8.map { CChar(bitPattern: $0) } + [0])
    }
}

/// See `varve_xen.h`.
@c @implementation
public func varve_xen_run_guard(
    _ domainID: UInt32, _ sentence: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
) -> Int32 {
    boundary {
        sentence?.pointee = nil
        try put(try XenGuard.run(domain: domainID), sentence)
    }
}

/// See `varve_xen.h`.
@c @implementation
public func varve_xen_run_disk_guard(
    _ sentence: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
) -> Int32 {
    boundary {
        sentence?.pointee = nil
        try put(try DiskGuard.run(), sentence)
    }
}
