import CheckpointStore
import Synchronization
import VarveTestSupport

/// A scenario that ran once, and the disk at each call that changed it: each is a point for a
/// crash.
struct CrashRecording: Sendable {
    /// The disk and the index at one call.
    struct Point: Sendable {
        /// Calls so far, including this one.
        let callCount: Int
        /// nil for the state before the first call.
        let call: SimulatedDisk.Call?
        let image: DiskImage
        /// The moment in the index's copies.
        let moment: Int
        /// The moment of the last sync of LMDB's file.
        let synced: Int
    }

    let scenario: CrashScenario
    let world: CrashWorld
    private(set) var points: [Point] = []
    private var index = IndexCopies()

    private struct Growing: Sendable {
        var points: [Point] = []
        var index = IndexCopies()

        mutating func append(
            _ callCount: Int, _ call: SimulatedDisk.Call?, _ image: DiskImage,
            copying world: CrashWorld,
            _ isConcurrent: Bool
        ) {
            // Another thread may be writing the index: then only the copy from before is whole.
            if !isConcurrent || points.isEmpty { index.append(from: world.disk.indexRoot) }
            let moment = isConcurrent ? 0 : points.count
            // A writer that closes syncs the index, and then removes its mark.
            let isSynced = call?.kind == .remove && call?.path == "index/open"
            points.append(
                Point(
                    callCount: callCount, call: call, image: image, moment: moment,
                    synced: isSynced ? moment : points.last?.synced ?? 0))
        }
    }

    /// Prepares the scenario, and runs it once.
    init(_ scenario: CrashScenario) throws {
        let world = CrashWorld(packByteCountMax: scenario.packByteCountMax, seed: TestSeed.value)
        try scenario.prepare(world)
        let growing = Mutex(Growing())
        let isConcurrent = scenario.isConcurrent
        growing.withLock {
            $0.append(world.disk.calls.count, nil, world.disk.image, copying: world, isConcurrent)
        }
        world.disk.observe { count, call, image in
            guard call.kind.isChange else { return }
            growing.withLock { $0.append(count, call, image, copying: world, isConcurrent) }
        }
        try scenario.act(world)
        world.disk.observe(nil)
        self.scenario = scenario
        self.world = world
        (points, index) = growing.withLock { ($0.points, $0.index) }
    }

    /// The expected state after a crash at a point.
    func check(_ point: Point) -> CrashCheck {
        world.check(after: point.callCount, scenario, isLive: false)
    }

    /// Cuts the power at a point, or kills the process, and checks the resulting store.
    ///
    /// - Parameter fate: what becomes of the index in a power cut; nil: chosen at random.
    func crash(
        at point: Point, isPowerCut: Bool, fate wanted: IndexCopies.Fate? = nil, seed: UInt64
    ) throws {
        var random = SeededGenerator(seed: seed)
        let directory = TemporaryDirectory(inMemory: true)
        let disk = SimulatedDisk(point.image, indexRoot: directory.path, seed: seed)
        var fate = IndexCopies.Fate.exact
        if isPowerCut {
            disk.cutPower(&random)
            let fates: [IndexCopies.Fate] = [.deleted, .garbage, .old, .torn, .torn]
            fate = wanted ?? fates.randomElement(using: &random) ?? .torn
            // Without its directory LMDB's file is gone too.
            if disk.image.names("index") == nil { fate = .deleted }
        } else {
            disk.kill()
        }
        try index.write(
            fate, moment: point.moment, synced: point.synced, to: directory.path, &random)
        try check(point).run(disk)
    }
}
