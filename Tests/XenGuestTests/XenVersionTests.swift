import CheckpointEngine
import GuestModel
import Testing
import XenStream

@testable import XenGuest

/// State can only be restored by the same version of Xen or a later one.
@Suite struct XenVersionTests {
    private func state(_ major: UInt32, _ minor: UInt32) -> GuestState {
        var live = XenLiveState(
            pauseMode: .suspend, domain: 3, uuid: [UInt8](repeating: 7, count: 16))
        (live.xenMajor, live.xenMinor) = (major, minor)
        return live.guestState
    }

    private func host(_ major: UInt32, _ minor: UInt32) -> XenHost {
        let xen = FakeXen()
        xen.with { $0.version = (major, minor) }
        return XenHost(calls: xen)
    }

    @Test func stateOfTheSameOrAnEarlierVersionIsTaken() throws {
        for (major, minor): (UInt32, UInt32) in [(4, 17), (4, 20), (4, 9), (3, 99)] {
            try host(4, 20).checkVersion(of: state(major, minor))
        }
        try host(5, 0).checkVersion(of: state(4, 20))
    }

    @Test func stateOfALaterVersionIsRefusedInOneSentence() {
        for (major, minor): (UInt32, UInt32) in [(4, 18), (4, 20), (4, .max), (5, 0), (.max, 0)] {
            let error = failure { try host(4, 17).checkVersion(of: state(major, minor)) }
            #expect(error?.code == .stateRejected)
            #expect(error.map { isSentence($0.message) } == true, "\(String(describing: error))")
        }
        // Versions are pairs of numbers: 4.9 is older than 4.17.
        #expect(failure { try host(4, 9).checkVersion(of: state(4, 17)) } != nil)
        let text = failure { try host(4, 17).checkVersion(of: state(4, 20)) }?.message ?? ""
        #expect(text.contains("taken under Xen 4.20, this host runs 4.17"))
        #expect(text.contains("with Xen 4.20 or later"))
    }

    /// A stream that was converted from a legacy one says 0; other state is for xl to check.
    @Test func stateWithoutAVersionIsLeftToXl() throws {
        try host(4, 17).checkVersion(of: state(0, 0))
        try host(4, 17).checkVersion(of: GuestState(records: []))
    }

    @Test func aRevertToALaterVersionsStateIsRefusedAndTheDomainRunsOn() throws {
        let scene = try Scene(90)
        scene.xen.with { $0.version = (4, 20) }
        let checkpoint = try scene.capture().checkpoint
        scene.close()
        scene.xen.with { $0.version = (4, 17) }
        scene.write()
        let session = try scene.open()
        let before = scene.xen.with(Scene.number) { $0.copy.pages }
        let error = failure { _ = try session.revert(to: checkpoint) }
        #expect(error?.code == .stateRejected)
        #expect(error?.message.contains("under Xen 4.20, this host runs 4.17") == true)
        #expect(scene.xen.with(Scene.number) { $0.copy.pages } == before)
        scene.close()
        scene.expectSound(isLogOn: false)
    }

    @Test func theHostsVersionIsGoodIfItIsTested() throws {
        for (version, grade): ((UInt32, UInt32), XenHost.Finding.Grade) in [
            ((4, 17), .good), ((4, 20), .good), ((4, 16), .limited), ((4, 18), .limited),
            ((4, 21), .limited), ((5, 17), .limited),
        ] {
            let finding = try host(version.0, version.1).findings()[0]
            #expect(finding.grade == grade)
            #expect(finding.text.hasPrefix("Xen \(version.0).\(version.1)"))
            let names = finding.text.contains("tested with 4.17 and 4.20")
            #expect(names == (grade == .limited))
        }
    }
}
