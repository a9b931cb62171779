import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore
import Synchronization
import VarveCore
import XenGuest
import XenStream

/// Takes checkpoints of a PV domain from streams of libxenguest.
final class StreamTaker: DomainTaker {
    private let guest: XenPVDomain
    private let repository: Repository
    private let lineage: LineageName
    private let options: XenCheckpointer.Options
    private let keeper: RetentionKeeper?
    private enum Turn {
        case free
        case taken
        case closed
    }

    /// Taken by each call: a domain is saved by one at a time.
    private let turn = Monitor(Turn.free)

    init(
        _ guest: XenPVDomain, _ repository: Repository, _ lineage: LineageName,
        _ options: XenCheckpointer.Options
    ) throws(CheckpointError) {
        self.guest = guest
        self.repository = repository
        self.lineage = lineage
        self.options = options
        do throws(RepositoryError) {
            keeper = try options.capture.retention.map { (retention) throws(RepositoryError) in
                try RetentionKeeper(retention, of: repository, lineage: lineage)
            }
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    var retentionReport: RetentionReport? { keeper?.report }
    /// Such a domain is only replaced.
    var standsStill: Bool { false }
    var captureSession: CaptureSession? { nil }

    deinit { keeper?.requestClose() }

    func close() {
        turn.wait { turn -> Void? in
            if turn == .taken { return nil }
            turn = .closed
            return ()
        }
        keeper?.close()
    }

    /// Takes the turn; returns false if the wait is cancelled.
    private func takeTurn(_ cancellation: Cancellation?) throws(CheckpointError) -> Bool {
        let found = turn.wait(until: cancellation) { turn -> Turn? in
            guard turn != .taken else { return nil }
            defer { if turn == .free { turn = .taken } }
            return turn
        }
        if found == .closed { throw CheckpointError.closed }
        return found != nil
    }

    private func endTurn() { turn.change { $0 = .free } }

    func capture(
        _ label: Label?, _ cancellation: Cancellation?, _ progress: ProgressHandler?
    ) throws(CheckpointError) -> XenCheckpointer.Taken {
        let control = WorkControl(
            "the capture was cancelled; the domain runs", cancellation, progress)
        guard try takeTurn(cancellation) else {
            throw CheckpointError(wrapping: control.cancelled)
        }
        defer { endTurn() }
        return try save(label, .zero, cancellation, progress)
    }

    func revert(
        to checkpoint: Checkpoint, _ options: XenRevertOptions, _ cancellation: Cancellation?,
        _ progress: ProgressHandler?
    ) throws(CheckpointError) -> XenRevertResult {
        let reason = "a PV domain cannot be reverted in place"
        guard options.method != .inPlace else {
            throw CheckpointError(
                wrapping: GuestError(
                    code: .unsupported, message: "\(reason); replace it (--replace)"))
        }
        let control = WorkControl(
            "the revert was cancelled; the domain runs", cancellation, progress)
        guard try takeTurn(cancellation) else {
            throw CheckpointError(wrapping: control.cancelled)
        }
        defer { endTurn() }
        return try DomainRevert(
            repository: repository, checkpoint: checkpoint, options: options,
            domainID: guest.domainID, host: XenHost(of: guest)
        ).run(reason, cancellation, progress)
    }

    /// Saves the domain once, as a stream of its own.
    private func save(
        _ label: Label?, _ lateness: Duration, _ cancellation: Cancellation?,
        _ progress: ProgressHandler?
    ) throws(CheckpointError) -> XenCheckpointer.Taken {
        do {
            var found: Checkpoint?
            let times = try guest.save(.plain) { source in
                try read(source, label, cancellation, progress) { found = $0 }
            }
            guard let checkpoint = found else {
                throw CheckpointError(
                    .invalidStream, "libxenguest ended its stream without an epoch")
            }
            return XenCheckpointer.Taken(
                checkpoint: checkpoint, dirtyPageCount: checkpoint.pageCount,
                pauseTimes: times.last ?? PauseTimes(), lateness: lateness)
        } catch {
            throw CheckpointError(wrappingStream: error)
        }
    }

    private func read(
        _ source: @escaping (UnsafeMutableRawBufferPointer) throws -> Int, _ label: Label? = nil,
        _ cancellation: Cancellation? = nil, _ progress: ProgressHandler? = nil,
        published: (Checkpoint) throws -> Void
    ) throws {
        do throws(CheckpointError) {
            _ = try repository.importXenStream(
                .libxc, lineage: lineage, label: label, configuration: guest.configuration,
                options: options.capture, cancellation: cancellation, progress: progress,
                published: {
                    try published($0)
                    keeper?.checkpointPublished()
                }, source: source)
        } catch {
            // `save` knows why a stream was cut short.
            throw error.cause as? XenStreamError ?? error
        }
    }

    func run(
        _ schedule: CheckpointSchedule, until stop: Cancellation,
        _ handler: @escaping @Sendable (XenCheckpointer.Event) throws -> Void
    ) throws(CheckpointError) {
        guard try takeTurn(stop) else { return }
        defer { endTurn() }
        do {
            let isLive = try !options.domain.comparesAll && guest.logsWrites()
            if isLive {
                try runLive(schedule, until: stop, handler)
            } else {
                var times = DueTimes(schedule)
                while let lateness = times.next(until: stop) {
                    try handler(.taken(try save(nil, lateness, nil, nil)))
                }
            }
        } catch {
            throw CheckpointError(wrappingStream: error)
        }
    }

    /// Takes checkpoints from one live stream, of which each epoch is one.
    private func runLive(
        _ schedule: CheckpointSchedule, until stop: Cancellation,
        _ handler: @escaping @Sendable (XenCheckpointer.Event) throws -> Void
    ) throws {
        let epochs = StreamEpochs(schedule, stop, handler)
        guard epochs.advance() else { return }
        do {
            _ = try guest.save(.checkpointed { epochs.ended($0) }) { source in
                try read(source) { epochs.published($0) }
            }
        } catch {
            throw epochs.failure ?? error
        }
        if let failure = epochs.failure { throw failure }
    }
}

/// What the threads that write and read a stream report about each epoch.
private final class StreamEpochs: Sendable {
    private struct State {
        var lateness: [Duration] = []
        var times: [PauseTimes] = []
        var checkpoints: [Checkpoint] = []
        var reportedCount = 0
        var failure: (any Error)?
    }

    private let due: Mutex<DueTimes>
    private let stop: Cancellation
    private let handler: @Sendable (XenCheckpointer.Event) throws -> Void
    private let state = Mutex(State())

    init(
        _ schedule: CheckpointSchedule, _ stop: Cancellation,
        _ handler: @escaping @Sendable (XenCheckpointer.Event) throws -> Void
    ) {
        due = Mutex(DueTimes(schedule))
        self.stop = stop
        self.handler = handler
    }

    /// What the handler threw; nil if it did not throw.
    var failure: (any Error)? { state.withLock { $0.failure.map { $0 as any Error & Sendable } } }

    /// Waits until the next epoch is due; returns false if there is none.
    func advance() -> Bool {
        guard let lateness = due.withLock({ $0.next(until: stop) }) else { return false }
        return state.withLock { state in
            state.lateness.append(lateness)
            return state.failure == nil
        }
    }

    /// Called when an epoch is written and the domain runs, on the thread that writes the stream.
    func ended(_ times: PauseTimes) -> Bool {
        state.withLock { $0.times.append(times) }
        report()
        return advance()
    }

    /// Called when an epoch is durable, on the thread that reads the stream.
    func published(_ checkpoint: Checkpoint) {
        state.withLock { $0.checkpoints.append(checkpoint) }
        report()
    }

    /// Reports the epochs that are both written and durable.
    private func report() {
        state.withLock { state in
            while state.failure == nil,
                state.reportedCount < min(state.times.count, state.checkpoints.count)
            {
                let checkpoint = state.checkpoints[state.reportedCount]
                let taken = XenCheckpointer.Taken(
                    checkpoint: checkpoint, dirtyPageCount: checkpoint.changedPageCount,
                    pauseTimes: state.times[state.reportedCount],
                    lateness: state.lateness[state.reportedCount])
                state.reportedCount += 1
                do {
                    try handler(.taken(taken))
                } catch {
                    state.failure = error
                    stop.cancel()
                }
            }
        }
    }
}
