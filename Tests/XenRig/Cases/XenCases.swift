import CheckpointStore
import Glibc
import Synchronization
import SystemPackage
import Varve
import XenGuest

/// The part of the cases that needs the library: run by cases.sh, in dom0.
///
///     XenCases compare DOMAIN STORE COUNT MILLISECONDS    checkpoints against naive copies
///     XenCases jump DOMAIN STORE COUNT SEED               reverts against naive copies
///     XenCases wake DOMAIN STORE COUNT SEED               reverts by pause: the guest continues
///     XenCases same DOMAIN STORE CHECKPOINT               a restored domain against its checkpoint
///     XenCases die DOMAIN STORE MOMENT                    SIGKILL at a moment of a capture
///     XenCases meanwhile DOMAIN STORE MOMENT COMMAND      a command at a moment of a capture
///     XenCases owner DOMAIN STORE COMMAND                 one owner; a log turned off by others
///     XenCases watch DOMAIN COMMAND                       downtimes while a command runs
///     XenCases epochs DOMAIN COUNT                        the same for epochs of libxenguest
///     XenCases churn DOMAIN COUNT                         effect of reading the log alone
///     XenCases kill DOMAIN PID                            its fate when PID is killed
///     XenCases death DOMAIN PID                           the same when PID dies by itself
///     XenCases ended DOMAIN MILLISECONDS                  that it ends within this time, and how
///     XenCases wrote STORE CHECKPOINT                     the guest's count of writes
///     XenCases written STORE LINEAGE                      every page as the guest wrote it
///     XenCases memory COMMAND...                          peak memory of a process
///     XenCases tee FILE                                   what busybox's tee does, 1 KiB at a time
@main
struct XenCases {
    static func main() {
        let words = Array(CommandLine.arguments.dropFirst())
        do {
            if words.count == 3, words[0] == "wrote" { return try wrote(words[1], words[2]) }
            if words.count == 3, words[0] == "written" { return try written(words[1], words[2]) }
            if words.count > 1, words[0] == "memory" { return try memory(Array(words[1...])) }
            if words.count == 2, words[0] == "tee" { return try tee(words[1]) }
            guard words.count >= 3, let domain = UInt32(words[1]) else {
                throw Failed("usage: see XenCases.swift")
            }
            let rest = Array(words[2...])
            switch (words[0], rest.count) {
            case ("compare", 3): try compare(domain, rest[0], number(rest[1]), number(rest[2]))
            case ("jump", 3): try jump(domain, rest[0], number(rest[1]), number(rest[2]))
            case ("wake", 3): try wake(domain, rest[0], number(rest[1]), number(rest[2]))
            case ("same", 2): try same(domain, rest[0], rest[1])
            case ("die", 2): try die(domain, rest[0], moment(rest[1]))
            case ("meanwhile", 3): try meanwhile(domain, rest[0], moment(rest[1]), rest[2])
            case ("owner", 2): try owner(domain, rest[0], rest[1])
            case ("watch", 1): try watch(domain, rest[0])
            case ("epochs", 1): try epochs(domain, number(rest[0]))
            case ("churn", 1): try churn(domain, number(rest[0]))
            case ("kill", 1): try death(domain, pid_t(number(rest[0])), kills: true)
            case ("death", 1): try death(domain, pid_t(number(rest[0])), kills: false)
            case ("ended", 1): try ended(domain, number(rest[0]))
            default: throw Failed("usage: see XenCases.swift")
            }
        } catch {
            print("XenCases: \(error)")
            exit(1)
        }
    }

    private static func number(_ text: String) throws -> Int {
        guard let number = Int(text) else { throw Failed("'\(text)' is no number") }
        return number
    }

    private static func moment(_ text: String) throws -> WatchedGuest.Moment {
        guard let moment = WatchedGuest.Moment(rawValue: text) else {
            throw Failed("'\(text)' is no moment")
        }
        return moment
    }

    static func open(_ domain: UInt32, pauseMode: XenPauseMode = .suspend) throws -> XenDomain {
        var options = XenDomain.Options()
        options.pauseMode = pauseMode
        options.guardCommand = ["/payload/varve", "xen", "guard"]
        return try XenDomain(domain, options: options)
    }

