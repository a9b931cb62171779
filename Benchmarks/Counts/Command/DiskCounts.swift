import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Glibc
import GuestModel
import LinuxGuest
import PackStore
import Synchronization
import SystemPackage
import VarveTestSupport

// What captures of large disks cost: memory of the process, bytes read, time. The disks are
// generated: each block has content of its own that compresses to a few bytes, so that a terabyte
// fits a small store.

/// The disks of a guest, generated.
private final class GeneratedDisks: DiskGroup {
    struct State: Sendable {
        /// How often each block was changed; the others were not.
        var versions: [UInt64: UInt64] = [:]
        /// The blocks changed since the last cut.
        var changed: [BlockRange] = []
    }

    let disk: GuestDisk
    let stored: [BlockRange]
    private let state = Mutex(State())
    private let random = Mutex(SeededGenerator(seed: 7))

    /// - Parameters:
    ///   - byteCount: the disk's size.
    ///   - held: blocks that are not zero, in pieces spread over the disk.
    init(byteCount: UInt64, held: UInt64, pieces: UInt64) {
        disk = GuestDisk(name: "xvda", byteCount: byteCount)
        let distance = disk.blockCount / pieces
        stored = (0..<pieces).map { $0 * distance..<$0 * distance + held / pieces }
    }

    /// Changes blocks that are not zero, each in another place.
    func change(_ count: Int) {
        let blocks = random.withLock { random in
            var blocks: Set<UInt64> = []
            while blocks.count < count {
                let piece = stored[Int.random(in: stored.indices, using: &random)]
                blocks.insert(UInt64.random(in: piece, using: &random))
            }
            return blocks
        }
        state.withLock { state in
            state.changed = blocks.sorted().map { $0..<$0 + 1 }
            for block in blocks { state.versions[block, default: 0] += 1 }
        }
    }

    func disks() -> [GuestDisk] { [disk] }

    func prepareCut() -> any DiskCut { Cut(group: self, state: state.withLock { $0 }) }

    func standingCut(_ name: String) -> (any DiskCut)? { nil }

    private final class Cut: DiskCut {
        let group: GeneratedDisks
        let state: State
        let disks: [GuestDisk]

        init(group: GeneratedDisks, state: State) {
            self.group = group
            self.state = state
            disks = [group.disk]
        }

        var name: String { "" }
        func cut(within budget: Duration) -> DiskCutTimes { DiskCutTimes() }
        func release() {}
        func storedBlocks(ofDisk index: Int) -> [BlockRange] { group.stored }

        func changedBlocks(ofDisk index: Int, since earlier: any DiskCut) -> [BlockRange]? {
            state.changed
        }

        func read(
            _ blocks: BlockRange, ofDisk index: Int,
            into destination: UnsafeMutableRawBufferPointer
        ) {
            destination.initializeMemory(as: UInt8.self, repeating: 0)
            for (place, block) in blocks.enumerated() {
                let start = place * Page.byteCount
                destination.storeBytes(of: block + 1, toByteOffset: start, as: UInt64.self)
                destination.storeBytes(
                    of: state.versions[block] ?? 0, toByteOffset: start + 8, as: UInt64.self)
            }
        }
    }
}

/// Memory of this process that is not a mapped file's: sampled on a thread of its own.
private final class PrivateMemory: Sendable {
    private let peak = Atomic(0)
    private let isEnded = Atomic(false)
    private let thread = Mutex<Threads.Thread?>(nil)

    init() throws {
        let started = try Threads.Thread { [self] in
            while !isEnded.load(ordering: .relaxed) {
                peak.max(PrivateMemory.now, ordering: .relaxed)
                usleep(2000)
            }
        }
        thread.withLock { $0 = started }
    }

    /// What it is now, in bytes.
    static var now: Int { Int(field("RssAnon:", of: "/proc/self/status")) << 10 }

    /// The most since the last call, in bytes.
    func take() -> Int {
        max(peak.exchange(0, ordering: .relaxed), PrivateMemory.now)
    }

