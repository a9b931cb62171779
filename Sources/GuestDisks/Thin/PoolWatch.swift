import CLinux
import Glibc
import GuestModel
import Synchronization

// A pool that is full stops its guests, and one without metadata space turns read-only. A capture
// refuses a pool that is too full, but between two captures nothing looks, and meanwhile the cut
// of the last one costs room: each block that a guest overwrites is kept for it.
//
// So a thread looks every few seconds. It does not wait for the pool's own event (DM_DEV_WAIT at
// the low-water mark): that mark is the administrator's, or LVM's, and is for data alone; the call
// cannot be ended; and all calls of a process to libdevmapper wait for each other.
//
// Above the limit at which captures are refused, and while the pool still grows, the standing cut
// is given up. It is of use only to the next capture, which this pool would refuse; what it costs
// is that this capture, once there is room, reads whole disks. That is time, and a full pool is
// lost data. As long as the pool does not grow, nothing is in danger and the cut would free
// nothing, so it stays. A cut that is being read, or compared with, is never given up: its capture
// ends soon, and releases the cut before it.

/// Watches the pools of a group between its cuts, on a thread of its own.
final class PoolWatch: Sendable {
    private enum Kind: String, Hashable, Sendable {
        case data
        case metadata

        var remedy: String {
            self == .data ? "lvextend" : "lvextend --poolmetadatasize"
        }
    }

    private enum Alarm: Hashable, Sendable {
        case warning(Kind)
        case limit(Kind)
        case failure
        /// The standing cut could not be given up.
        case release
    }

    /// What is known of one pool.
    private struct Pool: Sendable {
        let pool: ThinPool
        /// Said already.
        var alarms: Set<Alarm> = []
        /// Blocks in use when it was looked at last with the cut that stands now.
        var last: (cut: ObjectIdentifier, data: UInt64, metadata: UInt64)?
    }

    private struct Standing: Sendable {
        weak var cut: ThinCut?
    }

    private struct State: Sendable {
        var pools: [Pool] = []
        /// The cuts that are only compared with any more.
        var standing: [Standing] = []
        var thread: WatchThread?
    }

    /// Percentage points below a level at which crossing it counts again.
    private static let slack = 1.0

    private let calls: any DeviceMapperCalls
    private let options: ThinDisks.Options
    private let state = Mutex(State())

    init(_ calls: any DeviceMapperCalls, _ options: ThinDisks.Options) {
        self.calls = calls
        self.options = options
    }

    /// Watches these pools from now on, instead of others; starts the thread.
    func watch(_ pools: [ThinPool]) {
        let isFirst = state.withLock { state in
            state.pools = pools.map { pool in
                state.pools.first { $0.pool == pool } ?? Pool(pool: pool)
            }
            return state.thread == nil && !pools.isEmpty
        }
        guard isFirst, options.watchInterval > .zero else { return }
        let thread = WatchThread(every: options.watchInterval) { [weak self] in self?.look() }
        guard let thread else {
            say("no thread can be started, so the pools are looked at only at each checkpoint")
            return
        }
        state.withLock { $0.thread = thread }
    }

    /// Notes a cut that is only compared with from now on.
    func stands(_ cut: ThinCut) {
        state.withLock { state in
            state.standing.removeAll { $0.cut == nil }
            state.standing.append(Standing(cut: cut))
        }
    }

    private func say(_ text: String) { options.notice?(text) }

    // MARK: - Looking

    /// Looks at each pool once.
    func look() {
        let pools = state.withLock { state in state.pools.map(\.pool) }
        for pool in pools { look(pool) }
    }

    private func look(_ pool: ThinPool) {
        let status: PoolStatus
        do throws(GuestError) {
            status = try pool.status(calls)
        } catch {
            if raise(.failure, pool) { say(error.message) }
            return
        }
        lower(.failure, pool)
        let levels: [(Kind, Double, Double, Double)] = [
            (.data, status.dataPercent, options.dataFillWarning, options.dataFillLimit),
            (
                .metadata, status.metadataPercent, options.metadataFillWarning,
                options.metadataFillLimit
            ),
        ]
        for (kind, fill, warning, limit) in levels {
            note(kind, fill, min(warning, limit), limit, pool)
        }
        let isOver = levels.contains { $0.1 > $0.3 }
        guard let cut = standingCut(in: pool) else { return }
        let hasGrown = grew(pool, status, with: cut)
        if isOver && hasGrown { giveUp(cut, pool) }
    }

