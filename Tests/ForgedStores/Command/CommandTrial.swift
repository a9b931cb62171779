import Forgeries
import Foundation
import Glibc
import SystemPackage

// Whole commands over forged stores: the tool itself is run, each time in its own process that may
// use 5 s of processor time. It must end with an exit code that the README names, never by a
// signal, and within the memory limit; verify and repair must agree, and a repaired store must be
// whole.

/// Commands run on one forged store.
struct CommandTrial {
    /// The result of a command.
    private struct End {
        var status: Int32?
        var peakKiB = 0
        var milliseconds = 0
    }

    private let tool: String
    private let directory: FilePath
    private(set) var complaints: [String] = []
    private(set) var commandCount = 0
    private(set) var isDamaged = false
    /// The slowest command and the one with the most memory.
    private(set) var slowest = (milliseconds: 0, command: "")
    private(set) var largest = (peakKiB: 0, command: "")

    private init(tool: String, directory: FilePath) {
        (self.tool, self.directory) = (tool, directory)
    }

    /// - Parameter directory: has the store `store`, and receives the exports.
    static func run(tool: String, in directory: FilePath) -> CommandTrial {
        var trial = CommandTrial(tool: tool, directory: directory)
        trial.read()
        trial.write()
        return trial
    }

    private mutating func read() {
        for command in [
            "log STORE", "log STORE --json", "log STORE -n 3 --lineage web", "show STORE web",
            "show STORE kept --json", "stats STORE", "diff STORE web mail",
            "diff STORE web~1 web --json", "export STORE web IMAGE --force",
            "export STORE mail IMAGE --force --format elf", "prune STORE --dry-run",
            "forget STORE --keep-last 1 --dry-run", "verify STORE --quick",
        ] {
            run(command)
        }
        let verified = run("verify STORE")
        let planned = run("repair STORE")
        isDamaged = verified != 0
        if (verified == 0) != (planned == 0) {
            complaints.append(
                "verify ended with \(words(verified)) and repair with \(words(planned))")
        }
    }

    private mutating func write() {
        run("import STORE PAGES --lineage new")
        run("label STORE new given")
        run("forget STORE mail~1")
        run("prune STORE --max-unused 0")
        // A store of which nothing tells what it is cannot be repaired.
        guard run("repair STORE --execute") == 0 else { return }
        if run("verify STORE") != 0 { complaints.append("after repair verify finds something") }
        if run("import STORE PAGES --lineage newer") != 0 {
            complaints.append("after repair nothing can be imported")
        }
        run("export STORE newer IMAGE --force")
        run("log STORE")
    }

    private func words(_ status: Int32?) -> String { status.map { "\($0)" } ?? "a signal" }

    // MARK: - One command

    /// - Returns: the exit code; nil if it was ended by a signal.
    @discardableResult
    private mutating func run(_ command: String) -> Int32? {
        let paths = [
            "STORE": directory.appending("store").string,
            "IMAGE": directory.appending("image").string,
            "PAGES": directory.appending("pages").string,
        ]
        let arguments = command.split(separator: " ").map { paths[String($0)] ?? String($0) }
        let end = CommandTrial.spawn(tool, arguments)
        commandCount += 1
        if end.milliseconds > slowest.milliseconds { slowest = (end.milliseconds, command) }
        if end.peakKiB > largest.peakKiB { largest = (end.peakKiB, command) }
        switch end.status {
        case 0, 1, 3: break
        case let code?: complaints.append("\(command): ended with \(code)")
        case nil:
            complaints.append("\(command): ended by a signal after \(end.milliseconds) ms")
        }
        if end.peakKiB > ForgedStoresCommand.memoryMax {
            complaints.append("\(command): \(end.peakKiB >> 10) MiB of memory")
        }
        return end.status
    }

    private static func spawn(_ tool: String, _ arguments: [String]) -> End {
        // The output is discarded; the shell sets the limit and becomes the command.
        let line = "ulimit -t \(ForgedStoresCommand.processorTimeMax); exec \"$@\" >/dev/null 2>&1"
        let words = ["sh", "-c", line, "sh", tool] + arguments
        var pointers = words.map { strdup($0) } + [nil]
        defer { for pointer in pointers { free(pointer) } }
        var process: pid_t = 0
        guard posix_spawn(&process, "/bin/sh", nil, nil, &pointers, environ) == 0 else {
            ForgedStoresCommand.fail("/bin/sh cannot be started")
        }
        var (status, usage) = (Int32(0), rusage())
        let start = ContinuousClock.now
        let deadline = Duration.seconds(ForgedStoresCommand.deadline)
        while wait4(process, &status, WNOHANG, &usage) == 0 {
            if ContinuousClock.now - start > deadline { kill(process, SIGKILL) }
            usleep(500)
        }
        let times = [usage.ru_utime, usage.ru_stime]
        return End(
            status: status & 0x7f == 0 ? status >> 8 & 0xff : nil, peakKiB: Int(usage.ru_maxrss),
            milliseconds: times.reduce(0) { $0 + $1.tv_sec * 1000 + $1.tv_usec / 1000 })
    }
}

extension ForgedStoresCommand {
    /// Runs the tool on forged stores.
    static func commands(_ stride: UInt64, _ seed: UInt64) throws {
        guard let tool = ProcessInfo.processInfo.environment["VARVE_CLI"] else {
            fail("VARVE_CLI does not name the tool")
        }
        var (storeCount, commandCount, damaged, failures) = (0, 0, 0, 0)
        var slowest = (milliseconds: 0, command: "")
        var largest = (peakKiB: 0, command: "")
        try chosen(stride, seed) { whole, forgeries, directory in
            say("each \(stride)th forgery from \(seed % stride): \(forgeries.count); seed \(seed)")
            let pages = Data((0..<16 * 4096).map { UInt8(truncatingIfNeeded: $0 / 4096) })
            try pages.write(to: URL(fileURLWithPath: directory.appending("pages").string))
            for (number, forgery) in forgeries.enumerated() {
                try forgery.store(from: whole).write(directory.appending("store"))
                let trial = CommandTrial.run(tool: tool, in: directory)
                storeCount += 1
                commandCount += trial.commandCount
                damaged += trial.isDamaged ? 1 : 0
                if trial.slowest.milliseconds > slowest.milliseconds { slowest = trial.slowest }
                if trial.largest.peakKiB > largest.peakKiB { largest = trial.largest }
                for complaint in trial.complaints {
                    say("FAILED \(number) (\(forgery.name)): \(complaint)")
                    failures += 1
                }
            }
        }
        say(
            "\(storeCount) stores, \(damaged) of them found damaged, \(commandCount) commands, "
                + "\(failures) failures")
        say("the slowest took \(slowest.milliseconds) ms of processors' time: \(slowest.command)")
        say("the largest had \(largest.peakKiB >> 10) MiB: \(largest.command)")
        if failures > 0 { exit(1) }
    }
}
