// A little emulator that takes checkpoints of its machine with the package's product VarveCore.
//
//   swift run emulator DIRECTORY        the repository, which does not exist yet
//
// The machine has 4 MiB of memory and two registers. Each store marks its page in a bitmap. The
// emulator takes 100 checkpoints while the machine runs, reverts it to some of them in place,
// begins a branch from one, and fills the memory of another machine. Each time it compares the
// whole memory with what it was when the checkpoint was taken.

import Synchronization
import VarveCore

let pageCount = 1024
let checkpointCount = 100

/// The machine.
///
/// The engine copies pages while the emulator's thread waits in `begin`, so a lock is enough.
final class Machine: WritableGuest {
    struct State {
        var memory = [UInt8](repeating: 0, count: pageCount * Page.byteCount)
        var counter: UInt64 = 0
        var accumulator: UInt64 = 0
        /// The running log, and the pages that were stored to; nil while there is no session.
        var log: DirtyLog?
        var dirty = DirtyBitmap()
    }

    let state = Mutex(State())

    /// Instructions: each stores somewhere, and marks the page.
    func run(_ count: Int) {
        state.withLock { state in
            for _ in 0..<count {
                state.counter += 1
                state.accumulator = state.accumulator &* 6_364_136_223_846_793_005 &+ state.counter
                let page = Int(state.accumulator >> 40) % pageCount
                let offset = Int(state.accumulator >> 20 & 0xffff_ffff) % (Page.byteCount / 8) * 8
                state.memory.withUnsafeMutableBytes {
                    $0.storeBytes(
                        of: state.accumulator, toByteOffset: page * Page.byteCount + offset,
                        as: UInt64.self)
                }
                state.dirty.insert(PageFrameNumber(UInt64(page)))
            }
        }
    }

    /// A number that depends on every byte of the memory, and on the registers.
    func fingerprint() -> UInt64 {
        state.withLock { state in
            state.memory.withUnsafeBytes { bytes in
                var sum = state.counter ^ state.accumulator << 1
                for offset in stride(from: 0, to: bytes.count, by: 8) {
                    sum = (sum ^ bytes.load(fromByteOffset: offset, as: UInt64.self))
                    sum = sum &* 0x9e37_79b9_7f4a_7c15
                    sum ^= sum >> 29
                }
                return sum
            }
        }
    }

    func compare(with expected: UInt64, after what: String) {
        guard fingerprint() == expected else { fatalError("the memory differs after \(what)") }
    }
}

/// The machine as a guest. It runs only when the emulator lets it, so there is nothing to pause.
extension Machine {
    func layout() -> GuestLayout { GuestLayout(pageCount: pageCount) }
    var dirtyTracking: (any DirtyTracking)? { self }
    func pause() {}
    func resume() {}

    func copyPages(_ runs: Span<PageRange>, into destination: inout MutableRawSpan) {
        destination.withUnsafeMutableBytes { bytes in
            state.withLock { state in
                var offset = 0
                for index in runs.indices {
                    let place = Machine.place(runs[index])
                    UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + place.count])
                        .copyBytes(from: state.memory[place])
                    offset += place.count
                }
            }
        }
    }

    func captureState() -> GuestState {
        let registers = state.withLock { [$0.counter, $0.accumulator] }
        let bytes = registers.flatMap { value in (0..<8).map { UInt8(value >> ($0 * 8) & 0xff) } }
        return GuestState(records: [GuestState.Record(kind: "registers", bytes: bytes)])
    }

    static func place(_ run: PageRange) -> Range<Int> {
        let first = Int(run.first.rawValue) * Page.byteCount
        return first..<first + Int(run.count) * Page.byteCount
    }

    // What follows is for reverts and restores.

    var startsZeroed: Bool { true }

    func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        guard layout == self.layout() else {
            throw GuestError(code: .sizeMismatch, message: "the machine has \(pageCount) pages")
        }
    }

    func writePages(_ runs: Span<PageRange>, from source: RawSpan) {
        source.withUnsafeBytes { bytes in
            state.withLock { state in
                var offset = 0
                for index in runs.indices {
                    let place = Machine.place(runs[index])
                    state.memory.replaceSubrange(place, with: bytes[offset..<offset + place.count])
                    offset += place.count
                }
            }
        }
    }

    func restoreState(_ newState: GuestState) throws(GuestError) {
        guard let bytes = newState.bytes(ofKind: "registers"), bytes.count == 16 else {
            throw GuestError(code: .stateRejected, message: "the checkpoint has no registers")
        }
        let values = [0, 8].map { first in
            (0..<8).reduce(UInt64(0)) { $0 | UInt64(bytes[first + $1]) << ($1 * 8) }
        }
        state.withLock { ($0.counter, $0.accumulator) = (values[0], values[1]) }
    }
}

