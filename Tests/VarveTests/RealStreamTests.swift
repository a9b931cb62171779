import Foundation
import SystemPackage
import Testing
import Varve
import VarveTestSupport

/// The directory of real streams.
enum RealStreams {
    private static let folder = ProcessInfo.processInfo.environment["VARVE_XEN_STREAMS"]
    static let files: [String] = {
        guard let folder else { return [] }
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
        return names.filter { $0.contains(".xlsave") || $0.contains(".libxc") }.sorted().map {
            "\(folder)/\($0)"
        }
    }()
    static let isThere: Bool = {
        if !files.isEmpty { return true }
        noteSkipped(
            "skipped, real streams: VARVE_XEN_STREAMS names no folder with some; see xen-test")
        return false
    }()
}

/// Streams written by real Xen; Scripts/xen-test leaves some in the folder VARVE_XEN_STREAMS names.
@Suite(.serialized, .enabled(if: RealStreams.isThere)) struct RealStreamTests {
    private let directory = TemporaryDirectory()

    /// Every epoch is a checkpoint, and its export is equal, page for page and record for record.
    @Test(arguments: RealStreams.files)
    func comesOutEqual(_ file: String) throws {
        let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: file)))
        let naive = NaiveStream(bytes)
        let format = try #require(bytes.withUnsafeBytes { XenStreamFormat(detecting: $0) })
        let repository = try Repository.create(at: directory.path.appending("store"))
        var position = 0
        let result = try repository.importXenStream(format, lineage: "real") { buffer in
            let count = min(buffer.count, bytes.count - position)
            buffer.copyBytes(from: bytes[position..<position + count])
            position += count
            return count
        }
        #expect(result.checkpoints.count == naive.epochs.count && !naive.epochs.isEmpty)
        for (index, checkpoint) in result.checkpoints.enumerated() {
            var output: [UInt8] = []
            let configuration = naive.configuration ?? Array("{}".utf8)
            try repository.export(checkpoint, as: .xl(configuration: configuration)) {
                $0.withUnsafeBytes { output.append(contentsOf: $0) }
            }
            let differences = NaiveStream(output).differences(0, from: naive, index)
            #expect(differences.isEmpty, "epoch \(index): \(differences.prefix(3))")
            try verify(output)
        }
        print("\(file): \(naive.epochs.count) epochs equal")
        try repository.close()
    }

    /// Xen's own verify-stream-v2, if VARVE_XEN_VERIFIER names it.
    private func verify(_ stream: [UInt8]) throws {
        guard let verifier = ProcessInfo.processInfo.environment["VARVE_XEN_VERIFIER"] else {
            noteSkipped(
                "skipped, Xen's own verifier: VARVE_XEN_VERIFIER does not name verify-stream-v2")
            return
        }
        let file = directory.path.appending("export").string
        try Data(stream).write(to: URL(fileURLWithPath: file))
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = ["python3", verifier, "--quiet", "--format=xl", "--in=\(file)"]
        // Next to it in its package: .../bin/verify-stream-v2 and .../lib/python.
        let root = URL(fileURLWithPath: verifier).deletingLastPathComponent()
            .deletingLastPathComponent()
        process.environment = ["PYTHONPATH": root.appendingPathComponent("lib/python").path]
            .merging(ProcessInfo.processInfo.environment) { new, _ in new }
        #expect(try process.runToEnd().status == 0, "verify-stream-v2 refuses the export")
    }
}
