import Benchmark
import Foundation
import Measuring
import SystemPackage
import Varve
import _VarveStages

// Import and export of a libxc stream, compared with reading the file and compressing it.

let benchmarks: @Sendable () -> Void = {
    let rounds = Settings.sized(7, quick: 2)
    compare("stream.first", "import of a libxc stream into an empty repository", rounds: rounds) {
        run in
        try StreamSubject(directory: run.directory)
    } round: { subject, run in
        try subject.renew()
        try run.subject("import, durable", byteCount: subject.byteCount) {
            try subject.importStream()
        }
        try besides(subject, run)
    }

    compare("stream.again", "import of the same stream again, every page compared", rounds: rounds)
    {
        run in
        let subject = try StreamSubject(directory: run.directory)
        try subject.importStream()
        return subject
    } round: { subject, run in
        try run.subject("import, durable", byteCount: subject.byteCount) {
            try subject.importStream()
        }
        try besides(subject, run)
    }

    compare("stream.export", "export as libxc to /dev/null, every page verified", rounds: rounds) {
        run in
        let subject = try StreamSubject(directory: run.directory)
        try subject.importStream()
        return subject
    } round: { subject, run in
        try run.subject("export", byteCount: subject.byteCount) { try subject.export() }
        try besides(subject, run)
    }
}

/// The time to read the stream, and to compress it.
private func besides(_ subject: StreamSubject, _ run: Comparison) throws {
    let read = try Child.run(["cat", subject.stream], output: "/dev/null")
    run.add(
        "cat of the stream", .limit, seconds: read.seconds, byteCount: subject.byteCount)
    let squeezed = try Child.run(
        ["zstd", "-1", "-T0", "-q", "-c", subject.stream], output: "/dev/null")
    run.add(
        "zstd -1 -T0 of the stream", .peer, seconds: squeezed.seconds,
        byteCount: subject.byteCount)
}

/// A stream in a file, and a repository to import it into.
private final class StreamSubject {
    let stream: String
    let byteCount: Int
    private let directory: FilePath
    private var storeCount = 0
    private var repository: Repository

    init(directory: String) throws {
        self.directory = FilePath(directory)
        stream = directory + "/stream"
        byteCount = Settings.sized(512 << 20, quick: 64 << 20)
        repository = try Repository.create(at: self.directory.appending("store"))
        try StreamSubject.write(to: stream, byteCount: byteCount)
    }

    /// A guest's pages as a stream of an HVM guest.
    private static func write(to path: String, byteCount: Int) throws {
        let memory = try Memory.guest(byteCount: byteCount)
        let output = try FileDescriptor.open(
            path, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
        defer { try? output.close() }
        try PageStream.write(UnsafeRawBufferPointer(memory.bytes)) {
            _ = try output.writeAll($0)
        }
    }

    /// Replaces the repository with a new one.
    func renew() throws {
        try repository.close()
        storeCount += 1
        repository = try Repository.create(at: directory.appending("store-\(storeCount)"))
    }

    func importStream() throws {
        let input = try FileDescriptor.open(FilePath(stream), .readOnly)
        defer { try? input.close() }
        _ = try repository.importXenStream(.libxc, lineage: "benchmark") {
            try input.read(into: $0)
        }
    }

    func export() throws {
        guard let newest = try repository.newest(ofLineage: "benchmark") else {
            throw Child.Failure(description: "there is nothing to export")
        }
        let output = try FileDescriptor.open("/dev/null", .writeOnly)
        defer { try? output.close() }
        try repository.export(newest, as: .libxc) { bytes in
            try bytes.withUnsafeBytes { _ = try output.writeAll($0) }
        }
    }
}
