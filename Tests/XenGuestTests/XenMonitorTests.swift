import Foundation
import Glibc
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import XenGuest

/// What is done when a domain ends.
@Suite struct XenMonitorTests {
    private let number = Scene.number
    private let xen = FakeXen()
    private let libxl = FakeLifecycle()
    private let home = TemporaryDirectory()

    init() {
        xen.add(FakeDomain(number, frames: [0..<10], seed: 1))
        libxl.started = { [xen] domain in
            xen.add(FakeDomain(domain, frames: [0..<10], seed: UInt64(domain)))
        }
        libxl.destroyed = { [xen] domain in
            xen.with { state in
                state.domains[domain] = nil
                state.store = state.store.filter { !$0.key.hasPrefix("/local/domain/\(domain)/") }
            }
        }
    }

    /// libxl's calls, noted; each fails as often as it is told to.
    private final class FakeLifecycle: LifecycleCalls {
        struct State {
            var trace: [String] = []
            var failures: [String: Int] = [:]
            var next: UInt32 = 40
        }
        let state = Mutex(State())
        nonisolated(unsafe) var started: (UInt32) -> Void = { _ in }
        nonisolated(unsafe) var destroyed: (UInt32) -> Void = { _ in }

        var trace: [String] { state.withLock { $0.trace } }

        private func call(_ name: String, _ text: String) throws(GuestError) {
            let fails = state.withLock { state in
                let left = state.failures[name] ?? 0
                if left > 0 { state.failures[name] = left - 1 }
                state.trace.append(left > 0 ? "\(text) fails" : text)
                return left > 0
            }
            if fails { throw GuestError(code: .callFailed, message: "libxl_\(name) failed") }
        }

        func destroy(_ domain: UInt32) throws(GuestError) {
            try call("destroy", "destroy \(domain)")
            destroyed(domain)
        }
        func dumpCore(of domain: UInt32, to path: String) throws(GuestError) {
            try call("dump", "dump \(domain) \(path)")
        }
        func preserve(
            _ domain: UInt32, _ configuration: [UInt8], suffix: String
        ) throws(GuestError) {
            #expect(suffix.wholeMatch(of: /-\d{8}T\d{4}Z/) != nil, "\(suffix)")
            try call("preserve", "preserve \(domain)")
        }
        func start(_ configuration: [UInt8]) throws(GuestError) -> UInt32 {
            try call("start", "start \(String(decoding: configuration, as: UTF8.self).count)")
            let domain = state.withLock { state in
                state.next += 1
                return state.next
            }
            started(domain)
            return domain
        }
        func softReset(_ domain: UInt32, _ configuration: [UInt8]) throws(GuestError) {
            try call("reset", "reset \(domain)")
        }
    }

    private func configure(_ fields: String) {
        xen.with { $0.configuration = Array("{\"c_info\":{\"name\":\"web\"}\(fields)}".utf8) }
    }

    private var xl: XLMonitor {
        XLMonitor(
            processDirectory: home.path.appending("proc").string, logDirectory: "/var/log/xen")
    }

    /// Runs the monitor; `steps` are taken one by one, each time that it waits.
    private func monitor(
        _ steps: [() -> Void]
    ) throws -> (end: XenMonitor.End, reports: [String]) {
        let steps = Steps(steps)
        xen.with { [xen] state in
            state.duringWait = {
                // After the last one the domain goes, whatever its ID is now.
                if !steps.next() { xen.with { $0.domains = [:] } }
            }
        }
        var reports: [String] = []
        let monitor = DomainMonitor(
            calls: xen, lifecycle: libxl, xl: xl, patience: .zero, report: { reports.append($0) })
        let end = try monitor.run(number, ready: {})
        return (end, reports)
    }

    private final class Steps: Sendable {
        nonisolated(unsafe) private var left: [() -> Void]
        init(_ steps: [() -> Void]) { left = steps }
        func next() -> Bool {
            guard !left.isEmpty else { return false }
            left.removeFirst()()
            return true
        }
    }

