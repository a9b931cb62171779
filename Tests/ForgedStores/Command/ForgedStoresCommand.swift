import Forgeries
import Foundation
import Glibc
import SystemPackage

/// Tries forged stores, each in a process that may crash: `varve-forged` starts itself for some
/// hundred of them, and continues after the one at which it crashed.
@main
struct ForgedStoresCommand {
    private static let usage = """
        usage: varve-forged all [STRIDE] [SEED]     each STRIDE-th forgery; 1: all
               varve-forged one STRIDE SEED NUMBER  one of these
               varve-forged write STRIDE SEED NUMBER  writes it to ./forged-store
               varve-forged corpus STRIDE SEED      writes inputs for Tests/StoreFuzz to ./corpus
               varve-forged commands STRIDE SEED    each STRIDE-th forgery; runs VARVE_CLI on it
        """
    /// Seconds of processor time for one store or command; more is a hang.
    static let processorTimeMax = 5
    /// Seconds for one store or command that waits for something; the machine may be busy.
    static let deadline = 300
    /// KiB of memory that one store or command may use.
    static let memoryMax = 200 << 10

    static func main() throws {
        let arguments = CommandLine.arguments.dropFirst().map { $0 }
        let numbers = arguments.dropFirst().compactMap { UInt64($0) }
        guard let mode = arguments.first, numbers.count == arguments.count - 1 else { fail(usage) }
        let stride = max(1, numbers.first ?? 1)
        let seed = numbers.dropFirst().first ?? 1
        switch (mode, numbers.count) {
        case ("all", 0...2): try all(stride, seed)
        case ("one", 3): try child(stride, seed, from: Int(numbers[2]), count: 1)
        case ("write", 3):
            try chosen(stride, seed) { whole, forgeries, _ in
                try forgeries[Int(numbers[2])].store(from: whole).write("forged-store")
            }
        case ("corpus", 2):
            try chosen(stride, seed) { whole, _, _ in try whole.writeCorpus("corpus") }
        case ("commands", 2): try commands(stride, seed)
        case ("child", 3): try child(stride, seed, from: Int(numbers[2]), count: .max)
        default: fail(usage)
        }
    }

    /// Prints without buffering: the process may crash.
    static func say(_ text: some StringProtocol) {
        FileHandle.standardOutput.write(Data((text + "\n").utf8))
    }

    static func fail(_ text: String) -> Never {
        FileHandle.standardError.write(Data("varve-forged: \(text)\n".utf8))
        exit(2)
    }