    /// Copies standard input to standard output and into a file.
    private static func tee(_ path: String) throws {
        let file = creat(path, 0o600)
        guard file >= 0 else { throw Failed("\(path): \(String(cString: strerror(errno)))") }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 18, alignment: 4096)
        defer { buffer.deallocate() }
        while true {
            let count = read(STDIN_FILENO, buffer.baseAddress, buffer.count)
            guard count > 0 else { return }
            for descriptor in [STDOUT_FILENO, file] {
                var done = 0
                while done < count {
                    let rest = UnsafeRawBufferPointer(rebasing: buffer[done..<count])
                    let written = write(descriptor, rest.baseAddress, rest.count)
                    guard written > 0 else { throw Failed("tee: a write failed") }
                    done += written
                }
            }
        }
    }

    // MARK: - Cases

    /// Each checkpoint of a guest that writes all the time equals a full copy made in its pause.
    private static func compare(
        _ domain: UInt32, _ store: String, _ count: Int, _ milliseconds: Int
    ) throws {
        let repository = try Repository.open(at: FilePath(store), .writing)
        let naive = try NaiveCopy(domain)
        let base = try open(domain)
        let guest = WatchedGuest(base) { if $0 == .copied { try naive.refresh() } }
        let session = try CaptureSession(of: guest, in: repository, lineage: "compare")
        var figures = Figures()
        var due = ContinuousClock.now
        for index in 0..<count {
            while ContinuousClock.now < due { usleep(1000) }
            due = ContinuousClock.now + .milliseconds(milliseconds)
            let result = try session.capture(
                label: index % 10 == 0 ? try Label("compare-\(index)") : nil)
            var wrong = try naive.differences(from: result.checkpoint, in: repository)
            if index % 20 == 0 {
                wrong += try naive.differingContents(of: result.checkpoint, in: repository)
            }
            guard wrong.isEmpty else {
                throw Failed(
                    "checkpoint \(index): \(wrong.count) pages differ from the full copy, first "
                        + "\(wrong.prefix(5)); \(naive.changedCount) changed, "
                        + "\(result.dirtyPageCount) dirty")
            }
            if index > 0 {
                figures.dirty.append(result.dirtyPageCount)
                figures.changed.append(naive.changedCount)
                figures.bytes.append(result.checkpoint.addedByteCount)
            }
        }
        session.close()
        try repository.close()
        print("# \(count) checkpoints of \(naive.pageCount) pages, each equal to a full copy")
        print("# \(figures.line)")
    }

    /// Reverts to checkpoints in any order; after each, all memory is equal to the checkpoint's.
    private static func jump(
        _ domain: UInt32, _ store: String, _ count: Int, _ seed: Int
    ) throws {
        let repository = try Repository.open(at: FilePath(store), .writing)
        let naive = try NaiveCopy(domain)
        let base = try open(domain)
        let guest = WatchedGuest(base) { if $0 == .copied { try naive.refresh() } }
        let session = try CaptureSession(of: guest, in: repository, lineage: "jump")
        var checkpoints: [Checkpoint] = []
        for _ in 0..<6 {
            checkpoints.append(try session.capture().checkpoint)
            usleep(400_000)
        }
        print("# seed \(seed)")
        var random = Draws(seed)
        var written: [Int] = []
        for index in 0..<count {
            let target = checkpoints[random.next(below: checkpoints.count)]
            let result = try session.revert(to: target)
            let wrong = try naive.differences(from: target, in: repository)
            guard wrong.isEmpty else {
                throw Failed("revert \(index): \(wrong.count) pages differ, first \(wrong[0])")
            }
            written.append(result.writtenPageCount)
            usleep(300_000)
            // Captures continue from the reverted state.
            if index % 5 == 4 { checkpoints.append(try session.capture().checkpoint) }
        }
        session.close()
        try repository.close()
        print(
            "# \(count) reverts, each equal to its checkpoint; pages written p50 "
                + "\(written.sorted()[count / 2]), max \(written.max() ?? 0)")
    }

    /// Reverts to checkpoints by pause, in any order; after each the guest continues writing.
    ///
    /// Memory is not compared: Xen may deliver an event to a paused domain after the copy. The
    /// guest checks its own pages.
    private static func wake(
        _ domain: UInt32, _ store: String, _ count: Int, _ seed: Int
    ) throws {
        let repository = try Repository.open(at: FilePath(store), .writing)
        let guest = try open(domain, pauseMode: .pause)
        let session = try CaptureSession(of: guest, in: repository, lineage: "wake")
        var random = Draws(seed)
        var checkpoints: [Checkpoint] = []
        for _ in 0..<6 {
            checkpoints.append(try session.capture().checkpoint)
            usleep(100_000 + UInt32(random.next(below: 100_000)))
        }
        print("# seed \(seed)")
        var waits: [Int] = []
        for index in 0..<count {
            let target = checkpoints[random.next(below: checkpoints.count)]
            try session.revert(to: target)
            // The revert emptied the log: a guest that stays asleep writes nothing.
            let start = ContinuousClock.now
            while try session.dirtyLog.map({ try guest.peekDirtyCount($0) }) ?? 0 < 200 {
                guard ContinuousClock.now - start < .seconds(20) else {
                    throw Failed(
                        "after revert \(index) the guest sleeps on; \(try vectors(domain))")
                }
                usleep(20_000)
            }
            waits.append(Int((ContinuousClock.now - start).milliseconds))
            usleep(UInt32(random.next(below: 300_000)))
        }
        session.close()
        try repository.close()
        waits.sort()
        print(
            "# \(count) reverts to checkpoints by pause; the guest had written 200 pages after "
                + "\(waits[count / 2]) ms, \(waits[count - 1]) at the latest")
    }

    /// The vectors that local APICs request and serve: what a sleeping guest waits for.
    private static func vectors(_ domain: UInt32) throws -> String {
        let context = try LibxenCalls().hvmContext(domain)
        func number(_ offset: Int, _ count: Int) -> Int {
            (0..<count).reduce(0) { $0 | Int(context[offset + $1]) << (8 * $1) }
        }
        var words: [String] = []
        var offset = 0
        while offset + 8 <= context.count {
            let start = offset + 8
            // struct hvm_hw_lapic_regs, LAPIC_REGS of xen/include/public/arch-x86/hvm/save.h.
            if number(offset, 2) == 6 {
                func vectors(_ base: Int) -> [Int] {
                    (0..<256).filter { vector in
                        let word = number(start + base + vector / 32 * 16, 4)
                        return word >> (vector % 32) & 1 == 1
                    }
                }
                words.append("requested \(vectors(0x200)), served \(vectors(0x100))")
            }
            offset = start + number(offset + 4, 4)
        }
        return words.joined(separator: "; ")
    }

    /// A restored domain that has not run yet has the checkpoint's memory.
    ///
    /// xl itself clears the special pages of parameters 1, 5, 6 and 17 (xg_sr_restore_x86_hvm.c).
    private static func same(_ domain: UInt32, _ store: String, _ name: String) throws {
        let repository = try Repository.open(at: FilePath(store), .reading)
        let checkpoint = try repository.checkpoint(named: name)
        let calls = try LibxenCalls()
        let cleared = Set(
            try [1, 5, 6, 17].map { (index: UInt32) in UInt(try calls.hvmParameter(domain, index)) }
        )
        let naive = try NaiveCopy(domain)
        try naive.refresh()
        let wrong = try naive.differences(from: checkpoint, in: repository).filter {
            !cleared.contains($0)
        }
        guard wrong.isEmpty else {
            throw Failed("\(wrong.count) pages differ from \(name), first \(wrong.prefix(5))")
        }
    }

    /// Dies at a moment of the second capture.
    private static func die(
        _ domain: UInt32, _ store: String, _ moment: WatchedGuest.Moment
    ) throws {
        try second(domain, store, moment) { kill(getpid(), SIGKILL) }
        throw Failed("still alive")
    }

    /// Runs a command at a moment of the second capture; prints the result.
    private static func meanwhile(
        _ domain: UInt32, _ store: String, _ moment: WatchedGuest.Moment, _ command: String
    ) throws {
        do {
            try second(domain, store, moment) {
                _ = try? ChildProcess(["sh", "-c", command]).wait()
            }
            print("outcome: published")
        } catch let error as CheckpointError {
            print("outcome: \(error.message)")
        }
    }

    private static func second(
        _ domain: UInt32, _ store: String, _ moment: WatchedGuest.Moment,
        _ body: @escaping @Sendable () -> Void
    ) throws {
        let repository = try Repository.open(at: FilePath(store), .writing)
        let armed = Armed()
        let guest = WatchedGuest(try open(domain)) { now in
            if now == moment, armed.fire() { body() }
        }
        var options = CaptureOptions()
        if moment == .precopy { options.pauseBudget = .nanoseconds(1) }
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "second", options: options)
        defer { session.close() }
        _ = try session.capture()
        usleep(300_000)
        armed.arm()
        _ = try session.capture()
    }
}

/// Numbers drawn from a seed.
struct Draws {
    private var state: UInt64

    init(_ seed: Int) { state = UInt64(truncatingIfNeeded: seed) }

    mutating func next(below count: Int) -> Int {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return Int(state >> 33) % count
    }
}

/// Fires once after it is armed.
final class Armed: Sendable {
    private let state = Atomic(0)

    func arm() { state.store(1, ordering: .releasing) }

    func fire() -> Bool {
        state.compareExchange(expected: 1, desired: 2, ordering: .acquiringAndReleasing).exchanged
    }
}

/// The results of a series of checkpoints.
struct Figures {
    var dirty: [Int] = []
    var changed: [Int] = []
    var bytes: [Int] = []

    var line: String {
        "dirty pages p50 \(middle(dirty)), max \(dirty.max() ?? 0); really changed p50 "
            + "\(middle(changed)); bytes p50 \(middle(bytes)), max \(bytes.max() ?? 0)"
    }

    private func middle(_ values: [Int]) -> Int {
        values.isEmpty ? 0 : values.sorted()[values.count / 2]
    }
}

extension Duration {
    var milliseconds: Double {
        Double(components.seconds) * 1000 + Double(components.attoseconds) / 1e15
    }
}
