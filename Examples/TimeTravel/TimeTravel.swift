import ArgumentParser
import Glibc
import Synchronization
import SystemPackage
import VarveCore

/// A database, checkpointed while it works, and reverted to any point.
@main
struct TimeTravel: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "timetravel",
        abstract: "Checkpoints a working SQLite database, and reverts it to any point.",
        discussion: """
            The database is a file on XFS or btrfs, which goes back together with the memory of \
            the process; on another file system it is in memory itself. Every revert is verified \
            by SQLite's integrity check, the row count that the checkpoint recorded, a ledger in \
            memory, and the Merkle root of the memory. Exit code 0 if all checks pass.
            """)

    @Option(help: "How long to take checkpoints.")
    var seconds = 10.0

    @Option(help: "Checkpoints a second.")
    var rate = 20.0

    @Option(help: "Where to put the database's file; by default beside a temporary repository.")
    var database: String?

    @Option(help: "Size of the memory in MiB of a database in memory.")
    var regionMib = 256

    @Option(help: "How many reverts to prove.")
    var reverts = 12

    @Option(help: "Repeats a run's choices.")
    var seed: UInt64?

    @Option(help: "Where to put the repository, which is kept; by default a temporary one is used.")
    var store: String?

    func validate() throws {
        guard seconds > 0, rate > 0, regionMib >= 8, reverts >= 1 else {
            throw ValidationError(
                "seconds, rate and reverts must be positive, and region-mib at least 8")
        }
    }

    func run() throws {
        do {
            try ProcessMemory.checkSupport()
            try Journey(self).run()
        } catch {
            Report.line("timetravel: \(error)")
            throw ExitCode.failure
        }
    }
}

/// Pseudo-random choices that a seed repeats.
///
/// SplitMix64.
struct SeededChoices: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

/// A directory that is removed with its contents, unless it is kept.
struct StorePlace: ~Copyable {
    let path: FilePath
    private let isTemporary: Bool

    /// A directory that is kept.
    init(keeping directory: String) {
        path = FilePath(directory)
        isTemporary = false
    }

    /// A new directory in another one.
    init(temporaryIn parent: String?) throws {
        isTemporary = true
        let base = parent ?? getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
        var name = Array("\(base)/varve-timetravel-XXXXXX".utf8CString)
        guard mkdtemp(&name) != nil else { throw DemoError("cannot create a directory in \(base)") }
        path = FilePath(
            String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self))
    }

    deinit {
        guard isTemporary else { return }
        StorePlace.remove(path)
    }

    private static func remove(_ path: FilePath) {
        if let directory = opendir(path.string) {
            while let entry = readdir(directory) {
                let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                    String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                }
                if name != "." && name != ".." { remove(path.appending(name)) }
            }
            closedir(directory)
            rmdir(path.string)
        } else {
            unlink(path.string)
        }
    }
}
