import Foundation
import Glibc

/// Resources used by a program that ended.
public struct ChildResult: Sendable {
    /// From its start to its end.
    public let seconds: Double
    /// Of all its processes.
    public let cpuSeconds: Double
    /// The largest resident set of the largest of its processes.
    ///
    /// It begins with the resident set of this process at the start: measure others from a small
    /// process.
    public let peakByteCount: Int
    /// Its output; empty unless requested.
    public let output: String
}

/// Another program, run until it ends.
public enum Child {
    /// A program that failed.
    public struct Failure: Error, CustomStringConvertible {
        /// The program, and its output.
        public let description: String

        /// The description.
        public init(description: String) {
            self.description = description
        }
    }

    /// True if a program of that name is on the path.
    public static func exists(_ name: String) -> Bool {
        let paths = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        return paths.split(separator: ":").contains { access("\($0)/\(name)", X_OK) == 0 }
    }

    /// Runs a program, found on the path.
    ///
    /// - Parameters:
    ///   - arguments: the program's name first.
    ///   - input: a file that is its standard input.
    ///   - environment: added to this process's.
    ///   - output: a file for its standard output and error; nil: the output is returned.
    public static func run(
        _ arguments: [String], input: String = "/dev/null", environment: [String: String] = [:],
        output: String? = nil
    ) throws -> ChildResult {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        let log = output ?? NSTemporaryDirectory() + "/varve-benchmark-\(UUID().uuidString)"
        posix_spawn_file_actions_addopen(&actions, 0, input, O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
        let merged = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        var names = arguments.map { strdup($0) } + [nil]
        var variables = merged.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer {
            for text in names + variables { free(text) }
        }
        var pid: pid_t = 0
        let start = ContinuousClock.now
        let code = posix_spawnp(&pid, arguments[0], &actions, nil, &names, &variables)
        guard code == 0 else {
            throw Failure(description: "\(arguments[0]): \(String(cString: strerror(code)))")
        }
        var status: Int32 = 0
        var usage = rusage()
        while wait4(pid, &status, 0, &usage) < 0 {
            guard errno == EINTR else { throw Failure(description: "wait4: errno \(errno)") }
        }
        let seconds = (ContinuousClock.now - start).seconds
        var text = ""
        if output == nil {
            let bytes = FileManager.default.contents(atPath: log) ?? Data()
            text = String(bytes: bytes, encoding: .utf8) ?? ""
            unlink(log)
        }
        guard status == 0 else {
            throw Failure(
                description: "\(arguments.joined(separator: " ")): status \(status): "
                    + text.suffix(500))
        }
        return ChildResult(
            seconds: seconds, cpuSeconds: usage.ru_utime.seconds + usage.ru_stime.seconds,
            peakByteCount: Int(usage.ru_maxrss) << 10, output: text)
    }

    /// Bytes on the disk of all files below a directory.
    public static func byteCount(below directory: String) throws -> Int {
        let output = try run(["du", "-s", "-B1", directory]).output
        guard let count = Int(output.prefix { $0.isNumber }) else {
            throw Failure(description: "du: \(output)")
        }
        return count
    }
}

extension timeval {
    fileprivate var seconds: Double { Double(tv_sec) + Double(tv_usec) / 1_000_000 }
}

/// This process's memory.
public enum ResidentMemory {
    /// Bytes resident now.
    public static var now: Int { field("VmRSS:") }

    /// The largest resident size since `resetPeak`.
    public static var peak: Int { field("VmHWM:") }

    /// Resident bytes that are pages of files, including programs and libraries.
    public static var mappedFiles: Int { field("RssFile:") }

    /// Sets the peak to the present size.
    public static func resetPeak() {
        let file = open("/proc/self/clear_refs", O_WRONLY)
        guard file >= 0 else { return }
        _ = write(file, "5", 1)
        close(file)
    }

    private static func field(_ name: String) -> Int {
        let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix(name) }
        return Int(line?.split(whereSeparator: { !$0.isNumber }).first ?? "0").map { $0 << 10 } ?? 0
    }

    /// Bytes available without swapping.
    public static var available: Int {
        let text = (try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8)) ?? ""
        let line = text.split(separator: "\n").first { $0.hasPrefix("MemAvailable:") }
        return Int(line?.split(whereSeparator: { !$0.isNumber }).first ?? "0").map { $0 << 10 } ?? 0
    }
}