    /// The forgeries of a run: each STRIDE-th, from a start that the seed chooses.
    static func chosen(
        _ stride: UInt64, _ seed: UInt64, _ body: (ForgedStore, [Forgery], FilePath) throws -> Void
    ) throws {
        let base = FilePath(
            FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : "/tmp")
        let directory = base.appending("varve-forged-\(getpid())")
        try FileManager.default.createDirectory(
            atPath: directory.string, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: directory.string) }
        let path = directory.appending("whole")
        // The same store in each process of a run: packs have random IDs and times.
        let kept = FilePath("\(base)/varve-forged-\(seed)-\(getppid())")
        if FileManager.default.fileExists(atPath: kept.string) {
            try FileManager.default.copyItem(atPath: kept.string, toPath: path.string)
        } else {
            try WholeStore.make(at: path, seed: seed)
        }
        let whole = try ForgedStore(path)
        let all = Forgery.all(of: whole)
        let some = Swift.stride(from: Int(seed % stride), to: all.count, by: Int(stride))
        try body(whole, some.map { all[$0] }, directory)
    }

    private static func all(_ stride: UInt64, _ seed: UInt64) throws {
        let base = FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : "/tmp"
        let kept = FilePath("\(base)/varve-forged-\(seed)-\(getpid())")
        try WholeStore.make(at: kept, seed: seed)
        defer { try? FileManager.default.removeItem(atPath: kept.string) }
        let whole = try ForgedStore(kept)
        let count = Forgery.all(of: whole).count
        say("\(count) forgeries, each \(stride)th from \(seed % stride); seed \(seed)")
        var (next, failures, tried, damaged) = (0, 0, 0, 0)
        var slowest = (milliseconds: 0, name: "none")
        while true {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
            process.arguments = ["child", "\(stride)", "\(seed)", "\(next)"]
            let pipe = Pipe()
            process.standardOutput = pipe
            try process.run()
            let output = String(
                decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            process.waitUntilExit()
            // A process that was killed could not do it.
            try? FileManager.default.removeItem(
                atPath: "\(base)/varve-forged-\(process.processIdentifier)")
            var last = "nothing"
            for line in output.split(separator: "\n") {
                if line.hasPrefix("begin ") {
                    (last, tried) = (String(line.dropFirst(6)), tried + 1)
                    next += 1
                } else if line.hasPrefix("damaged") {
                    damaged += 1
                } else if line.hasPrefix("took "), let time = Int(line.dropFirst(5)) {
                    if time > slowest.milliseconds { slowest = (time, last) }
                } else {
                    say(line)
                    failures += line.hasPrefix("FAILED") ? 1 : 0
                }
            }
            if process.terminationReason == .exit, process.terminationStatus == 0 { break }
            failures += 1
            say(
                "FAILED \(last): status \(process.terminationStatus), "
                    + (process.terminationReason == .exit ? "exit" : "signal"))
            if last == "nothing" { break }
        }
        say("\(tried) stores tried, \(damaged) of them found damaged, \(failures) failures")
        say("the slowest took \(slowest.milliseconds) ms of processors' time: \(slowest.name)")
        if failures > 0 { exit(1) }
    }

    private static func child(
        _ stride: UInt64, _ seed: UInt64, from first: Int, count: Int
    ) throws {
        try chosen(stride, seed) { whole, forgeries, directory in
            for (number, forgery) in forgeries.enumerated().dropFirst(first).prefix(count) {
                say("begin \(number) (\(forgery.name))")
                let path = directory.appending("store")
                try forgery.store(from: whole).write(path)
                limitTime(processorTimeMax, deadline)
                let start = processorMilliseconds()
                resetPeak()
                let trial = StoreTrial.run(path)
                let peak = peakKiB()
                limitTime(0, 0)
                say("took \(processorMilliseconds() - start)")
                if trial.isDamaged { say("damaged") }
                for complaint in trial.complaints {
                    say("FAILED \(number) (\(forgery.name)): \(complaint)")
                }
                if peak > memoryMax {
                    say("FAILED \(number) (\(forgery.name)): \(peak >> 10) MiB of memory")
                }
            }
        }
    }

    // MARK: - Time and memory

    /// Sends a signal to this process after this many seconds of processor time, or of real time;
    /// 0: never.
    private static func limitTime(_ processorTime: Int, _ time: Int) {
        for (timer, seconds) in [(ITIMER_PROF, processorTime), (ITIMER_REAL, time)] {
            var value = itimerval(
                it_interval: timeval(tv_sec: 0, tv_usec: 0),
                it_value: timeval(tv_sec: seconds, tv_usec: 0))
            setitimer(__itimer_which_t(timer.rawValue), &value, nil)
        }
    }

    /// Resources used by this process.
    private static func processorMilliseconds() -> Int {
        var now = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now)
        return now.tv_sec * 1000 + now.tv_nsec / 1_000_000
    }

    private static func resetPeak() {
        try? Data("5".utf8).write(to: URL(fileURLWithPath: "/proc/self/clear_refs"))
    }

    /// The largest resident memory since `resetPeak`.
    private static func peakKiB() -> Int {
        let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix("VmHWM:") }
        return line.flatMap { Int($0.filter(\.isNumber)) } ?? 0
    }
}
