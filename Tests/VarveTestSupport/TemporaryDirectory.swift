import Foundation
public import SystemPackage

/// A directory that goes with this value.
public final class TemporaryDirectory: Sendable {
    /// Where it is.
    public let path: FilePath

    /// Makes it, under TMPDIR or /tmp.
    public init() {
        let base = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp"
        path = FilePath("\(base)/varve-test-\(UUID().uuidString)")
        let made: Void? = try? FileManager.default.createDirectory(
            atPath: path.string, withIntermediateDirectories: true)
        precondition(made != nil, "no temporary directory can be made in \(base)")
    }

    deinit {
        try? FileManager.default.removeItem(atPath: path.string)
    }
}
