import GuestConformance
import GuestModel
import Testing
import VarveTestSupport
import XenStream

@testable import XenGuest

/// Runs the checks for every guest on domains of the simulated hypervisor.
@Suite struct ConformingDomainTests {
    private static func subject(
        _ pauseMode: XenPauseMode, comparesAll: Bool, _ xen: FakeXen,
        _ random: inout SeededGenerator
    ) throws -> ConformanceSubject {
        var guest = FakeDomain(
            Scene.number, frames: [0..<40, 43..<90, 2100..<2106], seed: random.next())
        guest.grants = [GrantEntry(flags: 1 | 1 << 3 | 1 << 4, frame: 3)]
        guest.mappedByXen = [2105]
        xen.add(guest)
        var options = XenDomain.Options()
        options.pauseMode = pauseMode
        options.comparesAll = comparesAll
        let domain = try XenDomain(Scene.number, calls: xen, options: options)
        var subject = ConformanceSubject(
            guest: domain,
            write: { frame, bytes in xen.with(Scene.number) { $0.write(frame.rawValue, bytes) } },
            read: { frame in xen.with(Scene.number) { $0.bytes(frame.rawValue) ?? [] } })
        subject.work = {
            xen.with(Scene.number) { domain in
                guard domain.isRunning,
                    let frame = domain.slots.keys.sorted().randomElement(using: &domain.random)
                else { return }
                domain.write(frame, domain.page())
                domain.context[domain.context.count - 20] &+= 1
            }
        }
        subject.another = {
            try XenDomain(Scene.number, calls: xen, options: XenDomain.Options())
        }
        subject.endLog = { try xen.disableLog(Scene.number) }
        return subject
    }

    @Test(arguments: [XenPauseMode.suspend, .pause], [true, false])
    func aDomainConforms(pauseMode: XenPauseMode, comparesAll: Bool) throws {
        var skipped: Set<ConformanceCheck> = [.mappedMemoryIsTheGuests]
        if comparesAll {
            skipped.formUnion(ConformanceCheck.allCases.filter { 6...20 ~= $0.rawValue })
        }
        for salt in UInt64(0)..<(TestSeed.isLong ? 10 : 1) {
            var random = TestSeed.generator(9700 + salt)
            let xen = FakeXen()
            let report = ConformanceSuite.run(seed: random.next()) {
                try ConformingDomainTests.subject(
                    pauseMode, comparesAll: comparesAll, xen, &random)
            }
            #expect(report.isConforming, "\(report)")
            #expect(Set(report.skipped.map(\.check)) == skipped, "\(report)")
            let complaints = xen.complaints(Scene.number, isLogOn: false)
            #expect(complaints == [], "seed \(report.seed)")
        }
    }
}
