import CheckpointEngine
import GuestModel
import PackStore
import Testing
import Varve

@testable import varve_cli

/// A service from the wait for its domain to its end.
@Suite struct ServiceLifeTests {
    private let noSpace = CheckpointError(
        wrapping: RepositoryError(.noSpace, "the disk is full; free some space"))

    private func guest(_ code: GuestError.Code, _ message: String = "it failed") -> CheckpointError
    {
        CheckpointError(wrapping: GuestError(code: code, message: message))
    }

    private func isSuccess(_ result: Result<Void, any Error>?) -> Bool {
        if case .success? = result { true } else { false }
    }

    private func failure(_ result: Result<Void, any Error>?) -> ToolError? {
        if case .failure(let error)? = result { error as? ToolError } else { nil }
    }

    @Test func aDomainMayComeLate() throws {
        let life = try ServiceLife()
        #expect(life.eventually { life.value("varve_domain_up{domain=\"web\"}") == "0" })
        WallClock.sleep(milliseconds: 20)
        #expect(life.domains.now.opened.isEmpty)
        life.domains.start()
        #expect(life.takes(5))
        #expect(life.value("varve_domain_up{domain=\"web\"}") == "1")
        #expect(isSuccess(life.stopped()))
        let end = life.domains.now
        #expect(end.opened.map(\.domainID) == [1] && end.closedCount == 1 && end.owners == 0)
        #expect(life.value("varve_domain_up{domain=\"web\"}") == "0")
        #expect(life.value("varve_checkpoints_total{domain=\"web\"}") == "\(end.takenCount)")
        #expect(life.value("varve_added_bytes_total{domain=\"web\"}") == "\(end.takenCount * 100)")
        #expect(life.lines.all.contains("varve: a remark"))
        #expect(
            life.lines.all.contains("varve: begins lineage 'web' with all memory of domain web (1)")
        )
    }

    @Test func aLineageGoesOnAfterAReboot() throws {
        let life = try ServiceLife { $0.start() }
        for _ in 0..<3 {
            #expect(life.takes(3))
            life.domains.start()
        }
        #expect(life.eventually { life.domains.now.opened.count == 4 } && life.takes(3))
        #expect(isSuccess(life.stopped()))
        let end = life.domains.now
        #expect(end.opened.map(\.domainID) == [1, 2, 3, 4])
        #expect(end.closedCount == 4 && end.ownersMax == 1)
        // Nothing failed, and each one resumed the lineage.
        #expect(!life.metrics.text.contains("varve_failures_total"))
        let resumed = life.lines.all.filter { $0.contains("resumes lineage 'web' after ") }
        #expect(resumed.count == 3)
        #expect(resumed.allSatisfy { $0.contains("is read once while it runs") })
    }

    /// The end is noticed long before the next checkpoint is due.
    @Test func aDomainThatIsGoneIsWaitedFor() throws {
        let life = try ServiceLife(interval: .seconds(3600)) { $0.start() }
        #expect(life.eventually { life.domains.now.takenCount == 1 })
        life.domains.end()
        #expect(life.eventually { life.domains.now.closedCount == 1 })
        #expect(life.eventually { life.value("varve_domain_up{domain=\"web\"}") == "0" })
        #expect(life.lines.all.contains { $0.contains("domain web (1) has ended") })
        life.domains.start()
        #expect(life.eventually { life.domains.now.takenCount == 2 })
        #expect(isSuccess(life.stopped()))
    }

    /// A capture that fails N times is tried again with the same checkpointer, and its log.
    @Test(arguments: [1, 6])
    func aFullDiskIsWaitedFor(_ count: Int) throws {
        let life = try ServiceLife { domains in
            domains.start()
            domains.change { $0.captureFailures = Array(repeating: noSpace, count: count) }
        }
        #expect(life.takes(3))
        #expect(isSuccess(life.stopped()))
        #expect(life.domains.now.opened.count == 1)
        #expect(
            life.value("varve_failures_total{domain=\"web\",reason=\"noSpace\"}") == "\(count)")
        let told = life.lines.all.filter {
            $0.contains("domain web (1) has no checkpoint: the disk is full; free some space; the ")
        }
        #expect(told.count == count)
    }

    /// Whatever is wrong with a checkpointer, another one is made, after the first is released.
    @Test func anotherCheckpointerIsMade() throws {
        let life = try ServiceLife { domains in
            domains.start()
            domains.change {
                $0.openFailures = [guest(.busy), guest(.callFailed)]
                $0.captureFailures = [guest(.unavailable), guest(.timedOut)]
            }
        }
        #expect(life.takes(3))
        #expect(isSuccess(life.stopped()))
        let end = life.domains.now
        #expect(end.opened.count == 2 && end.closedCount == 2 && end.ownersMax == 1)
        for reason in ["busy", "callFailed", "unavailable", "timedOut"] {
            #expect(
                life.value("varve_failures_total{domain=\"web\",reason=\"\(reason)\"}") == "1")
        }
    }

    @Test func xenMayBeAwayForATime() throws {
        let life = try ServiceLife { domains in
            domains.start()
            domains.change {
                $0.findFailures = [GuestError(code: .callFailed, message: "xenstore is away")]
            }
        }
        #expect(life.takes(2))
        #expect(isSuccess(life.stopped()))
        #expect(life.lines.all.contains { $0.contains("cannot be looked for: xenstore is away") })
    }

    @Test func aDomainThatEndsInACaptureIsNoFailure() throws {
        for code in [GuestError.Code.gone, .crashed, .shutDown] {
            let life = try ServiceLife { domains in
                domains.start()
                domains.change { $0.captureFailures = [guest(code)] }
            }
            #expect(life.takes(1))
            #expect(isSuccess(life.stopped()))
            #expect(life.domains.now.opened.count == 2)
            #expect(!life.metrics.text.contains("varve_failures_total"))
        }
    }

    /// What no attempt can mend ends the service, with the exit code of its kind.
    @Test func whatCannotBeMendedEndsIt() throws {
        let damage = Corruption(
            file: "packs/00000001.pack", offset: 5, object: "page", reason: "it is damaged")
        let faults: [(any Error, Int32)] = [
            (guest(.unsupported), 2), (guest(.anotherGuest), 2), (guest(.invalidOption), 2),
            (CheckpointError(wrapping: RepositoryError(.notOwner, "another user's")), 2),
            (CheckpointError(wrapping: RepositoryError(damage)), 3),
            (CheckpointError(wrapping: RepositoryError(.lockLost, "the lock is gone")), 1),
        ]
        for (fault, code) in faults {
            let inCapture = try ServiceLife { domains in
                domains.start()
                domains.change { $0.captureFailures = [fault] }
            }
            #expect(failure(inCapture.end())?.kind.exitCode == code, "\(fault)")
            #expect(inCapture.domains.now.closedCount == 1 && inCapture.domains.now.owners == 0)
            let inOpen = try ServiceLife { domains in
                domains.start()
                domains.change { $0.openFailures = [fault] }
            }
            #expect(failure(inOpen.end())?.kind.exitCode == code, "\(fault)")
            #expect(inOpen.domains.now.takenCount == 0)
        }
    }

    /// A signal ends a wait for the domain, a pause after a failure, and a schedule.
    @Test func itEndsWhereverItIs() throws {
        let waiting = try ServiceLife()
        #expect(isSuccess(waiting.stopped()))
        let long = RetryPauses(first: .seconds(600), longest: .seconds(600))
        let pausing = try ServiceLife(pauses: long) { domains in
            domains.start()
            domains.change { $0.captureFailures = [noSpace] }
        }
        #expect(pausing.eventually { pausing.metrics.text.contains("noSpace") })
        #expect(isSuccess(pausing.stopped()))
        #expect(pausing.domains.now.takenCount == 0 && pausing.domains.now.closedCount == 1)
        let scheduled = try ServiceLife(interval: .seconds(600)) { $0.start() }
        #expect(scheduled.eventually { scheduled.domains.now.takenCount == 1 })
        #expect(isSuccess(scheduled.stopped()))
        #expect(scheduled.domains.now.closedCount == 1)
    }

    @Test func thinningsThatFailAreToldOnce() throws {
        let life = try ServiceLife { domains in
            domains.start()
            domains.change { $0.thinningFailure = (2, "no room to prune") }
        }
        #expect(life.takes(4))
        #expect(isSuccess(life.stopped()))
        #expect(life.value("varve_failures_total{domain=\"web\",reason=\"thinning\"}") == "2")
        #expect(life.lines.all.count { $0.contains("no room to prune") } == 1)
    }

    @Test func pausesGrowToALimit() {
        var pauses = RetryPauses()
        let seconds = (0..<9).map { _ in pauses.next() }
        #expect(seconds == [1, 2, 4, 8, 16, 32, 60, 60, 60].map { .seconds($0) })
        pauses.reset()
        #expect(pauses.next() == .seconds(1))
    }

    // MARK: - The manager

    @Test func theManagerIsToldOfIt() throws {
        let receiver = DatagramReceiver()
        let notifier = ServiceNotifier { name in
            ["NOTIFY_SOCKET": receiver.address, "WATCHDOG_USEC": "30000"][name]
        }
        let heard = try receiver.collect()
        func hears(_ condition: (String) -> Bool) -> Bool {
            heard.wait(atMost: .seconds(30)) { $0.contains(where: condition) ? true : nil } ?? false
        }
        let life = try ServiceLife(notifier: notifier) { $0.start() }
        // The first checkpoint's at once, others when a second has passed.
        #expect(hears { $0.hasPrefix("STATUS=domain web (1): checkpoint 1, 3 dirty pages, down") })
        #expect(hears { $0 == "WATCHDOG=1" })
        #expect(isSuccess(life.stopped()))
        #expect(hears { $0.hasPrefix("STOPPING=1\nSTATUS=ends") })
        let order = heard.read { $0 }.filter { $0.hasPrefix("STATUS=") }
        #expect(
            order.prefix(3) == [
                "STATUS=waits for domain web", "STATUS=takes charge of domain web (1)",
                "STATUS=begins lineage 'web' with all memory of domain web (1)",
            ])
    }

    /// The watchdog hears beats while the schedule keeps its promise, or the process computes.
    @Test func beatsFollowTheSchedule() {
        let count = Lines()
        let start = ContinuousClock.now
        let heart = ServiceHeartbeat(watchdog: .seconds(30), now: start) { count.add("beat") }
        func tick(_ seconds: Double, _ processor: Double = 0) -> Bool {
            heart.tick(
                now: start + .seconds(seconds), processorTime: .seconds(processor))
        }
        #expect(tick(0) && count.all.count == 1)
        // Not due.
        #expect(tick(5) && count.all.count == 1)
        #expect(tick(10) && count.all.count == 2)
        heart.promise(.seconds(30), now: start + .seconds(15))
        #expect(tick(40) && count.all.count == 3)
        // The promise is broken, and nothing is computed.
        #expect(!tick(50) && !tick(60) && count.all.count == 3)
        // Nothing but what a thread uses that looks.
        #expect(!tick(70, 0.1) && count.all.count == 3)
        #expect(tick(80, 1) && count.all.count == 4)
        #expect(!tick(90, 1) && count.all.count == 4)
        heart.promise(.seconds(10), now: start + .seconds(95))
        #expect(tick(100, 1) && count.all.count == 5)
        let never = ServiceHeartbeat(watchdog: nil, now: start) { count.add("beat") }
        #expect(never.tick(now: start + .seconds(500), processorTime: .zero))
        #expect(count.all.count == 5)
    }
}