    private func stop(_ reason: ShutdownReason?, of domain: UInt32? = nil, cpuTime: UInt64 = 7) {
        xen.with(domain ?? number) { domain in
            domain.facts.shutdown = reason
            domain.facts.cpuTime = cpuTime
        }
    }

    @Test func eachActionIsWhatXLDoes() throws {
        let reasons: [(ShutdownReason, String)] = [
            (.powerOff, "on_poweroff"), (.reboot, "on_reboot"), (.crash, "on_crash"),
            (.watchdog, "on_watchdog"), (.softReset, "on_soft_reset"),
        ]
        for (reason, field) in reasons {
            for action in EndAction.allCases.map(\.rawValue) + ["coredump-restart", "", "dance"] {
                let scene = XenMonitorTests()
                // Another field says something else.
                let other = field == "on_crash" ? "on_reboot" : "on_crash"
                scene.configure(
                    action.isEmpty ? "" : ",\"\(other)\":\"preserve\",\"\(field)\":\"\(action)\"")
                let text = String(decoding: scene.xen.with { $0.configuration }, as: UTF8.self)
                let (end, reports) = try scene.monitor([{ scene.stop(reason) }, {}, {}])
                let number = scene.number
                let start = "start \(text.count)"
                let dump = "dump \(number) /var/lib/xen/dump/guest\(number)"
                let expected: [String] =
                    switch action {
                    case "destroy", "": ["destroy \(number)"]
                    case "restart": ["destroy \(number)", start]
                    case "rename_restart": ["preserve \(number)", start]
                    case "coredump_destroy": [dump, "destroy \(number)"]
                    case "coredump_restart", "coredump-restart": [dump, "destroy \(number)", start]
                    case "soft_reset": ["reset \(number)"]
                    default: []
                    }
                #expect(scene.libxl.trace == expected, "\(field) = \(action)")
                #expect(end == .gone && !reports.isEmpty, "\(field) = \(action): \(reports)")
            }
        }
    }

    @Test func aSuspensionIsNoEnd() throws {
        configure(",\"on_poweroff\":\"destroy\"")
        let (end, reports) = try monitor([
            { stop(.suspend) }, {}, { stop(nil) }, { stop(.suspend) }, { stop(nil) },
        ])
        #expect(end == .gone && reports.isEmpty && libxl.trace.isEmpty)
    }

    /// It is not the same end if it ran in between, as after a revert.
    @Test func aPreservedDomainMayEndAgain() throws {
        configure(",\"on_crash\":\"preserve\",\"on_poweroff\":\"destroy\"")
        let (_, reports) = try monitor([
            { stop(.crash) }, {}, {}, { stop(.crash, cpuTime: 9) }, { stop(nil) },
            { stop(.powerOff, cpuTime: 10) },
        ])
        #expect(reports.count == 3)
        #expect(libxl.trace == ["destroy \(number)"])
    }