/// Its dirty log. A log that has ended returns `unknown`, and is never mistaken for an empty one.
extension Machine: DirtyTracking {
    func start() -> DirtyLog {
        state.withLock { state in
            let log = DirtyLog()
            state.log = log
            state.dirty.removeAll()
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
            if state.log == log { state.log = nil }
        }
    }
}

/// Takes the checkpoints, and reverts to some of them.
func travel(_ machine: Machine, in repository: Repository) throws -> [(Checkpoint, UInt64)] {
    let session = try CaptureSession(of: machine, in: repository, lineage: "machine")
    defer { session.close() }
    var taken: [(Checkpoint, UInt64)] = []
    var pending: (capture: PendingCapture, fingerprint: UInt64)?
    for _ in 0..<checkpointCount {
        machine.run(100)
        let next = (try session.begin(), machine.fingerprint())
        // While this one is written, the machine has run for the next.
        if let pending {
            taken.append((try pending.capture.wait().checkpoint, pending.fingerprint))
        }
        pending = next
    }
    if let pending { taken.append((try pending.capture.wait().checkpoint, pending.fingerprint)) }
    print("checkpoints: \(taken.count)")
    var revertCount = 0
    for (checkpoint, fingerprint) in taken.reversed() where revertCount < 10 {
        try session.revert(to: checkpoint)
        machine.compare(with: fingerprint, after: "a revert")
        machine.run(1000)
        revertCount += 1
    }
    print("reverts: \(revertCount), the memory was equal each time")
    return taken
}

/// The machine goes another way from a checkpoint on.
func branch(_ machine: Machine, from parent: Checkpoint, in repository: Repository) throws
    -> Checkpoint
{
    let session = try CaptureSession(
        of: machine, in: repository, lineage: "branch", parent: parent)
    defer { session.close() }
    try session.revert(to: parent)
    machine.state.withLock { $0.accumulator ^= 1 }
    machine.run(100)
    let branched = try session.capture().checkpoint
    let pages = try repository.difference(from: parent, to: branched).reduce(0) { $0 + $1.count }
    print("branch: differs from its parent in 1 to 100 pages: \((1...100).contains(pages))")
    return branched
}

@main struct Emulator {
    static func main() throws {
        guard CommandLine.arguments.count == 2 else {
            fatalError("usage: emulator DIRECTORY")
        }
        let repository = try Repository.create(at: FilePath(CommandLine.arguments[1]))
        let machine = Machine()
        let taken = try travel(machine, in: repository)
        let branched = try branch(machine, from: taken[50].0, in: repository)

        let other = Machine()
        try repository.restore(branched, into: other)
        other.compare(with: machine.fingerprint(), after: "a restore")
        guard other.fingerprint() != taken[50].1 else {
            fatalError("the branch has the memory of its parent")
        }
        print("restore: the memory is equal")

        let report = try repository.verify()
        let (count, damaged) = (report.checkpointCount, report.findings.count)
        print("verified: \(count) checkpoints, \(damaged) damaged places")
        try repository.close()
    }
}
