import Foundation
import Testing
import VarveTestSupport

/// The built command line tool, run as by a user.
enum Tool {
    struct Result {
        let status: Int32
        let output: Data
        let error: String

        init(_ end: ProcessEnd) {
            (status, output) = (end.status, end.output)
            error = String(decoding: end.error, as: UTF8.self)
        }

        var text: String { String(decoding: output, as: UTF8.self) }

        /// The lines of the output as JSON objects.
        var objects: [[String: Any]] {
            get throws {
                try text.split(separator: "\n").map { line in
                    let value = try JSONSerialization.jsonObject(with: Data(line.utf8))
                    return try #require(value as? [String: Any])
                }
            }
        }
    }

    /// Its path: VARVE_CLI, which Scripts/test sets.
    static let path = ProcessInfo.processInfo.environment["VARVE_CLI"]

    /// True if it can be run; otherwise prints the reason, once.
    static let isBuilt: Bool = {
        if let path, FileManager.default.isExecutableFile(atPath: path) { return true }
        noteSkipped("skipped, the command line tool: VARVE_CLI does not name it; use Scripts/test")
        return false
    }()

    static func start(_ arguments: [String], input: Any? = nil) throws -> (Process, Pipe, Pipe) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(path))
        process.arguments = arguments
        let (output, error) = (Pipe(), Pipe())
        process.standardOutput = output
        process.standardError = error
        process.standardInput = input ?? FileHandle.nullDevice
        try process.runWatched()
        return (process, output, error)
    }

    /// Runs it until it ends.
    @discardableResult
    static func run(_ arguments: String..., input: Any? = nil) throws -> Result {
        try run(arguments, input: input)
    }

    /// Runs it until it ends.
    @discardableResult
    static func run(_ arguments: [String], input: Any? = nil) throws -> Result {
        let (process, output, error) = try start(arguments, input: input)
        return Result(process.waitForEnd(output, error))
    }

    /// Runs a prepared process, without input, until it ends.
    static func finish(_ process: Process) throws -> Result { Result(try process.runToEnd()) }
}

/// Random images from a seed.
enum Images {
    /// Pages of all kinds: zero, equal, compressible and not.
    static func make(pages: Int, _ random: inout SeededGenerator) -> Data {
        var image = Data(count: pages * 4096)
        for page in 0..<pages { fill(&image, page, &random) }
        return image
    }

    /// Changes some pages.
    static func change(_ image: Data, pages: Int, _ random: inout SeededGenerator) -> Data {
        var image = image
        for _ in 0..<pages {
            fill(&image, Int.random(in: 0..<image.count / 4096, using: &random), &random)
        }
        return image
    }

    private static func fill(_ image: inout Data, _ page: Int, _ random: inout SeededGenerator) {
        let kind = Int.random(in: 0..<4, using: &random)
        if kind == 0 { return }
        var words = [UInt64](repeating: UInt64(kind == 1 ? random.next() % 3 : 9), count: 512)
        if kind >= 2 {
            for index in 0..<(kind == 2 ? 512 : 64) { words[index] = random.next() }
        }
        words.withUnsafeBytes { image.replaceSubrange(page * 4096..<(page + 1) * 4096, with: $0) }
    }
}
