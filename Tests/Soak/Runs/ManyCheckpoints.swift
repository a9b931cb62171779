import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Glibc
import GuestModel
import PackStore
public import SystemPackage
import VarveTestSupport

/// A store with very many checkpoints, and the cost of commands on it.
public struct ManyCheckpoints: Sendable {
    /// The cost of one command.
    public struct Cost: Sendable {
        /// The command's arguments.
        public let arguments: [String]
        /// Its exit code; -1 if a signal ended it.
        public let status: Int32
        /// Milliseconds until it ended.
        public let milliseconds: Double
        /// Memory at its peak, KiB.
        public let residentKibibytes: Int
    }

    private static let pageCount: UInt64 = 64

    private let path: FilePath
    private let checkpointCount: Int
    private let seed: UInt64

    /// Prepares a store in a directory that is empty or does not exist.
    public init(at path: FilePath, checkpointCount: Int, seed: UInt64) {
        self.path = path
        self.checkpointCount = checkpointCount
        self.seed = seed
    }

    /// Takes the checkpoints: of two lineages, every tenth of `db` and the others of `web`, with
    /// two changed pages each; every hundredth has a label.
    ///
    /// Nothing is synced, so each checkpoint takes a fraction of a millisecond.
    public func make() throws {
        try Repository.create(at: path).close()
        let repository = try Repository.open(
            at: path, .writing, files: VolatileFiles(PosixFiles(root: path)))
        var random = SeededGenerator(seed: seed)
        let guests = (["web", "db"] as [LineageName]).map { lineage in
            (SimulatedGuest(layout: GuestLayout(pageCount: Int(Self.pageCount))), lineage)
        }
        let sessions = try guests.map { guest, lineage in
            try CaptureSession(of: guest, in: repository, lineage: lineage)
        }
        for number in 0..<checkpointCount {
            let which = number % 10 == 9 ? 1 : 0
            for _ in 0..<2 {
                let frame = UInt64.random(in: 0..<Self.pageCount, using: &random)
                let words = (0..<Page.byteCount / 8).map { $0 < 8 ? random.next() : 0 }
                guests[which].0.with { $0.write(frame, words.withUnsafeBytes { Array($0) }) }
            }
            _ = try sessions[which].capture(
                label: number % 100 == 50 ? try Label("at-\(number)") : nil)
        }
        for session in sessions { session.close() }
        try repository.close()
    }

    /// Runs a command, and returns its time and memory; its output is discarded.
    public static func cost(of executable: String, _ arguments: [String]) throws -> Cost {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0)
        var vector = ([executable] + arguments).map { strdup($0) } + [nil]
        defer { for text in vector { free(text) } }
        var process: pid_t = 0
        let start = ContinuousClock.now
        let code = posix_spawn(&process, executable, &actions, nil, &vector, environ)
        guard code == 0 else { throw Errno(rawValue: code) }
        var status: Int32 = 0
        var usage = rusage()
        while wait4(process, &status, 0, &usage) < 0 {
            guard errno == EINTR else { throw Errno(rawValue: errno) }
        }
        return Cost(
            arguments: arguments, status: status & 0x7f == 0 ? (status >> 8) & 0xff : -1,
            milliseconds: (ContinuousClock.now - start) / .milliseconds(1),
            residentKibibytes: usage.ru_maxrss)
    }
}
