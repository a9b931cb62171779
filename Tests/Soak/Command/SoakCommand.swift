import Glibc
import SoakRuns
import SystemPackage

/// Runs of hours of what the tests do in seconds; Scripts/soak builds it.
@main
struct SoakCommand {
    private static let usage = """
        usage: varve-soak walk STEPS [SEED]
               varve-soak store CHECKPOINTS DIRECTORY CSV [SEED]
               varve-soak prune CHECKPOINTS DIRECTORY [SEED]
               varve-soak many CHECKPOINTS DIRECTORY VARVE [SEED]
        """

    static func main() {
        let arguments = CommandLine.arguments.dropFirst().map { $0 }
        guard arguments.count >= 2, let count = Int(arguments[1]), count > 0 else { fail(usage, 2) }
        do {
            switch arguments[0] {
            case "walk" where arguments.count <= 3:
                try walk(count, seed: seed(arguments.dropFirst(2).first))
            case "store" where (4...5).contains(arguments.count):
                try store(
                    count, FilePath(arguments[2]), csv: arguments[3],
                    seed: seed(arguments.dropFirst(4).first))
            case "prune" where (3...4).contains(arguments.count):
                try prune(
                    count, FilePath(arguments[2]), seed: seed(arguments.dropFirst(3).first))
            case "many" where (4...5).contains(arguments.count):
                try many(
                    count, FilePath(arguments[2]), executable: arguments[3],
                    seed: seed(arguments.dropFirst(4).first))
            default: fail(usage, 2)
            }
        } catch {
            fail("\(error)", 1)
        }
    }

    private static func fail(_ text: String, _ code: Int32) -> Never {
        let line = Array("varve-soak: \(text)\n".utf8)
        _ = line.withUnsafeBytes { write(STDERR_FILENO, $0.baseAddress, $0.count) }
        exit(code)
    }

    /// Prints without buffering, also into a file.
    private static func say(_ text: String) {
        print(text)
        fflush(nil)
    }

    private static func seed(_ text: String?) -> UInt64 {
        guard let text else { return UInt64.random(in: 1...999_999_999) }
        guard let seed = UInt64(text) else { fail(usage, 2) }
        return seed
    }

    private static func walk(_ count: Int, seed: UInt64) throws {
        say("walking \(count) steps, seed \(seed)")
        let start = ContinuousClock.now
        var walk = try RandomWalk(seed: seed)
        for step in 1...count {
            try walk.step()
            if step % 10_000 == 0 { say("\(step) steps, \(ContinuousClock.now - start)") }
        }
        try walk.checkAll()
        say("\(walk.summary) in \(ContinuousClock.now - start)")
    }

    private static func store(
        _ count: Int, _ path: FilePath, csv: String, seed: UInt64
    ) throws {
        say("taking \(count) checkpoints into \(path), seed \(seed)")
        let start = ContinuousClock.now
        let result = try StoreSoak(at: path, checkpointCount: count, seed: seed).run()
        guard let file = fopen(csv, "w") else { fail("\(csv) cannot be written", 1) }
        for line in result.lines { fputs(line + "\n", file) }
        fclose(file)
        say(
            "\(count) checkpoints in \(ContinuousClock.now - start), \(result.pruneCount) prunes "
                + "beside, \(result.restoredCount) restored equal, at most \(result.byteCountMax) "
                + "bytes; \(csv) has the size over time")
    }

    /// The cost of a prune after one checkpoint was forgotten, in a store and in larger ones.
    private static func prune(_ count: Int, _ path: FilePath, seed: UInt64) throws {
        let shapes = [
            (
                "the store",
                PruneScale.Shape(checkpointCount: count, pageCount: 16_384, writeCount: 100)
            ),
            (
                "10 times the checkpoints",
                PruneScale.Shape(checkpointCount: count * 10, pageCount: 16_384, writeCount: 100)
            ),
            (
                "10 times the guest's pages",
                PruneScale.Shape(checkpointCount: count, pageCount: 163_840, writeCount: 100)
            ),
            (
                "10 times the guest's pages and writes",
                PruneScale.Shape(checkpointCount: count, pageCount: 163_840, writeCount: 1_000)
            ),
        ]
        say("\(count) checkpoints and more in \(path), seed \(seed)")
        var first: (wall: Double, processor: Double)?
        for (number, (name, shape)) in shapes.enumerated() {
            let result = try PruneScale(at: path.appending("\(number)"), shape, seed: seed)
                .run(roundCount: 15)
            let milliseconds = result.median { $0.planMilliseconds + $0.executeMilliseconds }
            let processor = result.median { $0.processorMilliseconds }
            let base = first ?? (milliseconds, processor)
            first = base
            say(
                "\(name): \(result.byteCount >> 20) MiB, \(result.pageCount) pages, "
                    + "a capture \(Int(result.captureMicroseconds)) us\n"
                    + "  median prune \(rounded(milliseconds)) ms, "
                    + "\(rounded(milliseconds / base.wall)) times the first; processor "
                    + "\(rounded(processor)) ms, \(rounded(processor / base.processor)) times; "
                    + "\(Int(result.median { Double($0.readByteCount) })) bytes read, "
                    + "\(Int(result.median { Double($0.deadPageCount) })) pages died; the index "
                    + "rebuilt in \(Int(result.rebuildMilliseconds)) ms\n  all: "
                    + result.costs.map {
                        "(\(rounded($0.planMilliseconds)) + \(rounded($0.executeMilliseconds)) ms, "
                            + "\(rounded($0.processorMilliseconds)) ms, "
                            + "\($0.readByteCount >> 10) KiB, \($0.deadPageCount))"
                    }.joined(separator: ", "))
        }
    }

    /// The cost of commands on a store of many checkpoints, which is created if it does not exist.
    private static func many(
        _ count: Int, _ path: FilePath, executable: String, seed: UInt64
    ) throws {
        if access(path.appending("repository").string, F_OK) != 0 {
            say("making \(count) checkpoints in \(path), seed \(seed)")
            let start = ContinuousClock.now
            try ManyCheckpoints(at: path, checkpointCount: count, seed: seed).make()
            say("made in \(ContinuousClock.now - start)")
            // A command's peak memory would begin with that of this process, which is large now.
            execv("/proc/self/exe", CommandLine.unsafeArgv)
            fail("this program cannot be started again", 1)
        }
        let store = path.string
        // The first command updates the index, so it is not compared.
        let commands = [
            ["show", store, "web"], ["log", store, "-n", "10"], ["log", store],
            ["log", store, "--lineage", "db", "-n", "10"], ["show", store, "web"],
            ["show", store, "web~3"], ["show", store, "at-50"],
            ["diff", store, "web", "web~1"], ["stats", store], ["forget", store, "web~5"],
            ["prune", store], ["forget", store, "at-50"], ["prune", store, "--max-unused", "0"],
            ["verify", store, "--quick"], ["verify", store],
        ]
        for command in commands {
            let cost = try ManyCheckpoints.cost(of: executable, command)
            let words = command.map { $0 == store ? "STORE" : $0 }.joined(separator: " ")
            say(
                "\(words): \(rounded(cost.milliseconds)) ms, \(cost.residentKibibytes >> 10) MiB, "
                    + "exit \(cost.status)")
        }
    }

    private static func rounded(_ value: Double) -> Double { (value * 100).rounded() / 100 }
}
