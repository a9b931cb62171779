import Glibc
import GuestModel
import Synchronization
import SystemPackage
import VarveTestSupport

@testable import XenGuest

/// A simulated hypervisor with its xenstore and libraries.
///
/// It does what Xen does, including the unpleasant cases: a log that is off reads as empty, a frame
/// that the hypervisor writes is named by FINAL alone, a fast resume of a domain that never
/// suspended corrupts it. Forbidden operations are recorded in `violations`.
final class FakeXen: XenCalls {
    struct Mapping {
        let domain: UInt32
        let frames: [UInt64]
        let isWritable: Bool
    }

    struct State {
        var domains: [UInt32: FakeDomain] = [:]
        var store: [String: String] = [:]
        var version: (major: UInt32, minor: UInt32) = (4, 17)
        var mappings: [UInt: Mapping] = [:]
        /// Forbidden operations that were done.
        var violations: [String] = []
        /// The name of each call.
        var trace: [String] = []
        /// Calls until the one that fails, and its error.
        var fault: (callsLeft: Int, errno: Int32)?
        /// Calls until nodes of xenstore vanish, and how their paths begin.
        var removal: (callsLeft: Int, prefixes: [String])?
        /// What happens while an end is waited for.
        var duringWait: (@Sendable () -> Void)?
        /// What libxl knows of each domain.
        var configuration = FakeXen.configuration
        /// The stream that `save` writes, epoch after epoch.
        var epochs: [[UInt8]] = []
    }

    private let state = Mutex(State())
    private let directory = TemporaryDirectory()
    /// The directory of locks, used only with this hypervisor.
    var lockDirectory: String { directory.path.appending("locks").string }

    /// Reads or changes the whole state.
    func with<T: Sendable>(_ body: (inout State) -> T) -> T { state.withLock { body(&$0) } }

    /// Reads or changes a domain.
    func with<T: Sendable>(_ number: UInt32, _ body: (inout FakeDomain) -> T) -> T {
        state.withLock { state in
            guard var domain = state.domains.removeValue(forKey: number) else {
                preconditionFailure("no domain \(number)")
            }
            defer { state.domains[number] = domain }
            return body(&domain)
        }
    }

    /// Adds a domain, with the nodes of a Linux guest.
    func add(_ domain: FakeDomain) {
        state.withLock { state in
            let root = "/local/domain/\(domain.number)"
            state.domains[domain.number] = domain
            state.store["\(root)/name"] = "guest\(domain.number)"
            state.store["\(root)/control/shutdown"] = ""
            state.store["\(root)/control/feature-suspend"] = "1"
            state.store["\(root)/device/console/0/state"] = "4"
        }
    }

    /// Makes the n-th call from now fail, 0 is the next one; nil: none fails.
    func failCall(_ count: Int?, errno: Int32 = 0) {
        state.withLock { $0.fault = count.map { ($0, errno) } }
    }

    /// The number of calls so far that could fail.
    var callCount: Int { state.withLock { $0.trace.count } }

    /// All violations of "the domain runs as before", in words.
    func complaints(_ number: UInt32, isLogOn: Bool? = nil) -> [String] {
        state.withLock { state in
            var found = state.violations
            if !state.mappings.isEmpty { found.append("\(state.mappings.count) mappings are left") }
            guard let domain = state.domains[number] else { return found + ["it is gone"] }
            if domain.pauseCount != 0 { found.append("it is paused") }
            if let reason = domain.facts.shutdown { found.append("it has shut down: \(reason)") }
            if domain.isReleaseDue { found.append("xenstored takes it for suspended") }
            if domain.requested != nil { found.append("it is asked to suspend") }
            if let isLogOn, domain.log.isOn != isLogOn {
                found.append("its log is \(domain.log.isOn ? "on" : "off")")
            }
            return found
        }
    }

    /// The guest suspends now, with or without a request.
    func suspendNow(_ number: UInt32) {
        with(number) { $0.suspendNow() }
    }

    static func failure(_ call: String, _ domain: UInt32, _ errno: Int32) -> GuestError {
        GuestError(
            code: .callFailed,
            message: "\(call) for domain \(domain) failed: \(String(cString: strerror(errno)))",
            errno: errno)
    }

