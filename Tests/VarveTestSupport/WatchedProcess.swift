import Dispatch
public import Foundation

/// How a program ended, and its output.
public struct ProcessEnd {
    /// The exit code, or the number of the signal that ended it.
    public let status: Int32
    /// Its standard output.
    public let output: Data
    /// Its standard error.
    public let error: Data
}

extension Process {
    // A serial queue of its own: it has a thread even when all others wait.
    private static let watch = DispatchQueue(label: "watched processes")

    /// Starts a program, and kills it with its whole process group if it does not end in time: a
    /// test that waits forever would hide the results of all others.
    ///
    /// - Parameter seconds: the limit; the machine may be busy.
    public func runWatched(seconds: Int = 300) throws {
        try run()
        let process = processIdentifier
        Process.watch.asyncAfter(deadline: .now() + .seconds(seconds)) { [weak self] in
            guard let self, self.isRunning else { return }
            print("killed: it has not ended after \(seconds) s: \(self.arguments ?? [])")
            // Foundation starts each program in its own process group.
            kill(-process, SIGKILL)
        }
    }

    /// Runs a program until it ends, by default without input, and reads its output.
    public func runToEnd(seconds: Int = 300) throws -> ProcessEnd {
        let (output, error) = (Pipe(), Pipe())
        standardOutput = output
        standardError = error
        if standardInput as? FileHandle === FileHandle.standardInput {
            standardInput = FileHandle.nullDevice
        }
        try runWatched(seconds: seconds)
        return waitForEnd(output, error)
    }

    /// Reads a program's output until it has ended.
    public func waitForEnd(_ output: Pipe, _ error: Pipe) -> ProcessEnd {
        var streams = [output, error].map {
            pollfd(
                fd: $0.fileHandleForReading.fileDescriptor, events: Int16(POLLIN), revents: 0)
        }
        var read = [Data(), Data()]
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        // Both at once: a program that fills one pipe waits until it is read.
        while streams.contains(where: { $0.fd >= 0 }) {
            poll(&streams, 2, -1)
            for index in streams.indices where streams[index].fd >= 0 {
                guard streams[index].revents != 0 else { continue }
                let count = Foundation.read(streams[index].fd, &buffer, buffer.count)
                if count > 0 {
                    read[index] += buffer[..<count]
                } else if count == 0 || errno != EINTR {
                    streams[index].fd = -1
                }
            }
        }
        waitUntilExit()
        return ProcessEnd(status: terminationStatus, output: read[0], error: read[1])
    }
}
