import Foundation
import Testing
import VarveTestSupport

/// Processes that are stopped (SIGSTOP) at each of many system calls: a reader never blocks a
/// writer, nor a writer a reader.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct StoppedProcessTests {
    private let directory = TemporaryDirectory()
    private var root: String { directory.path.string }

    private var variables: [String: String] { ["d": root] }

    private func shell(_ line: String) throws -> Tool.Result { try Tool.shell(line, variables) }

    private static let canStop: Bool = {
        let result = try? Tool.shell(
            "strace -f -qq -o /dev/null -e trace=openat "
                + "-e inject=openat:signal=SIGCONT:when=1 true")
        if result?.status == 0 { return true }
        noteSkipped("skipped, processes stopped at a call: strace cannot inject signals here")
        return false
    }()

    /// A store of two checkpoints, and a forgotten one.
    ///
    /// - Returns: the ID of the older one.
    @discardableResult
    private func makeStore() throws -> String {
        let made = try shell(
            """
            cd "$d" && rm -rf store && $varve init store && for i in 1 2 3; do \
            head -c 409600 /dev/urandom >image; $varve import store image --lineage web || exit 1; \
            done; $varve forget store web~2; head -c 409600 /dev/urandom >image2
            """)
        #expect(made.status == 0, "\(made.error)")
        let shown = try shell("cd \"$d\" && $varve show store web~1 --json").objects
        return try #require(shown.first?["id"] as? String)
    }

    /// Starts a command that stops at its n-th call of some kind.
    ///
    /// - Returns: the process to continue or kill; nil if it ended before.
    private func start(_ command: String, stopAt call: String, _ number: Int) throws -> Process? {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = [
            "-c",
            "cd '\(root)' && exec strace -f -qq -o /dev/null -e trace=\(call) "
                + "-e inject=\(call):signal=SIGSTOP:when=\(number) "
                + "'\(try #require(Tool.path))' \(command)",
        ]
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.runWatched()
        while process.isRunning {
            if let child = child(of: process), isStopped(child) { return process }
            usleep(2000)
        }
        process.waitUntilExit()
        return nil
    }

    private func child(of process: Process) -> pid_t? {
        let path = "/proc/\(process.processIdentifier)/task/\(process.processIdentifier)/children"
        let text = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
        return text.split(separator: " ").first.flatMap { pid_t($0) }
    }

    /// True if each of its threads is stopped, and not only briefly by the tracer.
    private func isStopped(_ process: pid_t) -> Bool {
        func states() -> [Character] {
            let tasks =
                (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/task"))
                ?? []
            return tasks.map { task in
                let path = "/proc/\(process)/task/\(task)/stat"
                let stat = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
                return stat.split(separator: ")").last?.first { $0 != " " } ?? "?"
            }
        }
        for _ in 0..<5 {
            let found = states()
            guard !found.isEmpty, found.allSatisfy({ $0 == "t" || $0 == "T" }) else {
                return false
            }
            usleep(2000)
        }
        return true
    }

    private func end(_ process: Process, continuing: Bool) throws {
        // Repeatedly: on a busy machine it may only have been waiting for the tracer when it seemed
        // to be stopped, and stop after it was continued.
        while process.isRunning {
            if let child = child(of: process) { kill(child, continuing ? SIGCONT : SIGKILL) }
            usleep(20_000)
        }
    }

    private static let calls = [
        "openat", "pread64", "fcntl", "flock", "fallocate", "pwrite64", "fdatasync", "ftruncate",
        "unlinkat", "renameat",
    ]

    /// The numbers of the calls at which a command is stopped: all if they are few, or a sample.
    private func numbers(_ count: Int) -> [Int] {
        count <= 3 ? Array(1..<(count + 1)) : [count / 3, count * 2 / 3, count - 1]
    }

    private func count(_ command: String, _ call: String) throws -> Int {
        let result = try shell(
            "cd \"$d\" && strace -f -qq -o trace -e trace=\(call) $varve \(command) >/dev/null; "
                + "grep -c '\(call)(' trace")
        return Int(result.text.split(separator: "\n").last ?? "") ?? 0
    }

    @Test(arguments: ["log store", "verify store"])
    func aStoppedReaderHoldsUpNoWriter(command: String) throws {
        guard StoppedProcessTests.canStop else { return }
        try makeStore()
        var stops = 0
        for isBehind in [false, true] {
            for call in StoppedProcessTests.calls {
                for number in numbers(try count(command, call)) {
                    if isBehind {
                        // As if a writer had died: the index lacks the last checkpoint, and its
                        // mark says that it may be damaged.
                        _ = try shell("echo damaged >\"$d/store/index/open\"")
                    }
                    guard let reader = try start(command, stopAt: call, number) else { continue }
                    stops += 1
                    let result = try shell(
                        """
                        cd "$d" && $varve import store image2 --lineage web && \
                        $varve forget store web && $varve prune store
                        """)
                    #expect(
                        result.status == 0,
                        "\(command) stopped at \(call) \(number): \(result.status) \(result.error)")
                    try end(reader, continuing: stops % 2 == 0)
                }
            }
        }
        print("\(command) was stopped at \(stops) places; writers went on at each")
        #expect(stops > 5)
        #expect(try shell("cd \"$d\" && $varve verify store").status == 0)
    }

    @Test(arguments: [
        "import store image2 --lineage web", "prune store --max-unused 0",
    ])
    func aStoppedWriterHoldsUpNoReader(command: String) throws {
        guard StoppedProcessTests.canStop else { return }
        let id = try makeStore()
        _ = try shell("cd \"$d\" && cp -a store whole")
        var stops = 0
        for call in StoppedProcessTests.calls {
            let count = try count(command, call)
            for number in numbers(count) {
                _ = try shell("cd \"$d\" && rm -rf store && cp -a whole store")
                guard let writer = try start(command, stopAt: call, number) else { continue }
                stops += 1
                let result = try shell(
                    """
                    cd "$d" && $varve log store --json >log && $varve verify store && \
                    $varve export store \(id) out --force
                    """)
                #expect(
                    result.status == 0,
                    "\(command) stopped at \(call) \(number): \(result.status) \(result.error)")
                try end(writer, continuing: stops % 2 == 0)
                let after = try shell("cd \"$d\" && $varve verify store && $varve log store")
                #expect(after.status == 0, "\(command), \(call) \(number): \(after.error)")
            }
        }
        print("\(command) was stopped at \(stops) places; readers went on at each")
        #expect(stops > 5)
    }
}
