import Synchronization
import Varve

/// Domains of this host.
final class XenDomainSource: DomainSource {
    private let configuration: ServiceConfiguration
    private let repository: Repository
    private let journal: ServiceJournal
    private let monitorCommand: [String]
    private let openHost: @Sendable () throws -> XenHost
    private let makeCheckpointer: Begin
    private let host = Mutex<XenHost?>(nil)

    /// Makes a checkpointer of a domain.
    typealias Begin =
        @Sendable (XenHost.Domain, XenCheckpointer.Options) throws -> XenCheckpointer

    /// - Parameters:
    ///   - monitorCommand: what is started in place of xl's process for a domain's end.
    ///   - host: opens the interfaces of Xen; for tests.
    ///   - checkpointer: makes a checkpointer of a domain; for tests.
    init(
        _ configuration: ServiceConfiguration, in repository: Repository, journal: ServiceJournal,
        monitorCommand: [String],
        host: @escaping @Sendable () throws -> XenHost = { try XenHost() },
        checkpointer: Begin? = nil
    ) {
        openHost = host
        makeCheckpointer =
            checkpointer ?? { domain, options in
                try XenCheckpointer(
                    of: domain, in: repository, lineage: try LineageName(configuration.lineage),
                    options: options)
            }
        self.configuration = configuration
        self.repository = repository
        self.journal = journal
        self.monitorCommand = monitorCommand
    }

    /// Calls Xen; if that fails, the next call opens its interfaces again, because a daemon of
    /// Xen's may have been started again.
    private func calling<T>(_ body: (XenHost) throws -> T) throws -> T {
        let host = try host.withLock { host in
            let open = try host ?? openHost()
            host = open
            return open
        }
        do {
            return try body(host)
        } catch {
            if (error as? GuestError)?.code == .callFailed { self.host.withLock { $0 = nil } }
            throw error
        }
    }

    func find() throws -> ServedDomain? {
        let found = try calling { try $0.domains() }.first {
            // One that is being built or restored is paused. A paused one changes nothing, and
            // could not suspend itself.
            $0.name == configuration.domain
                && ($0.condition == .running || $0.condition == .suspended)
        }
        return found.map {
            ServedDomain(
                name: $0.name, domainID: $0.domainID, uuid: $0.uuid, isPV: $0.kind == .pv)
        }
    }

    func isUp(_ domain: ServedDomain) throws -> Bool {
        let found: XenHost.Domain
        do {
            found = try calling { try $0.domain(named: "\(domain.domainID)") }
        } catch let error as GuestError where error.code == .gone {
            return false
        }
        guard found.domainID == domain.domainID, found.uuid == domain.uuid else { return false }
        switch found.condition {
        case .running, .paused, .suspended: return true
        case .crashed, .shutDown, .dying: return false
        }
    }

    func open(_ domain: ServedDomain) throws -> any DomainCheckpointer {
        let found = try calling { try $0.domain(named: "\(domain.domainID)") }
        guard found.uuid == domain.uuid else {
            throw GuestError(code: .gone, message: "\(domain) is gone")
        }
        let lineage = try LineageName(configuration.lineage)
        let newest = try repository.newest(ofLineage: lineage)
        var remarks: [String] = []
        if let newest, let origin = XenOrigin(try repository.state(of: newest)),
            origin.uuid != domain.uuid
        {
            remarks.append(
                "\(domain) has another UUID than the domain of \(newest.id.short), the newest "
                    + "checkpoint of lineage '\(lineage)'")
        }
        var options = configuration.options { [journal] in journal.log(.warning, $0) }
        options.domain.monitorCommand = monitorCommand
        let checkpointer = try makeCheckpointer(found, options)
        if let note = checkpointer.guardNote { remarks.append(note) }
        if let reason = checkpointer.comparesAllBecause {
            remarks.append("every page is compared each time: \(reason)")
        }
        return XenDomainCheckpointer(checkpointer, remarks, newest?.id.short)
    }
}

/// A checkpointer of the library's.
private final class XenDomainCheckpointer: DomainCheckpointer {
    private let checkpointer: XenCheckpointer
    let remarks: [String]
    let resumesAfter: String?

    init(_ checkpointer: XenCheckpointer, _ remarks: [String], _ resumesAfter: String?) {
        self.checkpointer = checkpointer
        self.remarks = remarks
        self.resumesAfter = resumesAfter
    }

    var failedThinnings: (count: Int, last: String)? {
        checkpointer.retentionReport.flatMap { report in
            report.lastFailure.map { (report.failureCount, $0.message) }
        }
    }

    func run(
        every interval: Duration, until cancellation: Cancellation,
        handler: @escaping @Sendable (ServiceEvent) -> Void
    ) throws {
        try checkpointer.run(CheckpointSchedule(every: interval), cancellation: cancellation) {
            switch $0 {
            case .taken(let taken): handler(.taken(TakenCheckpoint(taken)))
            case .auditMissed(let error): handler(.auditMissed(error.message))
            }
        }
    }

    func close() { checkpointer.close() }
}

extension TakenCheckpoint {
    init(_ taken: XenCheckpointer.Taken) {
        id = "\(taken.checkpoint.id)"
        timeNanoseconds = taken.checkpoint.timeNanoseconds
        dirtyPageCount = taken.dirtyPageCount
        addedByteCount = taken.checkpoint.addedByteCount
        downtime = taken.pauseTimes.downtime
        lateness = taken.lateness
    }
}
