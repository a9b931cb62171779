import Glibc
import GuestModel

@testable import XenGuest

// What Xen, xenstored and the back ends of dom0 do in a revert with devices, and what they require.

extension FakeXen {
    func shutDown(_ domain: UInt32, _ reason: ShutdownReason) throws(GuestError) {
        try onDomain("shutDown", domain) { domain, _ in
            if domain.facts.shutdown == nil { domain.facts.shutdown = reason }
            domain.requested = nil
            domain.isHalted = true
        }
    }

    func resumeStopped(_ domain: UInt32) throws(GuestError) {
        try onDomain("resumeStopped", domain) { domain, violations in
            if !domain.isHalted {
                violations.append("a guest that has suspended itself finds its event channels")
            }
            domain.facts.shutdown = nil
            domain.isHalted = false
        }
    }

    func softReset(_ domain: UInt32) throws(GuestError) {
        try call("softReset", domain) { (state) throws(GuestError) in
            guard var found = state.domains[domain] else {
                throw FakeXen.failure("softReset", domain, ESRCH)
            }
            guard found.facts.isHVM, found.facts.shutdown != nil, found.pauseCount > 0 else {
                throw FakeXen.failure("softReset", domain, EINVAL)
            }
            if found.grants.dropFirst(2).contains(where: \.isMapped) {
                state.violations.append("a reset while a back end has memory mapped")
            }
            if state.backStates(domain).contains(where: { $0 != "6" }) {
                state.violations.append("a reset while a back end is not closed")
            }
            found.facts.shutdown = nil
            found.isHalted = false
            found.reset = FakeDomain.Reset()
            // Where shared_info was.
            found.populateAfterReset()
            state.domains[domain] = found
        }
    }

    func grantVersion(_ domain: UInt32) throws(GuestError) -> Int {
        try onDomain("grantVersion", domain) { domain, _ in domain.grantVersion }
    }

    func resetGrantTable(
        _ domain: UInt32, consoleFrame: UInt64, storeFrame: UInt64
    ) throws(GuestError) {
        try onDomain("resetGrantTable", domain) { domain, violations in
            if domain.reset == nil { violations.append("grants are emptied before the reset") }
            domain.grants = [
                GrantEntry(flags: 1, frame: consoleFrame), GrantEntry(flags: 1, frame: storeFrame),
            ]
            domain.reset?.hasGrants = true
        }
    }

    func allocateChannel(_ domain: UInt32) throws(GuestError) -> UInt32 {
        try onDomain("allocateChannel", domain) { domain, violations in
            if domain.reset == nil { violations.append("a channel is made before the reset") }
            domain.reset?.channelCount += 1
            return UInt32(domain.reset?.channelCount ?? 0)
        }
    }

    func setHVMParameter(
        _ domain: UInt32, _ index: UInt32, _ value: UInt64
    ) throws(GuestError) {
        try onDomain("setHVMParameter", domain) { domain, _ in domain.parameters[index] = value }
    }

    func introduce(_ domain: UInt32, frame: UInt64, port: UInt32) throws(GuestError) {
        try onDomain("introduce", domain) { domain, violations in
            if domain.parameters[1] != frame || domain.parameters[2] != UInt64(port) {
                violations.append("xenstored has another ring or port than the guest")
            }
            domain.reset?.isIntroduced = true
        }
    }
}

extension FakeXen.State {
    /// A network interface as libxl writes it.
    mutating func addInterface(_ domain: UInt32, backend: UInt32 = 0) {
        let back = "/local/domain/\(backend)/backend/vif/\(domain)/0"
        let front = "/local/domain/\(domain)/device/vif/0"
        for (key, value) in [("state", "4"), ("online", "1"), ("frontend", front)] {
            store["\(back)/\(key)"] = value
        }
        store["\(front)/backend"] = back
        store["\(front)/state"] = "4"
    }

    private static let kinds = ["vbd", "vif"]

    fileprivate func backStates(_ domain: UInt32) -> [String] {
        backs(domain).compactMap { store["\($0)/state"] }
    }

    private func backs(_ domain: UInt32) -> [String] {
        let roots = FakeXen.State.kinds.map { "/local/domain/0/backend/\($0)/\(domain)/" }
        return store.keys.filter { key in
            key.hasSuffix("/state") && roots.contains { key.hasPrefix($0) }
        }.map { String($0.dropLast("/state".count)) }
    }

    /// The back end's answer to a front end's state, if a path is one.
    mutating func answerFrontEnd(_ path: String, _ value: String) {
        let words = path.split(separator: "/").map(String.init)
        guard words.count == 7, words[3] == "device", words[6] == "state",
            FakeXen.State.kinds.contains(words[4]), let number = UInt32(words[2]),
            var domain = domains.removeValue(forKey: number)
        else { return }
        defer { domains[number] = domain }
        let back = "/local/domain/0/backend/\(words[4])/\(number)/\(words[5])/state"
        guard let now = store[back] else { return }
        switch value {
        case "6":
            store[back] = "6"
            domain.closeCount += 1
            // blkback says so even if requests are under way, and tries again.
            guard domain.closeCount > domain.closesNeeded else { return }
            for index in domain.grants.indices where domain.grants[index].isMapped {
                if domain.grants[index].isWritten { domain.markDirty(domain.grants[index].frame) }
                domain.grants[index] = GrantEntry(flags: 1, frame: domain.grants[index].frame)
            }
        case "1": if now == "6" { store[back] = "2" }
        default: break
        }
    }

    /// What the guest finds when it runs after a reset, and does.
    mutating func awake(_ domain: inout FakeDomain) {
        guard let reset = domain.reset, domain.isRunning else { return }
        domain.reset = nil
        domain.closeCount = 0
        let rings = [domain.parameters[1], domain.parameters[17]].compactMap { $0 }
        if !reset.hasGrants { violations.append("it runs with the grants of another time") }
        if !reset.isIntroduced { violations.append("it runs without xenstored") }
        if !reset.hasContext { violations.append("it runs with processors of another time") }
        if reset.channelCount < 2 || domain.parameters[18] == nil {
            violations.append("it runs without event channels")
        }
        for frame in rings where domain.bytes(frame)?.contains(where: { $0 != 0 }) ?? false {
            violations.append("the ring \(frame) is not empty")
        }
        if store["/local/domain/\(domain.number)/control/shutdown"] != "" {
            violations.append("it is asked to suspend itself at once")
        }
        if backStates(domain.number).contains(where: { $0 != "2" }) {
            violations.append("a back end does not wait for the guest")
        }
        domain.releaseAfterReset()
        domain.still = domain.copy
        guard domain.connects else { return }
        for back in backs(domain.number) { store["\(back)/state"] = "4" }
    }
}

extension FakeDomain {
    /// What a domain that was reset has got again.
    struct Reset {
        var hasGrants = false
        var isIntroduced = false
        var hasContext = false
        var channelCount = 0
    }

    /// The frame of shared_info, which is no page before the reset.
    private static let sharedInfo: UInt64 = 3000

    mutating func populateAfterReset() { populate(FakeDomain.sharedInfo) }
    mutating func releaseAfterReset() { release(FakeDomain.sharedInfo) }
}
