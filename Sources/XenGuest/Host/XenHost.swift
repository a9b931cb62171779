public import GuestModel
public import XenStream

/// The host's domains, and what it supports.
public final class XenHost: Sendable {
    let calls: any XenCalls
    let xl: XLMonitor

    /// Opens Xen's interfaces; throws one sentence if this is not dom0, or not root.
    public convenience init() throws(GuestError) {
        self.init(calls: try LibxenCalls())
    }

    package init(calls: any XenCalls) {
        self.calls = calls
        xl = XLMonitor()
    }

    /// The host of a domain that is open.
    package convenience init(of domain: XenDomain) { self.init(calls: domain.calls) }

    /// The host of a domain that is open.
    package convenience init(of domain: XenPVDomain) { self.init(calls: domain.calls) }

    /// A domain in a list.
    public struct Domain: Hashable, Sendable {
        /// What it is doing.
        public enum Condition: String, Sendable {
            case running
            case paused
            case suspended
            case crashed
            case shutDown = "shut down"
            case dying
        }

        /// Its ID.
        public let domainID: UInt32
        /// Its name in xenstore; empty if it has none.
        public let name: String
        /// Its uuid, 16 bytes.
        public let uuid: [UInt8]
        /// PV, or HVM and PVH.
        public let kind: XenGuestKind
        /// The number of its pages.
        public let pageCount: Int
        /// Virtual processors that are online.
        public let vcpuCount: Int
        /// What it is doing.
        public let condition: Condition
    }

    /// Tells a domain that was restored that it is not the one that was saved
    /// (`GuestGeneration`).
    package func renewGeneration(of domain: Domain) throws(GuestError) {
        do throws(GuestError) {
            try GuestGeneration.renew(of: domain.domainID, calls)
        } catch {
            throw GuestError(
                code: error.code,
                message: "domain \(domain.name) was started, but \(error.message): its guest "
                    + "cannot know that it was restored", errno: error.errno)
        }
    }

    /// All domains but domain 0.
    public func domains() throws(GuestError) -> [Domain] {
        var found: [Domain] = []
        for facts in try calls.allFacts() where facts.domain != 0 {
            found.append(try domain(facts))
        }
        return found
    }

    /// The domain with an ID or name.
    public func domain(named text: String) throws(GuestError) -> Domain {
        if let domainID = UInt32(text), let facts = try calls.facts(domainID), domainID != 0 {
            return try domain(facts)
        }
        let all = try domains()
        if let found = all.first(where: { $0.name == text }) { return found }
        throw GuestError(
            code: .gone,
            message: all.isEmpty
                ? "there is no domain '\(text)': only dom0 runs here"
                : "there is no domain '\(text)'; there are "
                    + all.map { $0.name.isEmpty ? "\($0.domainID)" : $0.name }
                    .joined(separator: ", "))
    }

    private func domain(_ facts: DomainFacts) throws(GuestError) -> Domain {
        let name = try calls.read("/local/domain/\(facts.domain)/name") ?? ""
        let condition: Domain.Condition =
            if facts.isDying {
                .dying
            } else if let reason = facts.shutdown {
                reason == .suspend ? .suspended : reason == .crash ? .crashed : .shutDown
            } else {
                facts.isPaused ? .paused : .running
            }
        return Domain(
            domainID: facts.domain, name: name, uuid: facts.handle, kind: facts.isHVM ? .hvm : .pv,
            pageCount: facts.pageCount, vcpuCount: facts.vcpuCount, condition: condition)
    }

    // MARK: - What is possible

    /// One property that was checked.
    public struct Finding: Hashable, Sendable {
        /// How well it works.
        public enum Grade: String, Sendable {
            case good
            /// It works, but slower or with restrictions.
            case limited
            /// It does not work.
            case missing
        }

        /// The property.
        public let subject: String
        /// How well it works.
        public let grade: Grade
        /// The result, and the remedy.
        public let text: String

        package init(subject: String, grade: Grade, text: String) {
            self.subject = subject
            self.grade = grade
            self.text = text
        }
    }

    /// What the host supports.
    public func findings() throws(GuestError) -> [Finding] {
        let version = try version()
        let isTested = XenVersion.tested.contains(version)
        let known = XenVersion.tested.map(\.description).joined(separator: " and ")
        let all = try calls.allFacts()
        return [
            Finding(
                subject: "hypervisor", grade: isTested ? .good : .limited,
                text: "Xen \(version)" + (isTested ? "" : "; Varve is tested with \(known)")),
            Finding(
                subject: "xenstore", grade: .good,
                text: "responds; \(counted(all.count, "domain")), dom0 among them"),
        ]
    }