    @Test func theDomainThatWasStartedAgainIsMonitored() throws {
        configure(",\"on_reboot\":\"restart\"")
        let lock = xen.lockDirectory
        let (end, reports) = try monitor([
            { stop(.reboot) },
            {
                #expect(throws: GuestError.self) {
                    try DomainLock(of: 41, as: .monitor, in: lock)
                }
                stop(.reboot, of: 41)
            }, { stop(.powerOff, of: 42) },
        ])
        let length = xen.with { $0.configuration.count }
        #expect(
            libxl.trace == [
                "destroy \(number)", "start \(length)", "destroy 41", "start \(length)",
                "destroy 42",
            ])
        #expect(end == .gone && reports.count == 3)
        #expect(reports[0].contains("was started again as domain 41"), "\(reports)")
        #expect(throws: Never.self) { try DomainLock(of: 42, as: .monitor, in: lock) }
    }

    @Test func failedCallsAreTriedAgainAndTold() throws {
        configure(",\"on_crash\":\"coredump_restart\"")
        libxl.state.withLock { $0.failures = ["dump": 1, "destroy": 2, "start": 4] }
        let (_, reports) = try monitor([{ stop(.crash) }, {}])
        #expect(libxl.trace.filter { !$0.hasSuffix("fails") }.count == 2, "all but the dump")
        #expect(reports.contains { $0.contains("could not be dumped") })
        #expect(reports.count { $0.contains("tried again") } == 6)

        let scene = XenMonitorTests()
        scene.configure(",\"on_crash\":\"restart\"")
        scene.libxl.state.withLock { $0.failures = ["start": 5] }
        #expect(failure { _ = try scene.monitor([{ scene.stop(.crash) }]) }?.code == .callFailed)
        // Xen's own calls, too.
        for count in 0..<20 {
            let scene = XenMonitorTests()
            scene.configure(",\"on_reboot\":\"restart\"")
            let (end, _) = try scene.monitor([
                {
                    scene.stop(.reboot)
                    scene.xen.failCall(count, errno: EIO)
                }
            ])
            scene.xen.failCall(nil)
            #expect(end == .gone && scene.libxl.trace.count == 2, "call \(count)")
        }
    }

    @Test func oneProcessMonitorsADomain() throws {
        let lock = try DomainLock(of: number, as: .monitor, in: xen.lockDirectory)
        #expect(try monitor([{ Issue.record("it waits") }]).end == .alreadyMonitored)
        // The checkpointer's lock is another one.
        let owner = try DomainLock(of: number, in: xen.lockDirectory)
        withExtendedLifetime((lock, owner)) {}
        let gone = failure {
            _ = try DomainMonitor(
                calls: xen, lifecycle: libxl, report: { _ in }
            ).run(99, ready: {})
        }
        #expect(gone?.code == .gone)
    }

    // MARK: - xl's own process

    private func addProcess(_ process: Int, named name: String, log: String) throws {
        let folder = home.path.appending("proc/\(process)/fd").string
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: true)
        try "\(name)\n".write(
            toFile: home.path.appending("proc/\(process)/comm").string, atomically: false,
            encoding: .utf8)
        symlink("socket:[7]", "\(folder)/3")
        symlink(log, "\(folder)/4")
    }

    @Test func xlsProcessIsTheOneWithTheLog() throws {
        #expect(xl.process(ofDomainNamed: "web") == nil)
        try addProcess(7, named: "less", log: "/var/log/xen/xl-web.log")
        try addProcess(8, named: "xl", log: "/var/log/xen/xl-web2.log")
        try addProcess(9, named: "xl", log: "/var/log/xen/xl-web.log.1")
        #expect(xl.process(ofDomainNamed: "web") == nil)
        try addProcess(10, named: "xl", log: "/var/log/xen/xl-web.log")
        #expect(xl.process(ofDomainNamed: "web") == 10)
        #expect(xl.process(ofDomainNamed: "web2") == 8)
        #expect(XLMonitor().process(ofDomainNamed: "no domain has this name") == nil)
    }

    @Test func whatXLDoesIsLeftToIt() throws {
        configure("")
        try addProcess(10, named: "xl", log: "/var/log/xen/xl-guest\(number).log")
        let process = home.path.appending("proc/10").string
        let (_, reports) = try monitor([
            { stop(.powerOff) }, {}, { try? FileManager.default.removeItem(atPath: process) },
        ])
        // It was killed: the monitor does it.
        #expect(libxl.trace == ["destroy \(number)"] && reports.count == 1)
    }

    @Test func aMonitorIsStartedOnlyInPlaceOfXLs() throws {
        let sign = home.path.appending("sign").string
        let command = ["/bin/sh", "-c", "echo $0 >\(sign); printf +; exec sleep 0"]
        try XenMonitor.takeOver(from: xl, of: number, command, xen)
        #expect(!FileManager.default.fileExists(atPath: sign))
        try addProcess(10, named: "xl", log: "/var/log/xen/xl-guest\(number).log")
        try XenMonitor.takeOver(from: xl, of: number, command, xen)
        #expect(try String(contentsOfFile: sign, encoding: .utf8) == "\(number)\n")
        // One is there already, and one cannot start.
        try XenMonitor.takeOver(from: xl, of: number, ["/bin/true"], xen)
        for command in [["/bin/false"], ["/does/not/exist"]] {
            #expect(failure { try XenMonitor.takeOver(from: xl, of: number, command, xen) } != nil)
        }
    }
}
