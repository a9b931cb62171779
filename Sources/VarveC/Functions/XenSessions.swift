public import CVarve
import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import GuestModel
import SystemPackage
import Varve

// The functions of varve_xen.h that are about sessions; XenDomains.swift has the others.

extension varve_xen_options: SizedStructure {}
extension varve_xen_domain: SizedStructure {}

/// A command of the caller's, an array of words that ends with NULL; empty for NULL.
private func command(
    _ words: UnsafePointer<UnsafePointer<CChar>?>?, _ name: String
) throws(Failure) -> [String] {
    guard var words else { return [] }
    var command: [String] = []
    while let word = words.pointee {
        command.append(try require(string: word, "a word of \(name)"))
        words += 1
    }
    guard !command.isEmpty else {
        throw Failure(VARVE_INVALID_ARGUMENT, "\(name) has no word; leave it NULL")
    }
    return command
}

/// A duration of the caller's; nil for 0.
private func duration(_ nanoseconds: Int64, _ name: String) throws(Failure) -> Duration? {
    guard nanoseconds >= 0 else { throw invalid(name, nanoseconds) }
    return nanoseconds == 0 ? nil : .nanoseconds(nanoseconds)
}

extension XenDomain.Options {
    fileprivate init(_ given: varve_xen_options) throws(Failure) {
        self.init()
        switch given.pause {
        case Int32(VARVE_XEN_SUSPEND.rawValue): pauseMode = .suspend
        case Int32(VARVE_XEN_PAUSE.rawValue): pauseMode = .pause
        default: throw invalid("pause", given.pause)
        }
        if let time = try duration(
            given.suspend_timeout_nanoseconds, "suspend_timeout_nanoseconds")
        {
            suspendTimeout = time
        }
        if let time = try duration(
            given.revert_suspend_timeout_nanoseconds, "revert_suspend_timeout_nanoseconds")
        {
            revertSuspendTimeout = time
        }
        if let time = try duration(given.device_timeout_nanoseconds, "device_timeout_nanoseconds") {
            deviceTimeout = time
        }
        comparesAll = given.compares_all != 0
        takesLogOver = given.takes_log_over != 0
        finishesRevert = given.finishes_revert != 0
        let guardWords = try command(given.guard_command, "guard_command")
        guardCommand = guardWords.isEmpty ? nil : guardWords
        let monitorWords = try command(given.monitor_command, "monitor_command")
        monitorCommand = monitorWords.isEmpty ? nil : monitorWords
        lockDirectory = try optional(string: given.lock_directory, "lock_directory")
    }
}

extension XenDiskOptions {
    fileprivate init(_ given: varve_xen_options) throws(Failure) {
        self.init()
        command = try VarveC.command(given.disk_command, "disk_command")
        guardCommand = try VarveC.command(given.disk_guard_command, "disk_guard_command")
        if let path = try optional(path: given.disk_state_directory, "disk_state_directory") {
            stateDirectory = path
        }
        if let time = try duration(given.disk_settle_nanoseconds, "disk_settle_nanoseconds") {
            settleTime = time
        }
        guard let notice = given.notice else { return }
        let context = CallerContext(given.context)
        thin.notice = { sentence in
            sentence.withCString { text in inCallback { notice(context.pointer, text) } }
        }
    }
}

extension XenCheckpointer.Options {
    fileprivate init(
        _ given: varve_session_options, _ xen: varve_xen_options
    ) throws(Failure) {
        self.init()
        domain = try XenDomain.Options(xen)
        capture = try CaptureOptions(given)
        guard given.files == nil else {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "a domain's disks are those of its configuration; leave `files` NULL")
        }
        disks = try XenDiskOptions(xen)
        // Whether disks are omitted then is seen by what the domain has.
        if capture.omitsDisks { disks.selection = .none }
        capture.omitsDisks = false
    }
}

/// See `varve_xen.h`.
@c @implementation
public func varve_session_open_xen(
    _ repository: OpaquePointer?, _ lineage: UnsafePointer<CChar>?, _ domainID: UInt32,
    _ options: UnsafePointer<varve_session_options>?,
    _ xenOptions: UnsafePointer<varve_xen_options>?,
    _ session: UnsafeMutablePointer<OpaquePointer?>?
) -> Int32 {
    boundary {
        let place = try require(session, "the place for the session")
        place.pointee = nil
        let lineage = try LineageName(try require(string: lineage, "the lineage"))
        let owner = try Handles.find(repository, OpenRepository.self)
        let given = try varve_session_options.read(options) ?? varve_session_options()
        let xen = try varve_xen_options.read(xenOptions) ?? varve_xen_options()
        let settings = try XenCheckpointer.Options(given, xen)
        let finish = try command(xen.finish_command, "finish_command")
        let parent =
            given.parent == nil
            ? nil : try owner.repository.checkpoint(id: try CheckpointID(given.parent))
        let domain = try DomainGuest.find(domainID, on: try XenHost())
        guard domain.kind != .pv else {
            throw Failure(
                VARVE_UNSUPPORTED,
                "domain \(domainID) is a PV domain, of which this library takes no checkpoints; "
                    + "use 'varve xen checkpoint', or PVH")
        }
        place.pointee = try Handles.add(
            try OpenSession(in: owner) {
                let checkpointer = try DomainGuest.namingTheMissing {
                    try XenCheckpointer(
                        of: domain, in: owner.repository, lineage: lineage, parent: parent,
                        options: settings)
                }
                return DomainGuest(domainID, checkpointer, finishCommand: finish)
            })
    }
}

/// See `varve_xen.h`.
@c @implementation
public func varve_xen_show(
    _ session: OpaquePointer?, _ place: UnsafeMutablePointer<varve_xen_domain>?
) -> Int32 {
    boundary {
        try varve_xen_domain.checkPlace(place)
        guard case .domain(let found) = try Handles.find(session, OpenSession.self).guest else {
            throw Failure(VARVE_INVALID_ARGUMENT, "the session is not one over a Xen domain")
        }
        varve_xen_domain.write(place) { domain in
            domain.domain_id = found.domainID
            domain.stands_still = found.checkpointer.standsStill ? 1 : 0
            CallerMemory.copy(
                found.checkpointer.comparesAllBecause ?? "", into: &domain.compares_all_because)
            CallerMemory.copy(found.checkpointer.guardNote ?? "", into: &domain.guard_note)
        }
    }
}
