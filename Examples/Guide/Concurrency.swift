import Synchronization
import VarveCore

/// Tasks that write, capture, go back and wait for a lock, side by side.
///
/// No call blocks a thread of the tasks: `guide` runs this with one thread for all of them.
func concurrency(in store: FilePath) async throws {
    let gate = WriterGate()
    let memory = ProcessMemory(hold: { gate.close() }, release: { gate.open() })
    let region = try memory.allocate(byteCount: 16 << 20)
    let repository = try await Repository.create(at: store)
    let session = try await CaptureSession.open(of: memory, in: repository, lineage: "server")

    try await withThrowingTaskGroup(of: Void.self) { group in
        for number in 0..<4 {
            group.addTask { await write(to: region, every: number, through: gate) }
        }
        group.addTask { try await waitForALockAndBeCancelled(store) }
        // This task takes fifty checkpoints a second; ten times it goes back.
        var checkpoints: [Checkpoint] = []
        var time = ContinuousClock.now
        for number in 1...50 {
            checkpoints.append(try await session.capture().checkpoint)
            if number % 5 == 0, let earlier = checkpoints.randomElement() {
                try await session.revert(to: earlier)
            }
            time += .milliseconds(20)
            try await Task.sleep(until: time)
        }
        print("checkpoints: \(checkpoints.count)")
        group.cancelAll()
        try await group.waitForAll()
    }

    let last = try await session.capture().checkpoint
    print("the last one is the memory: \(try memory.memoryRoot() == last.memory.root)")
    await session.close()
    print("clean: \(try await repository.verify().isClean)")
    try await repository.close()
}

/// Writes to every fourth page until its task is cancelled.
func write(to region: MemoryRegion, every number: Int, through gate: WriterGate) async {
    var step = number
    while !Task.isCancelled {
        await gate.pass {
            region.bytes.storeBytes(of: step, toByteOffset: step % 4096 * 4096, as: Int.self)
        }
        step += 4
        await Task.yield()
    }
}

/// Waits for the lock of a repository that is open for writing, and is cancelled.
func waitForALockAndBeCancelled(_ store: FilePath) async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
        group.addTask {
            // This task holds the lock, so without the cancellation it would wait for ever.
            _ = try await Repository.open(
                at: store, .writing, waiting: LockWaiting(atMost: nil))
        }
        try await Task.sleep(for: .milliseconds(300))
        group.cancelAll()
        do {
            try await group.waitForAll()
        } catch let error as RepositoryError where error.code == .cancelled {
            print("the wait for the lock was cancelled")
        }
    }
}

/// Lets tasks write, except while the guest is paused.
final class WriterGate: Sendable {
    private struct State {
        var isClosed = false
        var insideCount = 0
        var waiting: [CheckedContinuation<Void, Never>] = []
    }

    private let state = Mutex(State())

    /// Runs `body` when the gate is open; a task that waits for that blocks no thread.
    func pass(_ body: () -> Void) async {
        while !enter() {
            await withCheckedContinuation { continuation in
                let isOpen = state.withLock { state in
                    if state.isClosed { state.waiting.append(continuation) }
                    return !state.isClosed
                }
                if isOpen { continuation.resume() }
            }
        }
        body()
        state.withLock { $0.insideCount -= 1 }
    }

    private func enter() -> Bool {
        state.withLock { state in
            if !state.isClosed { state.insideCount += 1 }
            return !state.isClosed
        }
    }

    /// Called by the session, on a thread of its own: returns when no task is inside.
    func close() {
        state.withLock { $0.isClosed = true }
        while state.withLock({ $0.insideCount > 0 }) {}
    }

    /// Called by the session: lets waiting tasks go on.
    func open() {
        let waiting = state.withLock { state in
            state.isClosed = false
            defer { state.waiting = [] }
            return state.waiting
        }
        for continuation in waiting { continuation.resume() }
    }
}
