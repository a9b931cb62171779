import Foundation
import Measuring

/// All results of one run, as in results.json; the report's only other source is SHORTFALLS.md.
struct Results: Codable {
    /// A count of `varve-counts`.
    struct Count: Codable {
        let name: String
        let value: Double
        let budget: Double
    }

    /// The state of the store at one moment of a long run.
    struct SoakPoint: Codable {
        let checkpoints: Double
        let byteCount: Double
        let kept: Double
    }

    let machine: Machine
    let isQuick: Bool
    var figures: [Figure]
    var counts: [Count] = []
    var soak: [SoakPoint] = []
    /// Lines of the cases on an emulated Xen.
    var xen: [String] = []

    /// Reads the figures that the suites appended; the last one of a name is used.
    init(figures path: String, isQuick: Bool) throws {
        let text = try String(contentsOfFile: path, encoding: .utf8)
        var all: [Figure] = []
        for line in text.split(separator: "\n") {
            let figure = try JSONDecoder().decode(Figure.self, from: Data(line.utf8))
            all.removeAll { $0.id == figure.id }
            all.append(figure)
        }
        figures = all
        self.isQuick = isQuick
        machine = Machine.here()
    }

    init(reading path: String) throws {
        self = try JSONDecoder().decode(
            Results.self, from: try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    func write(to path: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        try encoder.encode(self).write(to: URL(fileURLWithPath: path))
    }

    mutating func addCounts(_ path: String?) throws {
        guard let path else { return }
        counts = try JSONDecoder().decode(
            [Count].self, from: try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    /// Reads `checkpoints,seconds,bytes,kept`, as Scripts/soak writes it.
    mutating func addSoak(_ path: String?) throws {
        guard let path else { return }
        let text = try String(contentsOfFile: path, encoding: .utf8)
        soak = text.split(separator: "\n").dropFirst().compactMap { line in
            let fields = line.split(separator: ",").compactMap { Double($0) }
            guard fields.count == 4 else { return nil }
            return SoakPoint(checkpoints: fields[0], byteCount: fields[2], kept: fields[3])
        }
    }

    mutating func addXen(_ path: String?) throws {
        guard let path else { return }
        let text = try String(contentsOfFile: path, encoding: .utf8)
        xen = text.split(separator: "\n").map(String.init)
    }

    func figure(_ id: String) -> Figure? { figures.first { $0.id == id } }

    /// The figures of a suite, in the order in which they were measured.
    func suite(_ name: String) -> [Figure] { figures.filter { $0.suite == name } }
}

/// Where and when the run took place.
struct Machine: Codable {
    let date: String
    let commit: String
    let processor: String
    let coreCount: Int
    let memoryByteCount: Double
    let kernel: String
    let system: String
    let swift: String
    /// Load over the last minute when the report was created: other work on the machine.
    let load: Double
    /// The origin of the pages.
    let pages: String
    /// Versions of the peer programs.
    let programs: [String]

    static func here() -> Machine {
        func first(_ arguments: [String]) -> String {
            let output = (try? Child.run(arguments).output) ?? ""
            return output.split(separator: "\n").first.map(String.init) ?? "unknown"
        }
        func field(_ path: String, _ name: String) -> String {
            let text = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
            let line = text.split(separator: "\n").first { $0.hasPrefix(name) }
            let value = line?.split(separator: line?.contains(":") == true ? ":" : "=").last
            return value.map { $0.trimmingCharacters(in: .whitespaces.union(["\""])) } ?? "unknown"
        }
        let formatter = DateFormatter()
        formatter.locale = Locale(identifier: "en_GB")
        formatter.timeZone = TimeZone(identifier: "UTC")
        formatter.dateFormat = "d MMMM yyyy, HH:mm"
        let isDirty = !((try? Child.run(["git", "status", "--porcelain"]).output) ?? "").isEmpty
        let memory = field("/proc/meminfo", "MemTotal").split(separator: " ").first
        let load = (try? String(contentsOfFile: "/proc/loadavg", encoding: .utf8)) ?? "0"
        let programs = [
            ["zstd", "--version"], ["b3sum", "--version"], ["openssl", "version"],
            ["restic", "version"], ["borg", "--version"], ["casync", "--version"],
        ]
        return Machine(
            date: formatter.string(from: Date()) + " UTC",
            commit: first(["git", "rev-parse", "--short=12", "HEAD"])
                + (isDirty ? " and changes that are not committed" : ""),
            processor: field("/proc/cpuinfo", "model name"),
            coreCount: ProcessInfo.processInfo.activeProcessorCount,
            memoryByteCount: (memory.flatMap { Double($0) } ?? 0) * 1024,
            kernel: first(["uname", "-sr"]), system: field("/etc/os-release", "PRETTY_NAME"),
            swift: first(["swift", "--version"]),
            load: load.split(separator: " ").first.flatMap { Double($0) } ?? 0,
            pages: GuestContent.source,
            programs: programs.filter { Child.exists($0[0]) }.map(first))
    }
}