    func end() {
        isEnded.store(true, ordering: .relaxed)
        thread.withLock { $0 }?.join()
    }
}

/// A number in a file of /proc; 0 if there is none.
private func field(_ name: String, of path: String) -> UInt64 {
    guard let file = fopen(path, "r") else { return 0 }
    defer { fclose(file) }
    var line = [CChar](repeating: 0, count: 256)
    while fgets(&line, 256, file) != nil {
        let text = String(
            decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        guard text.hasPrefix(name) else { continue }
        return UInt64(text.dropFirst(name.count).filter(\.isNumber)) ?? 0
    }
    return 0
}

/// What one disk costs.
struct DiskCounts {
    /// Size of the disk in bytes.
    let byteCount: UInt64
    /// How much of it is not zero, in bytes.
    let heldByteCount: UInt64
    /// Most memory of the first capture, beyond what the process had.
    private(set) var firstPeak = 0
    /// Most memory of a later capture, beyond what the process had before the first.
    private(set) var peak = 0
    /// Bytes that a later capture read by system calls, on average.
    private(set) var readByteCount = 0
    private(set) var firstTime = Duration.zero
    /// The median of the later captures' times.
    private(set) var time = Duration.zero

    private static let changedCount = 1000
    private static let captureCount = 20

    /// Takes a first checkpoint, and more after 1,000 changes of a block each.
    init(byteCount: UInt64, heldByteCount: UInt64) throws {
        self.byteCount = byteCount
        self.heldByteCount = heldByteCount
        let directory = TemporaryDirectory()
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = ProcessMemory()
        _ = try guest.allocate(byteCount: 1 << 20)
        let disks = GeneratedDisks(
            byteCount: byteCount, held: heldByteCount / UInt64(Page.byteCount), pieces: 64)
        var options = CaptureOptions()
        options.workerCount = 2
        let memory = try PrivateMemory()
        defer { memory.end() }
        let before = memory.take()
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "disk", disks: disks, options: options)
        let start = ContinuousClock.now
        _ = try session.capture()
        firstTime = ContinuousClock.now - start
        firstPeak = memory.take() - before
        // The first one gives memory back after it has ended; a second one ends after that.
        disks.change(DiskCounts.changedCount)
        _ = try session.capture()
        _ = memory.take()
        var times: [Duration] = []
        let read = field("rchar:", of: "/proc/self/io")
        for _ in 0..<DiskCounts.captureCount {
            disks.change(DiskCounts.changedCount)
            let start = ContinuousClock.now
            _ = try session.capture()
            times.append(ContinuousClock.now - start)
        }
        readByteCount =
            Int(field("rchar:", of: "/proc/self/io") - read) / DiskCounts.captureCount
        peak = memory.take() - before
        time = times.sorted()[times.count / 2]
        session.close()
    }

    /// Counts captures of a disk of 4 TiB against those of a small one.
    static func count(_ budgets: inout Budgets) throws {
        let small = try DiskCounts(byteCount: 256 << 20, heldByteCount: 256 << 20)
        let large = try DiskCounts(byteCount: 4 << 40, heldByteCount: 1 << 30)
        budgets.add(
            "disk of 4 TiB: MiB of private memory of a capture beyond a disk of 256 MiB",
            max(0, large.peak - small.peak) >> 20, atMost: 64)
        budgets.add(
            "disk of 4 TiB: KiB read in a capture of 1,000 blocks", large.readByteCount >> 10,
            atMost: 1024)
    }

    /// A line for a person.
    var line: String {
        let mib = { (count: Int) in "\(count >> 20) MiB" }
        return "disk of \(byteCount >> 30) GiB holding \(heldByteCount >> 30) GiB: "
            + "first \(mib(firstPeak)), \(firstTime); then \(mib(peak)), "
            + "\(readByteCount >> 10) KiB read, \(time)"
    }
}
