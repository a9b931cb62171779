import Foundation
import Glibc
import SystemPackage
import VarveTestSupport

/// A file system in a file, mounted through a loop device as long as this lives.
final class MountedFileSystem {
    enum Kind: String, CaseIterable {
        case xfs
        case btrfs
    }

    let path: FilePath
    private let home = TemporaryDirectory()

    /// Nil where that is not possible, which is noted.
    init?(_ kind: Kind, options: String = "") {
        path = home.path.appending("mounted")
        let image = home.path.appending("image")
        let commands = [
            // mkfs.xfs makes none below 300 MiB.
            "truncate -s 320M \(image)", "mkdir \(path)",
            kind == .xfs ? "mkfs.xfs -q -m reflink=1 \(image)" : "mkfs.btrfs -q \(image)",
            "mount -o loop\(options.isEmpty ? "" : "," + options) \(image) \(path)",
        ]
        for command in commands {
            guard shell(command).status == 0 else {
                noteSkipped(
                    "skipped, reflinks on \(kind.rawValue): it cannot be made or mounted here")
                return nil
            }
        }
    }

    deinit {
        // Files that an assertion keeps open must not keep the mount.
        _ = shell("umount \(path) || umount --lazy \(path)")
    }
}

/// Runs a line of the shell and returns its status and output.
@discardableResult
func shell(_ line: String) -> (status: Int32, text: String) {
    let process = Process()
    let pipe = Pipe()
    process.executableURL = URL(fileURLWithPath: "/bin/sh")
    process.arguments = ["-c", line]
    process.standardOutput = pipe
    process.standardError = pipe
    guard (try? process.run()) != nil else { return (127, "") }
    let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, text)
}

/// The bytes of a file.
func bytes(of path: FilePath) throws -> [UInt8] {
    Array(try Data(contentsOf: URL(fileURLWithPath: path.string)))
}

/// The names in a directory.
func names(in directory: FilePath) throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: directory.string).sorted()
}

/// Writes to a part of a file.
func write(_ bytes: [UInt8], to path: FilePath, at offset: Int) throws {
    let file = try FileDescriptor.open(
        path, .readWrite, options: .create, permissions: [.ownerReadWrite])
    try file.closeAfter { _ = try file.writeAll(toAbsoluteOffset: Int64(offset), bytes) }
}
