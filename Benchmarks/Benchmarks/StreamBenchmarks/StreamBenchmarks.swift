import Benchmark
import Foundation
import SystemPackage
import Varve

// Importing a libxc stream, beside reading the same file (cat) and compressing it (zstd -1 -T0).
//
// The guest is a raw memory image that VARVE_IMAGE names (Scripts/guest-images makes one of a real
// Linux guest); without it, 1 GiB of pages of which a third are zero, a third compress and a third
// do not.

/// A stream in a file, and a repository that it was taken into once.
private final class Subject {
    let directory = FileManager.default.temporaryDirectory
        .appendingPathComponent("varve-benchmark-\(UUID().uuidString)")
    let stream: String
    private var storeCount = 0
    private(set) var repository: Repository

    init() throws {
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        stream = directory.appendingPathComponent("stream").path
        repository = try Repository.create(at: FilePath(directory.path).appending("store"))
        try Subject.write(to: stream)
    }

    deinit {
        try? FileManager.default.removeItem(at: directory)
    }

    /// The image as a stream of an HVM guest.
    private static func write(to path: String) throws {
        FileManager.default.createFile(atPath: path, contents: nil)
        let output = try require(FileHandle(forWritingAtPath: path))
        let header: [UInt8] = [2, 0, 0, 0, 12, 0, 0, 0, 4, 0, 0, 0, 17, 0, 0, 0]
        let state = GuestState(records: [
            .init(kind: XenStateKind.domainHeader, bytes: header),
            .init(kind: "libxc.HVM_CONTEXT", bytes: [UInt8](repeating: 1, count: 2504)),
        ])
        var writer = try XenStreamWriter(.libxc, state: state) {
            try output.write(contentsOf: Data($0))
        }
        try writer.begin()
        let image = ProcessInfo.processInfo.environment["VARVE_IMAGE"].flatMap {
            FileHandle(forReadingAtPath: $0)
        }
        var frame: UInt64 = 0
        while let piece = try image.map({ try $0.read(upToCount: 4 << 20) }) ?? synthetic(frame),
            !piece.isEmpty
        {
            let run = PageRange(first: PageFrameNumber(frame), count: piece.count / Page.byteCount)
            frame += UInt64(run.count)
            try piece.withUnsafeBytes { try writer.pages([run], $0) }
        }
        try writer.finish()
        try output.close()
    }

    private static func synthetic(_ frame: UInt64) -> Data? {
        guard frame < 262_144 else { return nil }
        var random = frame &+ 1
        var words = [UInt64](repeating: 0, count: 1024 * 512)
        for index in words.indices {
            let kind = index / 512 % 3
            guard kind > 0 else { continue }
            random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            words[index] = kind == 1 ? random >> 56 : random
        }
        return words.withUnsafeBytes { Data($0) }
    }

    /// Makes the repository a new one.
    func renew() throws {
        try repository.close()
        storeCount += 1
        repository = try Repository.create(
            at: FilePath(directory.path).appending("store-\(storeCount)"))
    }

    func importStream() throws {
        let input = try FileDescriptor.open(FilePath(stream), .readOnly)
        defer { try? input.close() }
        _ = try XenImport.run(.libxc, into: repository, lineage: "benchmark") {
            try input.read(into: $0)
        }
    }

    func export() throws {
        guard let newest = try repository.newest(ofLineage: "benchmark") else { return }
        let output = try FileDescriptor.open("/dev/null", .writeOnly)
        defer { try? output.close() }
        try XenExport.run(newest, from: repository, as: .libxc) { bytes in
            _ = try output.writeAll(bytes)
        }
    }

    func shell(_ command: String) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", command]
        process.environment = ["STREAM": stream, "PATH": "/usr/bin:/bin"]
        try process.run()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else { throw POSIXError(.EIO) }
    }
}

/// Unwraps, or ends the benchmark.
private func require<T>(_ value: T?) throws -> T {
    guard let value else { throw POSIXError(.ENOENT) }
    return value
}

let benchmarks: @Sendable () -> Void = {
    let configuration = Benchmark.Configuration(
        metrics: [.wallClock, .cpuTotal, .peakMemoryResident], timeUnits: .milliseconds,
        warmupIterations: 1, maxDuration: .seconds(30), maxIterations: 7)

    Benchmark("cat stream > /dev/null", configuration: configuration) { _, subject in
        try subject.shell("cat \"$STREAM\" > /dev/null")
    } setup: {
        try Subject()
    }

    Benchmark("zstd -1 -T0 of the stream", configuration: configuration) { _, subject in
        try subject.shell("zstd -1 -T0 -q -c \"$STREAM\" > /dev/null")
    } setup: {
        try Subject()
    }

    Benchmark("import of the stream into an empty repository", configuration: configuration) {
        benchmark, subject in
        try subject.renew()
        benchmark.startMeasurement()
        try subject.importStream()
        benchmark.stopMeasurement()
    } setup: {
        try Subject()
    }

    Benchmark("import of the same stream again", configuration: configuration) { _, subject in
        try subject.importStream()
    } setup: {
        let subject = try Subject()
        try subject.importStream()
        return subject
    }

    Benchmark("export as libxc to /dev/null", configuration: configuration) { _, subject in
        try subject.export()
    } setup: {
        let subject = try Subject()
        try subject.importStream()
        return subject
    }
}
