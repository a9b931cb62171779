import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Foundation
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

/// Files that a writer must never overwrite.
@Suite struct LostPackTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    private func packs() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: path.appending("packs").string).sorted()
    }

    /// Fills packs until a capture fails or `count` captures are taken.
    private func capture(_ count: Int) throws {
        let files = PosixFiles(root: path)
        let repository = try Repository.open(
            at: path, .writing, files: files, packByteCountMax: (256 + 80) << 10)
        defer { try? repository.close() }
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 32)]))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        defer { session.close() }
        var random = TestSeed.generator(70)
        for _ in 0..<count {
            guest.with { guest in
                for frame in 0..<10 as Range<UInt64> {
                    let page = (0..<Page.byteCount).map { _ in
                        UInt8.random(in: 0...255, using: &random)
                    }
                    guest.write(frame, page)
                }
            }
            _ = try session.capture()
        }
    }

    @Test func aPackIsNeverMadeOverAFile() throws {
        try Repository.create(at: path).close()
        try capture(1)
        #expect(try packs() == ["00000001.pack"])
        // Created while a writer has the repository open.
        let stray = path.appending("packs/00000002.pack").string
        let repository = try Repository.open(
            at: path, .writing, files: PosixFiles(root: path),
            packByteCountMax: (256 + 80) << 10)
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 32)]))
        let session = try CaptureSession(of: guest, in: repository, lineage: "other")
        try Data("precious".utf8).write(to: URL(fileURLWithPath: stray))
        guest.with { guest in
            var random = TestSeed.generator(71)
            for frame in 0..<32 as Range<UInt64> {
                guest.write(
                    frame,
                    (0..<Page.byteCount).map { _ in UInt8.random(in: 0...255, using: &random) })
            }
        }
        let error = #expect(throws: CheckpointError.self) { try session.capture() }
        #expect(error?.message.contains(stray) == true, "\(error?.message ?? "")")
        #expect(try Data(contentsOf: URL(fileURLWithPath: stray)) == Data("precious".utf8))
        // After the file is moved away the session continues.
        try FileManager.default.removeItem(atPath: stray)
        _ = try session.capture()
        session.close()
        try repository.close()
        #expect(try Repository.open(at: path, .reading).verify().isClean)
    }

    @Test func eachLostPackIsNoticedByWriters() throws {
        try Repository.create(at: path).close()
        try capture(12)
        let names = try packs()
        #expect(names.count > 3)
        let copy = directory.path.appending("copy")
        try FileManager.default.copyItem(atPath: path.string, toPath: copy.string)
        for name in names {
            for keepsIndex in [true, false] where keepsIndex || name != names.last {
                try FileManager.default.removeItem(atPath: path.string)
                try FileManager.default.copyItem(atPath: copy.string, toPath: path.string)
                let pack = path.appending("packs/\(name)").string
                try FileManager.default.removeItem(atPath: pack)
                if !keepsIndex {
                    try FileManager.default.removeItem(atPath: path.appending("index").string)
                }
                let error = #expect(throws: RepositoryError.self) {
                    try Repository.open(at: path, .writing)
                }
                #expect(error?.corruption?.file == "packs/\(name)", "\(name) \(keepsIndex)")
                #expect(try packs() == names.filter { $0 != name })
                let report = try Repository.open(at: path, .reading).verify()
                #expect(report.corruptions.contains { $0.file == "packs/\(name)" })
            }
        }
    }
}