    /// What a domain supports.
    public func findings(of domain: Domain) throws(GuestError) -> [Finding] {
        let root = "/local/domain/\(domain.domainID)"
        var found: [Finding] = []
        func add(_ subject: String, _ grade: Finding.Grade, _ text: String) {
            found.append(Finding(subject: subject, grade: grade, text: text))
        }
        let hasModel = try !calls.list("/local/domain/0/device-model/\(domain.domainID)").isEmpty
        switch (domain.kind, hasModel) {
        case (.pv, _):
            add(
                "kind", .limited,
                "PV: checkpoints come by libxenguest's stream; no revert in place")
        case (.hvm, false): add("kind", .good, "PVH: read straight from its memory")
        case (.hvm, true):
            add("kind", .missing, "HVM with a device model, which is not supported; use PVH")
        }
        let canSuspend = try calls.read("\(root)/control/feature-suspend") == "1"
        add(
            "suspend", canSuspend ? .good : .limited,
            canSuspend
                ? "the guest announces that it can suspend"
                : "the guest does not announce that it can suspend (no control/feature-suspend); "
                    + "try it, or use --pause")
        let hasPCI = try !calls.list("\(root)/device/pci").isEmpty
        if hasPCI {
            add("log-dirty", .limited, "a PCI device is assigned: every page is compared")
        } else if domain.kind == .pv {
            let (grade, text) = try XenHost.logOfPV(domain.domainID, calls)
            add("log-dirty", grade, text)
        } else {
            add("log-dirty", .good, "no passthrough device prevents it")
        }
        let monitor = XenHost.monitor(of: domain, calls, xl)
        add("monitor", monitor.grade, monitor.text)
        let others = try XenDomain.backends(of: domain.domainID, calls)
        let revert = revertOf(domain, others)
        add("devices", revert.grade, revert.text)
        return found
    }

    /// Which process carries out what the configuration says of the domain's end.
    private static func monitor(
        of domain: Domain, _ calls: any XenCalls, _ xl: XLMonitor
    ) -> (grade: Finding.Grade, text: String) {
        if let process = xl.process(ofDomainNamed: domain.name) {
            return (.good, "xl's process \(process), which ends at the first suspension")
        }
        do throws(GuestError) {
            let lock = try DomainLock(of: domain.domainID, as: .monitor, in: calls.lockDirectory)
            withExtendedLifetime(lock) {}
        } catch {
            return error.code == .busy ? (.good, error.message) : (.limited, error.message)
        }
        return (
            .limited,
            "neither xl nor Varve has a process that carries out on_poweroff, on_reboot and "
                + "on_crash: xl's ends when a domain suspends; 'varve xen monitor "
                + "\(domain.domainID)' is one"
        )
    }

    /// How the devices of a domain go back in a revert.
    private func revertOf(
        _ domain: Domain, _ devices: [String]
    ) -> (grade: Finding.Grade, text: String) {
        let names = devices.joined(separator: ", ")
        guard domain.kind == .hvm else { return (.limited, "a revert replaces the domain") }
        guard !devices.isEmpty else {
            return (.good, "only console and xenstore: revert in place is possible")
        }
        do throws(GuestError) {
            _ = try FrontEnds(of: domain.domainID, calls)
            return (.good, "\(names): they go back with the domain in a revert in place")
        } catch {
            return (.limited, "\(names): a revert replaces the domain: \(error.message)")
        }
    }

    /// Whether the log of a PV domain is available.
    ///
    /// This turns it on and off, so a domain that is being checkpointed is left alone.
    private static func logOfPV(
        _ domainID: UInt32, _ calls: any XenCalls
    ) throws(GuestError) -> (Finding.Grade, String) {
        let logs: Bool
        do throws(GuestError) {
            let lock = try DomainLock(of: domainID, in: calls.lockDirectory)
            logs = try XenPVDomain.logsWrites(domainID, calls)
            withExtendedLifetime(lock) {}
        } catch {
            guard error.code == .busy else { throw error }
            return (.limited, "not checked: \(error.message)")
        }
        guard logs else {
            return (
                .limited,
                "this hypervisor, built without shadow paging, logs no writes of PV domains: all "
                    + "memory is written each time, while the domain is paused"
            )
        }
        return (.good, "this hypervisor logs writes of PV domains")
    }
}
