import Foundation
import Measuring

/// A program that stores images: Varve's, or another.
protocol ImageTool {
    var name: String { get }
    /// Where it stores them.
    var repository: String { get }
    var isSubject: Bool { get }
    /// Stores an image as the newest of one history.
    func takeIn(_ image: String) throws -> ChildResult
    /// Writes the newest image to /dev/null.
    func bringBack() throws -> ChildResult
}

extension ImageTool {
    var isSubject: Bool { false }
}

/// All tools that are installed, each with a new repository.
func makeTools(in directory: String) throws -> [any ImageTool] {
    var tools: [any ImageTool] = [try Varve(in: directory)]
    if Child.exists("restic") { tools.append(try Restic(in: directory)) }
    if Child.exists("borg") {
        tools.append(try Borg(in: directory, isFixed: true))
        tools.append(try Borg(in: directory, isFixed: false))
    }
    if Child.exists("casync") { tools.append(try Casync(in: directory)) }
    return tools
}

/// This library's command line tool.
private struct Varve: ImageTool {
    let name = "varve"
    let repository: String
    let isSubject = true

    init(in directory: String) throws {
        repository = directory + "/varve"
        _ = try Child.run([Settings.tool, "init", repository])
    }

    func takeIn(_ image: String) throws -> ChildResult {
        try Child.run([Settings.tool, "import", repository, image, "--lineage", "guest"])
    }

    func bringBack() throws -> ChildResult {
        try Child.run([Settings.tool, "export", repository, "guest", "-"], output: "/dev/null")
    }
}

/// restic, reading standard input.
private struct Restic: ImageTool {
    let name = "restic"
    let repository: String
    private let environment: [String: String]

    init(in directory: String) throws {
        repository = directory + "/restic"
        environment = [
            "RESTIC_PASSWORD": "benchmark", "RESTIC_REPOSITORY": repository,
            "RESTIC_CACHE_DIR": directory + "/restic-cache",
        ]
        _ = try Child.run(["restic", "init"], environment: environment)
    }

    func takeIn(_ image: String) throws -> ChildResult {
        try Child.run(
            ["restic", "backup", "--quiet", "--stdin", "--stdin-filename", "image"],
            input: image, environment: environment)
    }

    func bringBack() throws -> ChildResult {
        try Child.run(
            ["restic", "dump", "--quiet", "latest", "/image"], environment: environment,
            output: "/dev/null")
    }
}

/// borg, reading standard input: with its default chunks, or with 4 KiB chunks and zstd 1.
private final class Borg: ImageTool {
    let name: String
    let repository: String
    private let options: [String]
    private let environment: [String: String]
    private var count = 0

    init(in directory: String, isFixed: Bool) throws {
        name = isFixed ? "borg, fixed 4 KiB, zstd 1" : "borg"
        repository = directory + (isFixed ? "/borg-fixed" : "/borg")
        options = isFixed ? ["--chunker-params", "fixed,4096", "--compression", "zstd,1"] : []
        environment = [
            "BORG_BASE_DIR": directory + "/borg-home",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        ]
        _ = try Child.run(["borg", "init", "-e", "none", repository], environment: environment)
    }

    func takeIn(_ image: String) throws -> ChildResult {
        count += 1
        return try Child.run(
            ["borg", "create"] + options + ["--stdin-name", "image"]
                + ["\(repository)::\(count)", "-"],
            input: image, environment: environment)
    }

    func bringBack() throws -> ChildResult {
        try Child.run(
            ["borg", "extract", "--stdout", "\(repository)::\(count)", "image"],
            environment: environment, output: "/dev/null")
    }
}

/// casync, with one store for all images.
private final class Casync: ImageTool {
    let name = "casync"
    let repository: String
    private var count = 0

    init(in directory: String) throws {
        repository = directory + "/casync"
        try FileManager.default.createDirectory(
            atPath: repository, withIntermediateDirectories: true)
    }

    func takeIn(_ image: String) throws -> ChildResult {
        count += 1
        return try Child.run([
            "casync", "make", "--store=\(repository)/default.castr",
            "\(repository)/\(count).caibx", image,
        ])
    }

    /// Into a file: casync accepts nothing else.
    func bringBack() throws -> ChildResult {
        let file = "\(repository)/back"
        defer { try? FileManager.default.removeItem(atPath: file) }
        return try Child.run([
            "casync", "extract", "--store=\(repository)/default.castr",
            "\(repository)/\(count).caibx", file,
        ])
    }
}
