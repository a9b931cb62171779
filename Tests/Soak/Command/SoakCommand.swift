import Glibc
import SoakRuns
import SystemPackage

/// Runs of hours where the tests take seconds; Scripts/soak builds it.
@main
struct SoakCommand {
    private static let usage = """
        usage: varve-soak walk STEPS [SEED]
               varve-soak store CHECKPOINTS DIRECTORY CSV [SEED]
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

    /// Prints at once, also into a file.
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
}