    /// One call: the guests run, then it fails or takes effect.
    func call<T: Sendable>(
        _ name: String, _ domain: UInt32 = 0, failsAfterEffect: Bool = false,
        _ body: (inout State) throws(GuestError) -> T
    ) throws(GuestError) -> T {
        try state.withLock { (state) throws(GuestError) -> T in
            state.tick(isScan: name == "frameTypes" || name == "frameCount" || name == "facts")
            state.trace.append(name)
            state.vanish()
            if let fault = state.fault {
                state.fault = fault.callsLeft == 0 ? nil : (fault.callsLeft - 1, fault.errno)
                if fault.callsLeft == 0 {
                    // EBUSY is returned before any effect.
                    if failsAfterEffect && fault.errno != EBUSY { _ = try body(&state) }
                    throw FakeXen.failure(name, domain, fault.errno)
                }
            }
            return try body(&state)
        }
    }

    /// A call on a domain, which must exist.
    func onDomain<T: Sendable>(
        _ name: String, _ number: UInt32, failsAfterEffect: Bool = false,
        _ body: (inout FakeDomain, inout [String]) throws(GuestError) -> T
    ) throws(GuestError) -> T {
        try call(name, number, failsAfterEffect: failsAfterEffect) { (state) throws(GuestError) in
            guard var domain = state.domains.removeValue(forKey: number) else {
                throw FakeXen.failure(name, number, ESRCH)
            }
            defer { state.domains[number] = domain }
            return try body(&domain, &state.violations)
        }
    }
}

extension FakeXen.State {
    mutating func vanish() {
        guard let (callsLeft, prefixes) = removal else { return }
        removal = callsLeft == 0 ? nil : (callsLeft - 1, prefixes)
        guard callsLeft == 0 else { return }
        store = store.filter { node in !prefixes.contains { node.key.hasPrefix($0) } }
    }

    /// A disk as libxl writes it: its nodes in dom0's part, or a driver domain's, and the guest's.
    mutating func addDisk(
        _ domain: UInt32, _ name: String, kind: String = "vbd", type: String = "phy",
        params: String, mode: String = "w", deviceType: String = "disk", backend: UInt32 = 0
    ) {
        // Of xvda: 202 << 8.
        let device = 51_712 + (Int(name.utf8.last ?? 0) - 97) * 16
        let path = "/local/domain/\(backend)/backend/\(kind)/\(domain)/\(device)"
        let front = "/local/domain/\(domain)/device/vbd/\(device)"
        for (key, value) in [
            ("dev", name), ("type", type), ("params", params), ("mode", mode),
            ("device-type", deviceType), ("state", "4"), ("online", "1"), ("frontend", front),
        ] { store["\(path)/\(key)"] = value }
        store["\(front)/backend"] = path
        store["\(front)/state"] = "4"
    }

    /// Each call takes time, in which guests run and requests are answered.
    mutating func tick(isScan: Bool) {
        for number in domains.keys.sorted() {
            guard var domain = domains.removeValue(forKey: number) else { continue }
            awake(&domain)
            domain.live(isScanned: isScan)
            let node = "/local/domain/\(number)/control/shutdown"
            if let count = domain.requested, domain.isRunning {
                domain.requested = count + 1
                if domain.acknowledges(after: count) { store[node] = "" }
                if domain.finishes(after: count) { domain.requested = nil }
            }
            let isGone = domain.answer == .vanishes && domain.requested == 2
            if !isGone { domains[number] = domain }
        }
    }

    /// A write to xenstore, which a guest may watch.
    mutating func write(_ path: String, _ value: String) {
        store[path] = value
        answerFrontEnd(path, value)
        let words = path.split(separator: "/")
        guard path.hasSuffix("/control/shutdown"), let number = UInt32(words[2]),
            domains[number] != nil
        else { return }
        if value == "suspend" {
            domains[number]?.requested = 0
        } else if value.isEmpty {
            if domains[number]?.answer == .whenWithdrawn { domains[number]?.suspendNow() }
            domains[number]?.requested = nil
        }
    }
}

extension FakeDomain {
    mutating func suspendNow() {
        guard isRunning else { return }
        facts.shutdown = .suspend
        isReleaseDue = true
        requested = nil
    }

    /// True if the guest reads the request now.
    func acknowledges(after count: Int) -> Bool {
        switch answer {
        case .suspends(let after, _): count == after
        case .acknowledgesOnly, .ends: count == 1
        case .never, .whenWithdrawn, .vanishes: false
        }
    }

    /// Performs the guest's action at the end of a request; true if the request is finished.
    mutating func finishes(after count: Int) -> Bool {
        switch answer {
        case .suspends(_, let after) where count >= after: suspendNow()
        case .ends(let reason) where count >= 2: facts.shutdown = reason
        case .acknowledgesOnly where count >= 2: break
        default: return false
        }
        return true
    }
}
