import Glibc
import GuestModel
import Testing
import XenStream

@testable import XenGuest

/// The facts of a host and its domains.
@Suite struct XenHostTests {
    private func make() -> (FakeXen, XenHost) {
        let xen = FakeXen()
        xen.add(FakeDomain(3, frames: [0..<10], seed: 1))
        xen.add(FakeDomain(5, frames: [0..<20], seed: 2, isHVM: false))
        return (xen, XenHost(calls: xen))
    }

    @Test func allDomainsButDomainZeroAreListed() throws {
        let (_, host) = make()
        let domains = try host.domains()
        #expect(domains.map(\.domainID) == [3, 5])
        #expect(domains.map(\.name) == ["guest3", "guest5"])
        #expect(domains.map(\.kind) == [.hvm, .pv])
        #expect(domains.map(\.pageCount) == [10, 20])
        #expect(domains.allSatisfy { $0.condition == .running && $0.uuid.count == 16 })
    }

    @Test func aDomainIsFoundByNumberAndByName() throws {
        let (xen, host) = make()
        #expect(try host.domain(named: "5").name == "guest5")
        #expect(try host.domain(named: "guest3").domainID == 3)
        // A name of digits is found too, if no domain has it as its ID.
        xen.with { $0.store["/local/domain/3/name"] = "42" }
        #expect(try host.domain(named: "42").domainID == 3)
        let error = failure { _ = try host.domain(named: "web") }
        #expect(error?.code == .gone && error?.message.contains("42, guest5") == true)
        #expect(failure { _ = try host.domain(named: "0") }?.code == .gone)
        xen.with { $0.domains = [:] }
        #expect(
            failure { _ = try host.domain(named: "web") }?.message.contains("only dom0") == true)
    }

    @Test func whatADomainIsDoingIsTold() throws {
        let (xen, host) = make()
        func condition(
            _ change: (inout FakeDomain) -> Void
        ) throws -> XenHost.Domain.Condition {
            xen.add(FakeDomain(3, frames: [0..<10], seed: 1))
            xen.with(3) { change(&$0) }
            return try host.domain(named: "3").condition
        }
        #expect(try condition { $0.pauseCount = 1 } == .paused)
        #expect(try condition { $0.facts.shutdown = .suspend } == .suspended)
        #expect(try condition { $0.facts.shutdown = .crash } == .crashed)
        #expect(try condition { $0.facts.shutdown = .reboot } == .shutDown)
        #expect(try condition { $0.facts.isDying = true } == .dying)
    }

    @Test func findingsOfAHostNameItsVersion() throws {
        let (_, host) = make()
        let findings = try host.findings()
        #expect(findings.map(\.grade) == [.good, .good])
        #expect(findings[0].text == "Xen 4.17" && findings[1].text.contains("3 domains"))
    }

    @Test func findingsOfADomainSayWhatItLacks() throws {
        let (xen, host) = make()
        func grades(_ number: String) throws -> [String: XenHost.Finding.Grade] {
            let findings = try host.findings(of: host.domain(named: number))
            return Dictionary(uniqueKeysWithValues: findings.map { ($0.subject, $0.grade) })
        }
        var found = try grades("3")
        // There is no process of xl's here.
        #expect(found.removeValue(forKey: "monitor") == .limited)
        #expect(Set(found.values) == [.good] && found.count == 4)
        let lock = try DomainLock(of: 3, as: .monitor, in: xen.lockDirectory)
        #expect(try grades("3")["monitor"] == .good)
        withExtendedLifetime(lock) {}
        xen.with { state in
            state.store["/local/domain/3/control/feature-suspend"] = nil
            state.store["/local/domain/3/device/vbd/51712/state"] = "4"
            state.store["/local/domain/3/device/pci/0/state"] = "4"
            state.store["/local/domain/0/device-model/3/state"] = "running"
        }
        found = try grades("3")
        #expect(found["suspend"] == .limited && found["devices"] == .limited)
        #expect(found["log-dirty"] == .limited && found["kind"] == .missing)
        found = try grades("5")
        #expect(found["kind"] == .limited && found["log-dirty"] == .good)
        xen.with(5) { $0.log.enableErrno = EOPNOTSUPP }
        found = try grades("5")
        #expect(found["log-dirty"] == .limited, "no shadow paging")
    }

    @Test func aDeviceDirectoryWithoutDevicesIsNoDevice() throws {
        let (xen, _) = make()
        xen.with { $0.store["/local/domain/3/device/vif"] = "" }
        #expect(try XenDomain.backends(of: 3, xen) == [])
        xen.with { $0.store["/local/domain/3/device/vif/0/state"] = "4" }
        #expect(try XenDomain.backends(of: 3, xen) == ["vif"])
    }
}