    /// Says once that a level was crossed.
    private func note(
        _ kind: Kind, _ fill: Double, _ warning: Double, _ limit: Double, _ pool: ThinPool
    ) {
        let name = pool.device.name
        if fill > limit {
            let isNew = raise(.limit(kind), pool)
            _ = raise(.warning(kind), pool)
            guard isNew else { return }
            say(
                "the pool \(name) is full to \(PoolStatus.text(fill)) of its \(kind.rawValue), "
                    + "above the limit of \(PoolStatus.text(limit)): no checkpoint is taken; "
                    + "extend it (\(kind.remedy)), or drop what is of no use")
            return
        }
        if fill <= limit - PoolWatch.slack { lower(.limit(kind), pool) }
        if fill > warning {
            guard raise(.warning(kind), pool) else { return }
            say(
                "the pool \(name) is full to \(PoolStatus.text(fill)) of its \(kind.rawValue), and "
                    + "above \(PoolStatus.text(limit)) no checkpoint is taken; extend it "
                    + "(\(kind.remedy))")
        } else if fill <= warning - PoolWatch.slack {
            lower(.warning(kind), pool)
        }
    }

    private func change<T: Sendable>(_ pool: ThinPool, _ body: (inout Pool) -> T) -> T? {
        state.withLock { state in
            guard let index = state.pools.firstIndex(where: { $0.pool == pool }) else {
                return nil
            }
            return body(&state.pools[index])
        }
    }

    /// True if it was not raised before.
    private func raise(_ alarm: Alarm, _ pool: ThinPool) -> Bool {
        change(pool) { $0.alarms.insert(alarm).inserted } ?? false
    }

    private func lower(_ alarm: Alarm, _ pool: ThinPool) {
        _ = change(pool) { $0.alarms.remove(alarm) }
    }

    // MARK: - The standing cut

    private func standingCut(in pool: ThinPool) -> ThinCut? {
        let cuts = state.withLock { state in state.standing.compactMap(\.cut) }
        return cuts.last { $0.mayBeGivenUp && $0.isIn(pool) }
    }

    /// True if the pool has grown since it was looked at last, with this cut standing.
    private func grew(_ pool: ThinPool, _ status: PoolStatus, with cut: ThinCut) -> Bool {
        let now = (status.usedDataBlocks, status.usedMetadataBlocks)
        return change(pool) { pool in
            let last = pool.last
            pool.last = (ObjectIdentifier(cut), now.0, now.1)
            guard let last, last.cut == ObjectIdentifier(cut) else { return false }
            return now.0 > last.data || now.1 > last.metadata
        } ?? false
    }

    private func giveUp(_ cut: ThinCut, _ pool: ThinPool) {
        do throws(GuestError) {
            guard try cut.giveUp() else { return }
            lower(.release, pool)
            let status = try pool.status(calls)
            say(
                "the cut of the last checkpoint was given up to free room in the pool "
                    + "\(pool.device.name), which is full to "
                    + "\(PoolStatus.text(status.dataPercent)) of its data and "
                    + "\(PoolStatus.text(status.metadataPercent)) of its metadata now; the next "
                    + "checkpoint reads the disks as a whole")
        } catch {
            if raise(.release, pool) {
                say("the cut of the last checkpoint cannot be given up: \(error.message)")
            }
        }
    }
}

/// A thread that does something at regular intervals.
private final class WatchThread: Sendable {
    private final class Work: Sendable {
        let interval: Duration
        let body: @Sendable () -> Void
        /// The end that is read; it becomes readable when the other one is closed.
        let wake: Int32

        init(_ interval: Duration, _ body: @escaping @Sendable () -> Void, _ wake: Int32) {
            self.interval = interval
            self.body = body
            self.wake = wake
        }

        deinit { system_close(wake) }

        func run() {
            let (seconds, attoseconds) = interval.components
            let milliseconds = Int(seconds) * 1000 + Int(attoseconds / 1_000_000_000_000_000)
            while !system_isReadable(wake, within: Int32(max(1, milliseconds))) { body() }
        }
    }

    private let alarm: Int32

    /// Nil if no thread can be started.
    init?(every interval: Duration, _ body: @escaping @Sendable () -> Void) {
        var ends: [Int32] = [-1, -1]
        guard clinux_pipe(&ends) == 0 else { return nil }
        alarm = ends[1]
        let work = Unmanaged.passRetained(Work(interval, body, ends[0]))
        var handle = pthread_t()
        let code = pthread_create(
            &handle, nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<Work>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            }, work.toOpaque())
        guard code == 0 else {
            work.release()
            return nil
        }
        pthread_detach(handle)
    }

    // The thread sees that the other end was closed, and ends.
    deinit { system_close(alarm) }
}
