import Synchronization
import Varve

// The life of a service:
//
//   waits for the domain ──▶ takes charge of it ──▶ takes checkpoints ──▶ the domain has ended
//          ▲                          ▲                    │                       │
//          │                          └──── a pause ◀── a failure                  │
//          └───────────────────────────────────────────────────────────────────────┘
//
// Beside it a thread looks once a second whether the domain is up, so that the end of one is
// noticed in a long interval too; writes the metrics; and tells the watchdog.

/// Takes checkpoints of one domain after another, all of one name, until it is stopped.
final class CheckpointService: Sendable {
    /// Its times.
    struct Times {
        /// From one checkpoint to the next.
        var interval: Duration
        /// How long a capture takes at most in addition, as long as the process does not compute.
        var patience: Duration
        /// Between two looks for the domain.
        var poll = Duration.seconds(1)
        /// Between two entries of the journal about checkpoints.
        var report = Duration.seconds(10)
        /// After failures.
        var pauses = RetryPauses()

        init(interval: Duration, patience: Duration) {
            self.interval = interval
            self.patience = patience
        }
    }

    /// The domain that has a schedule at present.
    private struct Current {
        let domain: ServedDomain
        let ending: Cancellation
    }

    private struct Tally {
        var pauses: RetryPauses
        var takenCount = 0
        var reportedCount = 0
        var reportedAt: ContinuousClock.Instant?
        var saidAt: ContinuousClock.Instant?
        var thinningFailureCount = 0
    }

    private let name: String
    private let lineage: String
    private let source: any DomainSource
    private let times: Times
    private let journal: ServiceJournal
    private let notifier: ServiceNotifier
    private let metrics: ServiceMetrics
    private let heartbeat: ServiceHeartbeat
    private let stop: Cancellation
    private let current = Mutex<Current?>(nil)
    private let tally: Mutex<Tally>

    /// - Parameters:
    ///   - configuration: names the domain and the lineage.
    ///   - stop: ends the service after the checkpoint in progress.
    init(
        _ configuration: ServiceConfiguration, of source: any DomainSource, times: Times,
        journal: ServiceJournal, notifier: ServiceNotifier, metrics: ServiceMetrics,
        stop: Cancellation
    ) {
        name = configuration.domain
        lineage = configuration.lineage
        self.source = source
        self.times = times
        self.journal = journal
        self.notifier = notifier
        self.metrics = metrics
        self.stop = stop
        heartbeat = ServiceHeartbeat(watchdog: notifier.watchdog) { notifier.beat() }
        tally = Mutex(Tally(pauses: times.pauses))
    }

    /// Runs until it is stopped, which is no error, or until a failure that no attempt can mend.
    func run() throws {
        let ended = Cancellation()
        let watch = try Threads.Thread { [self] in self.watch(until: ended) }
        let registration = stop.register { [notifier] in notifier.stopping() }
        defer {
            withExtendedLifetime(registration) {}
            ended.cancel()
            watch.join()
            metrics.isUp(false)
            metrics.flush(isLast: true)
        }
        while let domain = try awaitDomain() {
            try serve(domain)
            metrics.isUp(false)
            _ = stop.sleep(until: .now + times.poll)
        }
    }

    // MARK: - Waiting

    /// Looks for the domain until it is there; nil if the service is stopped.
    private func awaitDomain() throws -> ServedDomain? {
        metrics.isUp(false)
        say("waits for domain \(name)", always: true)
        while !stop.isCancelled {
            heartbeat.promise(times.poll + times.patience)
            do {
                if let domain = try source.find() { return domain }
            } catch {
                _ = try noteFailure(error, "domain \(name) cannot be looked for")
            }
            _ = stop.sleep(until: .now + times.poll)
        }
        return nil
    }

    /// Beside everything else.
    private func watch(until ended: Cancellation) {
        let tick = min(times.poll, heartbeat.interval ?? times.poll)
        while ended.sleep(until: .now + tick) {
            if let current = current.withLock({ $0 }), !current.ending.isCancelled,
                // What cannot be looked at is left to the capture.
                (try? source.isUp(current.domain)) == false
            {
                current.ending.cancel()
            }
            metrics.flush()
            heartbeat.tick()
        }
    }

    // MARK: - Taking checkpoints

    /// Takes checkpoints of a domain until it ends, or the service is stopped.
    private func serve(_ domain: ServedDomain) throws {
        var checkpointer: (any DomainCheckpointer)?
        defer {
            current.withLock { $0 = nil }
            close(checkpointer)
        }
        metrics.isUp(true)
        while !stop.isCancelled {
            do {
                let taker = try checkpointer ?? open(domain)
                checkpointer = taker
                let ending = Cancellation(linkedTo: [stop])
                current.withLock { $0 = Current(domain: domain, ending: ending) }
                heartbeat.promise(times.interval + times.patience)
                try taker.run(every: times.interval, until: ending) { [self] in
                    note($0, of: domain, taker)
                }
                if !stop.isCancelled { return noteEnd(of: domain) }
            } catch {
                current.withLock { $0 = nil }
                // What a domain that is vanishing lacks says nothing about the next one.
                if isGuests(error), (try? source.isUp(domain)) == false {
                    return noteEnd(of: domain)
                }
                switch try noteFailure(error, "\(domain) has no checkpoint") {
                case .domainEnded: return noteEnd(of: domain)
                case .mendable(_, true): break
                default:
                    // Its lock is free when it is released, before another one is made.
                    close(checkpointer)
                    checkpointer = nil
                }
            }
        }
    }

