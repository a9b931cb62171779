import Synchronization
import SystemPackage
import Varve

/// PV: streams of libxenguest.
final class PVTaker: CheckpointTaker {
    private let guest: XenPVDomain
    private let repository: Repository
    private let lineage: String
    private let keeper: RetentionKeeper?
    /// True if each checkpoint is an epoch of one live stream, instead of a stream of its own.
    private let isLive: Bool
    private var options = CaptureOptions()

    /// - Parameter isLive: true requires a hypervisor that logs the domain's writes.
    init(
        _ guest: XenPVDomain, _ repository: Repository, lineage: String, _ retention: Retention?,
        isLive: Bool, acceptsGuestChange: Bool
    ) throws {
        self.guest = guest
        self.repository = repository
        self.lineage = lineage
        self.isLive = isLive
        options.acceptsGuestChange = acceptsGuestChange
        keeper = try retention.map {
            try RetentionKeeper($0, of: repository, lineage: LineageName(lineage))
        }
    }

    func takeAll(_ schedule: Schedule, _ report: CheckpointReport) throws {
        if isLive { return try takeEpochs(schedule, report) }
        var schedule = schedule
        while let lag = try schedule.next() {
            var taken: Checkpoint?
            let times = try guest.save(.plain) { try take(from: $0) { taken = $0 } }
            guard let taken else { return }
            report.show(
                taken, dirty: taken.pageCount, downtime: times.last?.downtime ?? .zero,
                request: times.last?.request ?? .zero, lag: lag)
        }
    }

    private func takeEpochs(_ schedule: Schedule, _ report: CheckpointReport) throws {
        let epochs = PVEpochs(schedule, report)
        guard try epochs.advance() else { return }
        _ = try guest.save(.checkpointed { epochs.ended($0) }) {
            try take(from: $0) { epochs.published($0) }
        }
        try epochs.check()
    }

    private func take(
        from source: @escaping (UnsafeMutableRawBufferPointer) throws -> Int,
        published: (Checkpoint) -> Void
    ) throws {
        _ = try repository.importXenStream(
            .libxc, lineage: LineageName(lineage), configuration: guest.configuration,
            options: options,
            published: {
                published($0)
                keeper?.checkpointPublished()
            }, source: source)
    }

    func finish(_ report: CheckpointReport) {
        keeper?.close()
        keeper?.report.show()
    }
}

/// What the writing and the reading thread of a stream report about each epoch.
private final class PVEpochs: @unchecked Sendable {
    private struct State {
        var schedule: Schedule
        var lags: [Duration] = []
        var times: [PauseTimes] = []
        var checkpoints: [Checkpoint] = []
        var shown = 0
        var failure: (any Error)?
    }

    private let state: Mutex<State>
    // Unchecked: used only with the state's lock held.
    private let report: CheckpointReport

    init(_ schedule: Schedule, _ report: CheckpointReport) {
        state = Mutex(State(schedule: schedule))
        self.report = report
    }

    /// Throws the error of either thread.
    func check() throws {
        if let failure = state.withLock({ $0.failure }) { throw failure }
    }

    /// Waits until the next epoch is due; false if there is none.
    func advance() throws -> Bool {
        var schedule = state.withLock { $0.schedule }
        guard let lag = try schedule.next() else { return false }
        state.withLock { [schedule] state in
            state.schedule = schedule
            state.lags.append(lag)
        }
        return true
    }

    /// Called when an epoch is written and the domain runs, on the thread that writes the stream.
    func ended(_ times: PauseTimes) -> Bool {
        state.withLock { $0.times.append(times) }
        show()
        do {
            return try state.withLock { $0.failure == nil } && advance()
        } catch {
            state.withLock { $0.failure = $0.failure ?? error }
            return false
        }
    }

    /// Called when an epoch is durable, on the thread that reads the stream.
    func published(_ checkpoint: Checkpoint) {
        state.withLock { $0.checkpoints.append(checkpoint) }
        show()
    }

    /// Reports the epochs for which both threads have made their calls.
    private func show() {
        state.withLock { state in
            while state.shown < min(state.times.count, state.checkpoints.count) {
                let checkpoint = state.checkpoints[state.shown]
                let times = state.times[state.shown]
                report.show(
                    checkpoint, dirty: checkpoint.changedPageCount, downtime: times.downtime,
                    request: times.request, lag: state.lags[state.shown])
                state.shown += 1
            }
        }
    }
}
