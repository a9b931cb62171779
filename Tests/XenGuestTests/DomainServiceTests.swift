import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport
import XenStream

@testable import Varve
@testable import XenGuest
@testable import varve_cli

/// The service of the command line tool, with domains of a simulated hypervisor, and a repository.
@Suite struct DomainServiceTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private let xen = FakeXen()
    private let lines = Monitor<[String]>([])

    /// Adds a running domain with the service's name.
    private func add(_ number: UInt32) {
        xen.add(FakeDomain(number, frames: [0..<90], seed: UInt64(number)))
        xen.with { $0.store["/local/domain/\(number)/name"] = "web" }
    }

    /// A service on a thread of its own.
    private final class Service: Sendable {
        let metrics: ServiceMetrics
        let source: XenDomainSource
        private let stop = Cancellation()
        private let end = Monitor<Result<Void, any Error>?>(nil)

        init(
            _ configuration: ServiceConfiguration, _ repository: Repository, _ xen: FakeXen,
            _ print: @escaping @Sendable (String) -> Void
        ) throws {
            let journal = ServiceJournal(environment: { _ in nil }, print: print)
            metrics = ServiceMetrics(ofDomain: "web", path: nil, journal: journal)
            source = XenDomainSource(
                configuration, in: repository, journal: journal, monitorCommand: [],
                host: { XenHost(calls: xen) },
                checkpointer: { domain, options in
                    var options = options
                    options.domain.guardCommand = nil
                    options.domain.monitorCommand = nil
                    return try XenCheckpointer(
                        of: try XenDomain(domain.domainID, calls: xen, options: options.domain),
                        in: repository, lineage: try LineageName(configuration.lineage),
                        options: options)
                })
            var times = CheckpointService.Times(
                interval: configuration.interval, patience: .seconds(60))
            times.poll = .milliseconds(5)
            times.pauses = RetryPauses(first: .milliseconds(1), longest: .milliseconds(10))
            let service = CheckpointService(
                configuration, of: source, times: times, journal: journal,
                notifier: ServiceNotifier(environment: { _ in nil }), metrics: metrics, stop: stop)
            _ = try Threads.Thread { [end] in
                let result = Result { try service.run() }
                end.change { $0 = result }
            }
        }

        func ended() -> Result<Void, any Error>? { end.wait(atMost: .seconds(30)) { $0 } }

        func stopped() -> Bool {
            stop.cancel()
            if case .success? = ended() { return true }
            return false
        }
    }

    private func make(
        _ repository: Repository, every interval: Duration,
        _ change: (inout ServiceConfiguration) -> Void = { _ in }
    ) throws -> Service {
        var configuration = ServiceConfiguration(domain: "web")
        configuration.interval = interval
        change(&configuration)
        return try Service(configuration, repository, xen) { [lines] line in
            lines.change { $0.append(line) }
        }
    }

    private func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
        let end = ContinuousClock.now + .seconds(30)
        while try !condition() {
            if ContinuousClock.now > end { return false }
            WallClock.sleep(milliseconds: 2)
        }
        return true
    }

    /// One lineage through a crash, the next domain of the name, and a restart of the service.
    @Test func aLineageOutlivesDomainsAndServices() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        func count() throws -> Int { try repository.checkpoints().count }
        // At rest between two events: each domain has one checkpoint.
        let first = try make(repository, every: .seconds(3600))
        add(7)
        #expect(try eventually { try count() == 1 })
        xen.with(7) { $0.facts.shutdown = .crash }
        #expect(eventually { first.metrics.text.contains("varve_domain_up{domain=\"web\"} 0\n") })
        WallClock.sleep(milliseconds: 30)
        // What is left of the crashed domain is not taken for one that runs.
        #expect(try first.source.find() == nil)
        #expect(try count() == 1)
        add(8)
        #expect(try eventually { try count() == 2 })
        #expect(first.stopped())
        #expect(xen.complaints(8, isLogOn: false) == [])
        // After a restart.
        let second = try make(repository, every: .milliseconds(1))
        #expect(try eventually { try count() >= 8 })
        #expect(second.stopped())
        #expect(xen.complaints(8, isLogOn: false) == [])
        #expect(!first.metrics.text.contains("varve_failures_total"))
        #expect(!second.metrics.text.contains("varve_failures_total"))
        let all = try repository.checkpoints(lineage: "web")
        #expect(all.count == (try count()))
        for (before, after) in zip(all, all.dropFirst()) { #expect(after.parent == before.id) }
        // The newest has all of the domain's memory as it was when it was resumed from that.
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(try #require(all.last), into: restored)
        #expect(restored.with { $0.pages } == xen.with(8) { $0.still.pages })
        let told = lines.read { $0 }
        #expect(told.contains { $0.contains("domain web (7) has ended; lineage 'web' goes on") })
        #expect(
            told.contains { $0.contains("domain web (8) has another UUID than the domain of ") })
        #expect(
            told.contains { $0.contains("resumes lineage 'web' after \(all[1].id.short): all mem") }
        )
        #expect(try repository.verify().isClean)
    }

    /// A guest that does not suspend itself in time goes on, and is asked again.
    @Test func aGuestThatDoesNotSuspendIsAskedAgain() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        add(7)
        xen.with(7) { $0.answer = .never }
        let service = try make(repository, every: .milliseconds(1)) {
            $0.suspendTimeout = .milliseconds(20)
        }
        let series = "varve_failures_total{domain=\"web\",reason=\"timedOut\"} "
        #expect(eventually { service.metrics.text.contains(series + "2\n") })
        xen.with(7) { $0.answer = .suspends(acknowledgedAfter: 1, stillAfter: 2) }
        #expect(try eventually { try repository.checkpoints().count >= 2 })
        #expect(service.stopped())
        #expect(xen.complaints(7, isLogOn: false) == [])
        #expect(try repository.verify().isClean)
    }

    /// Another guest ends the service if the configuration does not accept it.
    @Test func anotherGuestIsRefusedIfTheFileSaysSo() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        add(7)
        let service = try make(repository, every: .seconds(3600)) { $0.acceptsGuestChange = false }
        #expect(try eventually { try repository.checkpoints().count == 1 })
        xen.with { $0.domains = [:] }
        add(8)
        guard case .failure(let error)? = service.ended() else {
            Issue.record("it goes on")
            return
        }
        #expect((error as? ToolError)?.kind == .usage)
        #expect("\(error)".contains("lineage 'web' is another guest's"))
        #expect(xen.complaints(8, isLogOn: false) == [])
        #expect(try repository.checkpoints().count == 1)
    }

    /// A domain that is paused, or that has another name, is not begun with.
    @Test func aDomainIsWaitedForUntilItRuns() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let service = try make(repository, every: .seconds(3600))
        xen.add(FakeDomain(6, frames: [0..<10], seed: 1))
        xen.with { $0.store["/local/domain/6/name"] = "web-old" }
        xen.add(FakeDomain(7, frames: [0..<90], seed: 7))
        xen.with(7) { $0.pauseCount = 1 }
        xen.with { $0.store["/local/domain/7/name"] = "web" }
        #expect(try service.source.find() == nil)
        WallClock.sleep(milliseconds: 30)
        #expect(try repository.checkpoints().isEmpty)
        xen.with(7) { $0.pauseCount = 0 }
        #expect(try service.source.find()?.domainID == 7)
        #expect(try eventually { try repository.checkpoints().count == 1 })
        #expect(service.stopped())
        let domain = ServedDomain(
            name: "web", domainID: 7, uuid: xen.with(7) { $0.facts.handle })
        #expect(try service.source.isUp(domain))
        for reason in [ShutdownReason.powerOff, .reboot, .crash, .watchdog] {
            xen.with(7) { $0.facts.shutdown = reason }
            #expect(try !service.source.isUp(domain))
        }
        xen.with(7) { $0.facts.shutdown = .suspend }
        #expect(try service.source.isUp(domain))
        xen.with(7) { $0.facts.isDying = true }
        #expect(try !service.source.isUp(domain))
        // Its ID is another domain's.
        xen.add(FakeDomain(7, frames: [0..<10], seed: 99))
        #expect(try !service.source.isUp(domain))
    }
}
