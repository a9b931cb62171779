public import GuestModel
import Synchronization

// The guard is a small process that outlives the checkpointer. It reads one line for each step:
//
//   S MAJOR:MINOR ...   these devices are about to be suspended, or to get another table loaded
//   R                   all of them run, and have no other table loaded
//
// It prints one byte, '+', when it is ready. Each line is written before the step that can leave a
// device suspended, and after the step that resumes it, so the guard never assumes a better state
// than the real one.

/// A process that resumes suspended volumes if the checkpointer dies.
///
/// It holds the reading end of a pipe from the checkpointer, which closes when the checkpointer
/// ends, even by SIGKILL. It is in a session of its own, so a signal to the checkpointer's group
/// does not reach it.
public final class DiskGuard: Sendable {
    private let process: Mutex<Program>

    /// Starts the guard and waits until it is ready, at most ten seconds.
    init(_ command: [String]) throws(GuestError) {
        var program = try Program(command, isTold: true)
        guard program.readByte(within: .seconds(10)) == UInt8(ascii: "+") else {
            throw GuestError(
                code: .unavailable,
                message: "the guard (\(command.joined(separator: " "))) did not start; without it "
                    + "a checkpointer that dies could leave disks suspended")
        }
        process = Mutex(program)
    }

    deinit {
        // The end of its input ends it, at once if nothing is suspended.
        process.withLock { _ = $0.finish(within: .seconds(3)) }
    }

    /// False once it has died.
    var isAlive: Bool { process.withLock { !$0.hasEnded() } }

    /// Tells the guard what is going to be suspended; false if it has died.
    func note(suspending devices: [DeviceNumber]) -> Bool {
        process.withLock {
            !$0.hasEnded()
                && $0.write("S \(devices.map(\.text).joined(separator: " "))\n")
        }
    }

    /// Tells the guard that all devices run.
    func noteRunning() {
        process.withLock { _ = $0.write("R\n") }
    }

    // MARK: - The guard's own process

    /// Runs as the guard: reads standard input to its end, then resumes what is suspended.
    ///
    /// Called only by the program that `ThinDisks` was given as `guardCommand`. After the end of
    /// the input it returns within a second.
    ///
    /// - Returns: what was done, one sentence; nil if nothing was left to do.
    /// - Throws: `callFailed` if a device could not be resumed within a second.
    public static func run() throws(GuestError) -> String? {
        try run(
            calls: LibdevmapperCalls(), ready: { Program.announceReady() },
            next: { Program.nextLine() })
    }

    package static func run(
        calls: any DeviceMapperCalls, ready: () -> Void, next: () -> String?
    ) throws(GuestError) -> String? {
        // Opens the control device, which must not be looked for when it is needed.
        _ = try calls.device(named: "varve-guard")
        ready()
        var suspended: [DeviceNumber] = []
        while let line = next() {
            let words = line.split(separator: " ")
            switch words.first {
            case "S": suspended = words.dropFirst().compactMap { DeviceNumber($0) }
            case "R": suspended = []
            default:
                throw GuestError(
                    code: .callFailed,
                    message: "the guard was sent '\(PrintableText.escape(line))'")
            }
        }
        var resumed: [String] = []
        var failure: GuestError?
        for number in suspended {
            do throws(GuestError) {
                if let name = try persistently({ () throws(GuestError) in
                    try resume(number, calls)
                }) {
                    resumed.append(name)
                }
                // Else the next one who resumes the device would put it in force.
                try persistently { () throws(GuestError) in
                    if try calls.device(number) != nil { try calls.prepare(.clear(number)).run() }
                }
            } catch {
                failure = failure ?? error
            }
        }
        if let failure { throw failure }
        guard !resumed.isEmpty else { return nil }
        return "a checkpointer died; its disks were resumed: \(resumed.joined(separator: ", "))"
    }

    /// Resumes a device, and returns its name; nil if it runs already, or is gone.
    static func resume(
        _ number: DeviceNumber, _ calls: any DeviceMapperCalls
    ) throws(GuestError) -> String? {
        guard let device = try calls.device(number), device.isSuspended else { return nil }
        try calls.prepare(.resume(number)).run()
        return device.name
    }

    /// Retries a failing call for a second: no other process takes over from the guard.
    private static func persistently<T>(
        _ body: () throws(GuestError) -> T
    ) throws(GuestError) -> T {
        for _ in 1..<100 {
            do throws(GuestError) { return try body() } catch {
                system_sleep(microseconds: 10_000)
            }
        }
        return try body()
    }
}
