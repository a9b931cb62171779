import GuestConformance
import Synchronization
import VarveCore

/// A machine that an emulator runs: its memory is an array, and each store records its page.
final class Machine: WritableGuest {
    struct State {
        var memory: [UInt8]
        var counter: UInt8 = 0
        var isHeld = false
        /// The running log, and what it has seen; nil while there is no capture.
        var log: DirtyLog?
        var dirty = DirtyBitmap()
    }

    let pageCount: Int
    let state: Mutex<State>

    init(pageCount: Int) {
        self.pageCount = pageCount
        state = Mutex(State(memory: [UInt8](repeating: 0, count: pageCount * Page.byteCount)))
    }

    /// One instruction of the machine: counts, and stores the count; does nothing in the pause.
    func step() {
        state.withLock { state in
            guard !state.isHeld else { return }
            state.counter &+= 1
            let address = Int(state.counter) * 1000 % state.memory.count
            state.memory[address] = state.counter
            if state.log != nil { state.dirty.insert(Machine.frame(address)) }
        }
    }

    static func frame(_ address: Int) -> PageFrameNumber {
        PageFrameNumber(UInt64(address / Page.byteCount))
    }

    static func place(_ frame: UInt64) -> Range<Int> {
        Int(frame) * Page.byteCount..<Int(frame + 1) * Page.byteCount
    }
}

/// The machine as a guest.
extension Machine {
    func layout() -> GuestLayout { GuestLayout(pageCount: pageCount) }
    var dirtyTracking: (any DirtyTracking)? { self }
    func pause() { state.withLock { $0.isHeld = true } }
    func resume() { state.withLock { $0.isHeld = false } }

    func copyPages(_ runs: Span<PageRange>, into destination: inout MutableRawSpan) {
        var frames: [UInt64] = []
        for index in runs.indices { frames += runs[index].frames }
        destination.withUnsafeMutableBytes { bytes in
            state.withLock { state in
                for (index, frame) in frames.enumerated() {
                    let target = index * Page.byteCount..<(index + 1) * Page.byteCount
                    UnsafeMutableRawBufferPointer(rebasing: bytes[target])
                        .copyBytes(from: state.memory[Machine.place(frame)])
                }
            }
        }
    }

    func captureState() -> GuestState {
        let counter = state.withLock { $0.counter }
        return GuestState(records: [GuestState.Record(kind: "counter", bytes: [counter])])
    }

    // What follows is for a revert and a restore.

    var startsZeroed: Bool { false }

    func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        guard layout == self.layout() else {
            throw GuestError(
                code: .sizeMismatch, message: "the machine has \(pageCount) pages; make another")
        }
    }

    func writePages(_ runs: Span<PageRange>, from source: RawSpan) {
        var frames: [UInt64] = []
        for index in runs.indices { frames += runs[index].frames }
        source.withUnsafeBytes { bytes in
            state.withLock { state in
                for (index, frame) in frames.enumerated() {
                    let page = bytes[index * Page.byteCount..<(index + 1) * Page.byteCount]
                    state.memory.replaceSubrange(Machine.place(frame), with: page)
                    // The log records what the engine writes, as it records every other store.
                    if state.log != nil { state.dirty.insert(PageFrameNumber(frame)) }
                }
            }
        }
    }

    func restoreState(_ newState: GuestState) throws(GuestError) {
        guard let counter = newState.bytes(ofKind: "counter")?.first else {
            throw GuestError(code: .stateRejected, message: "the checkpoint has no counter")
        }
        state.withLock { $0.counter = counter }
    }
}

/// Its dirty log. A log that has ended returns `unknown`, and is never mistaken for an empty one.
extension Machine: DirtyTracking {
    func start() -> DirtyLog {
        state.withLock { state in
            let log = DirtyLog()
            state.log = log
            return log
        }
    }

    func isRunning(_ log: DirtyLog) -> Bool { state.withLock { $0.log == log } }

    func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) -> DirtyKnowledge {
        let taken = state.withLock { state -> DirtyBitmap? in
            guard state.log == log else { return nil }
            defer { state.dirty.removeAll() }
            return state.dirty
        }
        guard let taken else { return .unknown }
        bitmap.formUnion(taken)
        return .complete
    }

    func peekDirtyCount(_ log: DirtyLog) -> Int { state.withLock { $0.dirty.count } }

    func stop(_ log: DirtyLog) {
        state.withLock { state in
            guard state.log == log else { return }
            state.log = nil
            state.dirty.removeAll()
        }
    }
}

/// Checks the machine, and takes checkpoints of one.
func yourOwnGuest(in store: FilePath) throws {
    let report = ConformanceSuite.run {
        let machine = Machine(pageCount: 64)
        var subject = ConformanceSubject(
            guest: machine,
            write: { frame, bytes in
                machine.state.withLock { state in
                    state.memory.replaceSubrange(Machine.place(frame.rawValue), with: bytes)
                    if state.log != nil { state.dirty.insert(frame) }
                }
            },
            read: { frame in
                machine.state.withLock { Array($0.memory[Machine.place(frame.rawValue)]) }
            })
        subject.work = { machine.step() }
        return subject
    }
    print("checks: \(report.failures.count) failed, \(report.skipped.count) skipped")
    guard report.isConforming else { return print(report) }

    let machine = Machine(pageCount: 64)
    let repository = try Repository.create(at: store)
    let session = try CaptureSession(of: machine, in: repository, lineage: "machine")
    machine.step()
    let before = try session.capture()
    for _ in 0..<10 { machine.step() }
    let after = try session.capture()
    print("changed: \(after.checkpoint.changedPageCount) pages of \(after.checkpoint.pageCount)")
    try session.revert(to: before.checkpoint)
    print("after the revert: \(machine.state.withLock { $0.counter })")
    session.close()
    try repository.close()
}