    private func isGuests(_ error: any Error) -> Bool {
        error is GuestError || (error as? CheckpointError)?.guestError != nil
    }

    /// Ends a checkpointer, which may thin the lineage once more.
    private func close(_ checkpointer: (any DomainCheckpointer)?) {
        heartbeat.promise(times.patience * 2)
        checkpointer?.close()
    }

    private func open(_ domain: ServedDomain) throws -> any DomainCheckpointer {
        say("takes charge of \(domain)", always: true)
        heartbeat.promise(times.patience)
        let checkpointer = try source.open(domain)
        for remark in checkpointer.remarks { journal.log(.notice, remark, fields(domain)) }
        tally.withLock { $0.thinningFailureCount = 0 }
        let beginning =
            switch checkpointer.resumesAfter {
            case nil: "begins lineage '\(lineage)' with all memory of \(domain)"
            case let before? where domain.isPV:
                "resumes lineage '\(lineage)' after \(before) with all memory of \(domain), of "
                    + "which only what has changed is stored"
            case let before?:
                "resumes lineage '\(lineage)' after \(before): all memory of \(domain) is read "
                    + "once while it runs, and only what has changed is stored, because the dirty "
                    + "log of an earlier process cannot be kept"
            }
        journal.log(.info, beginning, fields(domain))
        say(beginning, always: true)
        return checkpointer
    }

    private func note(
        _ event: ServiceEvent, of domain: ServedDomain, _ checkpointer: any DomainCheckpointer
    ) {
        heartbeat.promise(times.interval + times.patience)
        switch event {
        case .taken(let taken):
            metrics.note(taken)
            report(taken, of: domain)
        case .auditMissed(let message):
            metrics.failed("auditMissed")
            journal.log(.warning, message, fields(domain))
        }
        guard let failed = checkpointer.failedThinnings else { return }
        let count = tally.withLock { tally in
            defer { tally.thinningFailureCount = failed.count }
            return failed.count - tally.thinningFailureCount
        }
        guard count > 0 else { return }
        for _ in 0..<count { metrics.failed("thinning") }
        journal.log(
            .warning, "checkpoints could not be thinned by the keep rules: \(failed.last)",
            fields(domain))
    }

    /// A line for a checkpoint, unless there was one a short time ago.
    private func report(_ taken: TakenCheckpoint, of domain: ServedDomain) {
        let now = ContinuousClock.now
        let count = tally.withLock { tally -> Int? in
            tally.pauses.reset()
            tally.takenCount += 1
            if let last = tally.reportedAt, now - last < times.report { return nil }
            tally.reportedAt = now
            defer { tally.reportedCount = tally.takenCount }
            return tally.takenCount - tally.reportedCount
        }
        let id = taken.id.prefix(8)
        let what =
            "\(taken.dirtyPageCount) dirty pages, downtime "
            + "\(Format.milliseconds(taken.downtime)), lag \(Format.milliseconds(taken.lateness))"
        say("\(domain): checkpoint \(id), \(what)")
        guard let count else { return }
        let more = count > 1 ? ", and \(counted(count - 1, "other")) before it" : ""
        journal.log(
            .info, "checkpoint \(id) of \(domain)\(more): \(what)",
            fields(domain) + [
                ("VARVE_CHECKPOINT", taken.id),
                ("VARVE_DOWNTIME_USEC", "\(taken.downtime.microseconds)"),
                ("VARVE_DIRTY_PAGES", "\(taken.dirtyPageCount)"),
            ])
    }

    private func noteEnd(of domain: ServedDomain) {
        journal.log(
            .notice, "\(domain) has ended; lineage '\(lineage)' goes on with the next one",
            fields(domain))
    }

    // MARK: - Failures

    /// Reports and counts a failure, and pauses; throws if no attempt can mend it.
    private func noteFailure(_ error: any Error, _ what: String) throws -> ServiceFault {
        let fault = ServiceFault(error)
        switch fault {
        case .domainEnded: break
        case .unmendable(let error):
            metrics.failed("unmendable")
            throw error
        case .mendable(let reason, _):
            metrics.failed(reason)
            let pause = tally.withLock { $0.pauses.next() }
            let text =
                "\(what): \(ToolError(error).message); the next attempt is in "
                + "\(Format.decimal(Double(pause.microseconds) / 1e6, 0)) s"
            journal.log(.error, text, [("VARVE_DOMAIN", name), ("VARVE_LINEAGE", lineage)])
            say(text, always: true)
            heartbeat.promise(pause + times.patience)
            _ = stop.sleep(until: .now + pause)
        }
        return fault
    }

    private func fields(_ domain: ServedDomain) -> [(String, String)] {
        [("VARVE_DOMAIN", domain.name), ("VARVE_LINEAGE", lineage)]
    }

    /// Sets the status; that of a checkpoint only if there was none of another in the last second.
    private func say(_ text: String, always: Bool = false) {
        let now = ContinuousClock.now
        let isDue = tally.withLock { tally in
            if !always, let said = tally.saidAt, now - said < .seconds(1) { return false }
            // A checkpoint's status takes the place of any other at once.
            tally.saidAt = always ? nil : now
            return true
        }
        if isDue { notifier.say(text) }
    }
}
