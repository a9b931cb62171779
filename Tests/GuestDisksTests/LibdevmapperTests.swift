import Foundation
import GuestModel
import SystemPackage
import Testing

@testable import GuestDisks

/// The kernel's own device-mapper, as far as any machine has it: the rest needs a thin pool.
@Suite struct LibdevmapperTests {
    @Test func theLibraryAnswersOrTheRemedyIsNamed() throws {
        let calls = LibdevmapperCalls()
        let misc = (try? String(contentsOfFile: "/proc/misc", encoding: .utf8)) ?? ""
        if misc.contains("device-mapper") && getuid() == 0 {
            #expect(try calls.device(named: "varve-does-not-exist") == nil)
            #expect(try calls.device(DeviceNumber(major: 253, minor: 99_999)) == nil)
            try calls.remove(named: "varve-does-not-exist")
        } else {
            let error = #expect(throws: GuestError.self) { try calls.device(named: "x") }
            #expect(error?.code == .unsupported)
            #expect(error?.message.contains("modprobe") == true)
        }
    }

    @Test func pathsAreNumbers() throws {
        let calls = LibdevmapperCalls()
        #expect(try calls.number(of: "/dev/null") == nil)
        #expect(throws: GuestError.self) { try calls.number(of: "/dev/none") }
        guard FileManager.default.fileExists(atPath: "/dev/loop0") else { return }
        #expect(try calls.number(of: "/dev/loop0") == DeviceNumber(major: 7, minor: 0))
        try calls.withNode(of: DeviceNumber(major: 7, minor: 0), in: "/tmp") { path in
            #expect(path == "/dev/loop0")
        }
    }
}
