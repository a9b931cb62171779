import Glibc
import GuestModel
import Varve
import XenGuest

// Measurements for the cases: `XenCases` lists their arguments.

extension XenCases {
    /// Prints the number of pauses of the domain while a shell command ran, and their downtime in
    /// milliseconds: count, p50, max.
    static func watch(_ domain: UInt32, _ command: String) throws {
        let calls = try LibxenCalls()
        let child = try spawn(["sh", "-c", command])
        var status: Int32 = 0
        var since: ContinuousClock.Instant?
        var downtimes: [Double] = []
        while waitpid(child, &status, WNOHANG) == 0, let facts = try calls.facts(domain) {
            let isStill = facts.shutdown != nil || facts.isPaused
            let now = ContinuousClock.now
            if isStill, since == nil { since = now }
            if !isStill, let start = since {
                downtimes.append((now - start).milliseconds)
                since = nil
            }
            usleep(500)
        }
        guard status == 0 else { throw Failed("\(command): ended with \(status)") }
        guard !downtimes.isEmpty else { throw Failed("the domain was never paused") }
        print("\(downtimes.count) \(middleAndMax(downtimes))")
    }

    /// Epochs of the checkpointed stream that libxenguest writes for Remus, 200 ms apart, into
    /// /dev/null; prints milliseconds, p50 and max: of the downtime, then of the suspension.
    static func epochs(_ domain: UInt32, _ count: Int) throws {
        let guest = try open(domain)
        let calls = try LibxenCalls()
        let sink = Glibc.open("/dev/null", O_WRONLY)
        var times: [PauseTimes] = []
        let steps = SaveSteps(
            suspend: { (try? guest.pause()) != nil },
            postcopy: {
                guard (try? guest.resume()) != nil else { return false }
                times.append(guest.pauseTimes ?? PauseTimes())
                return true
            },
            checkpoint: {
                usleep(200_000)
                return times.count <= count
            })
        try calls.save(domain, to: sink, isCheckpointed: true, isLive: true, steps)
        close(sink)
        // The first epoch ends the live phase that copied all memory.
        let later = times.dropFirst()
        guard !later.isEmpty else { throw Failed("libxenguest wrote no second epoch") }
        print(
            middleAndMax(later.map(\.downtime.milliseconds)),
            middleAndMax(later.map(\.request.milliseconds)))
    }

    /// Reads and clears the log repeatedly, and does nothing else to the domain.
    ///
    /// Shows how often the emulated machine loses a guest in log-dirty mode without Varve.
    static func churn(_ domain: UInt32, _ count: Int) throws {
        let calls = try LibxenCalls()
        let frameCount = try calls.frameCount(domain)
        let buffer = try calls.makeLogBuffer(frameCount: frameCount)
        try calls.enableLog(domain)
        for index in 0..<count {
            _ = try calls.readLog(
                domain, .clean, into: buffer, frameCount: frameCount, isFinal: false)
            usleep(5000)
            guard let facts = try calls.facts(domain), facts.shutdown == nil else {
                print("the guest died after \(index + 1) reads")
                return
            }
        }
        try calls.disableLog(domain)
        print("the guest lived through \(count) reads")
    }

    private static func middleAndMax(_ values: [Double]) -> String {
        let sorted = values.sorted()
        let text = [sorted[sorted.count / 2], sorted[sorted.count - 1]].map {
            "\(($0 * 100).rounded() / 100)"
        }
        return text.joined(separator: " ")
    }
}
