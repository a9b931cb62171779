import Foundation
public import SystemPackage

/// A directory that is removed with this value.
public final class TemporaryDirectory: Sendable {
    /// Its path.
    public let path: FilePath

    /// Creates it, under TMPDIR or /tmp.
    ///
    /// - Parameter inMemory: in the system's memory if it has a place for that: for tests that
    ///   create thousands of indexes, where only a power cut's effects are simulated.
    public init(inMemory: Bool = false) {
        var base = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp"
        if inMemory, FileManager.default.isWritableFile(atPath: "/dev/shm") { base = "/dev/shm" }
        path = FilePath("\(base)/varve-test-\(UUID().uuidString)")
        let made: Void? = try? FileManager.default.createDirectory(
            atPath: path.string, withIntermediateDirectories: true)
        precondition(made != nil, "no temporary directory can be made in \(base)")
    }

    deinit {
        try? FileManager.default.removeItem(atPath: path.string)
    }
}
