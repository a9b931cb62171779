import CheckpointEngine
import GuestModel
import Synchronization
import Varve

@testable import varve_cli

/// Domains that a test starts and ends, and checkpointers that take nothing.
final class SimulatedDomains: DomainSource {
    struct State {
        var domain: ServedDomain?
        /// Failures of the next calls.
        var findFailures: [any Error] = []
        var openFailures: [any Error] = []
        var captureFailures: [any Error] = []
        /// Domains that were taken charge of, in order.
        var opened: [ServedDomain] = []
        /// The number of checkpointers that own a domain.
        var owners = 0
        var ownersMax = 0
        var takenCount = 0
        var closedCount = 0
        var thinningFailure: (count: Int, last: String)?
        var newest: String?
        var nextID: UInt32 = 1
    }

    private let state = Mutex(State())

    /// What happened so far.
    var now: State { state.withLock { $0 } }

    func change(_ body: (inout sending State) -> Void) { state.withLock { body(&$0) } }

    /// Starts the next domain of the name, in the place of the one that is there.
    func start(_ name: String = "web") {
        state.withLock { state in
            state.domain = ServedDomain(
                name: name, domainID: state.nextID, uuid: [UInt8](repeating: 7, count: 16))
            state.nextID += 1
        }
    }

    func end() { state.withLock { $0.domain = nil } }

    func find() throws -> ServedDomain? {
        let (domain, failure) = state.withLock { state in
            (state.domain, state.findFailures.isEmpty ? nil : state.findFailures.removeFirst())
        }
        if let failure { throw failure }
        return domain
    }

    func isUp(_ domain: ServedDomain) throws -> Bool { state.withLock { $0.domain == domain } }

    func open(_ domain: ServedDomain) throws -> any DomainCheckpointer {
        let (newest, failure) = state.withLock { state -> (String?, (any Error)?) in
            if !state.openFailures.isEmpty { return (nil, state.openFailures.removeFirst()) }
            state.opened.append(domain)
            state.owners += 1
            state.ownersMax = max(state.ownersMax, state.owners)
            return (state.newest, nil)
        }
        if let failure { throw failure }
        return Checkpointer(self, domain, newest)
    }

    private final class Checkpointer: DomainCheckpointer {
        private let domains: SimulatedDomains
        private let domain: ServedDomain
        let remarks = ["a remark"]
        let resumesAfter: String?

        init(_ domains: SimulatedDomains, _ domain: ServedDomain, _ resumesAfter: String?) {
            self.domains = domains
            self.domain = domain
            self.resumesAfter = resumesAfter
        }

        deinit { domains.change { $0.owners -= 1 } }

        var failedThinnings: (count: Int, last: String)? { domains.now.thinningFailure }

        func run(
            every interval: Duration, until cancellation: Cancellation,
            handler: @escaping @Sendable (ServiceEvent) -> Void
        ) throws {
            var isFirst = true
            while isFirst || cancellation.sleep(until: .now + interval) {
                isFirst = false
                let (failure, number) = domains.state.withLock { state -> ((any Error)?, Int) in
                    if state.domain != domain {
                        return (GuestError(code: .gone, message: "there is no domain"), 0)
                    }
                    if !state.captureFailures.isEmpty {
                        return (state.captureFailures.removeFirst(), 0)
                    }
                    state.takenCount += 1
                    state.newest = "\(state.takenCount)"
                    return (nil, state.takenCount)
                }
                if let failure { throw failure }
                handler(
                    .taken(
                        TakenCheckpoint(
                            id: "\(number)", timeNanoseconds: Int64(number) * 1_000_000_000,
                            dirtyPageCount: 3, addedByteCount: 100, downtime: .milliseconds(2),
                            lateness: .zero)))
            }
        }

        func close() { domains.change { $0.closedCount += 1 } }
    }
}

/// A service over simulated domains, on a thread of its own.
final class ServiceLife: Sendable {
    let domains = SimulatedDomains()
    let lines = Lines()
    let metrics: ServiceMetrics
    private let stop = Cancellation()
    private let service: CheckpointService
    private let thread: Threads.Thread
    private let result = Monitor<Result<Void, any Error>?>(nil)

    init(
        interval: Duration = .milliseconds(2), pauses: RetryPauses? = nil,
        notifier: ServiceNotifier = ServiceNotifier(environment: { _ in nil }),
        before: (SimulatedDomains) -> Void = { _ in }
    ) throws {
        let journal = ServiceJournal(
            environment: { _ in nil }, print: { [lines] in lines.add($0) })
        metrics = ServiceMetrics(ofDomain: "web", path: nil, journal: journal)
        var times = CheckpointService.Times(interval: interval, patience: .seconds(60))
        times.poll = .milliseconds(5)
        times.pauses =
            pauses ?? RetryPauses(first: .milliseconds(1), longest: .milliseconds(4))
        service = CheckpointService(
            ServiceConfiguration(domain: "web"), of: domains, times: times, journal: journal,
            notifier: notifier, metrics: metrics, stop: stop)
        before(domains)
        thread = try Threads.Thread { [service, result] in
            let end = Result { try service.run() }
            result.change { $0 = end }
        }
    }

    /// Waits, 30 s at most, until something is true.
    func eventually(_ condition: () -> Bool) -> Bool {
        let end = ContinuousClock.now + .seconds(30)
        while !condition() {
            if ContinuousClock.now > end { return false }
            WallClock.sleep(milliseconds: 1)
        }
        return true
    }

    /// Waits until this many more checkpoints were taken.
    func takes(_ count: Int) -> Bool {
        let before = domains.now.takenCount
        return eventually { domains.now.takenCount >= before + count }
    }

    /// Waits for its end; nil if it has not ended after 30 s.
    func end() -> Result<Void, any Error>? {
        result.wait(atMost: .seconds(30)) { $0 }
    }

    /// Stops it as a signal does, and waits for its end.
    func stopped() -> Result<Void, any Error>? {
        stop.cancel()
        return end()
    }

    /// A metric's value, by its line up to the space.
    func value(_ series: String) -> String? {
        metrics.text.split(separator: "\n").first { $0.hasPrefix(series + " ") }
            .map { String($0.dropFirst(series.utf8.count + 1)) }
    }
}
