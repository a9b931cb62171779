import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Foundation
import GuestModel
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport
import XenStream

@testable import GuestDisks
@testable import Varve

/// The disks of a new domain: all or none.
@Suite struct RestoredDisksTests {
    /// Bytes as an image.
    private struct Image: ImageSource {
        let bytes: [UInt8]
        var byteCount: Int { bytes.count }

        func read(_ destination: UnsafeMutableRawBufferPointer, at offset: Int) throws {
            destination.copyBytes(from: bytes[offset..<offset + destination.count])
        }

        func checkUnchanged() {}
    }

    private let home = TemporaryDirectory()
    private let repository: Repository

    init() throws { repository = try Repository.create(at: home.path.appending("store")) }

    private func checkpoint(
        _ disks: [(name: String, bytes: [UInt8])]
    ) throws -> Checkpoint {
        try repository.importVolumes(
            memory: nil,
            disks: disks.map { RawDiskImage(name: $0.name, source: Image(bytes: $0.bytes)) },
            lineage: "web")
    }

    private func restored(_ checkpoint: Checkpoint) -> RestoredDisks {
        RestoredDisks(repository: repository, checkpoint: checkpoint, domain: "new")
    }

    private func directory(_ name: String = "disks") throws -> FilePath {
        let path = home.path.appending(name)
        try FileManager.default.createDirectory(
            atPath: path.string, withIntermediateDirectories: true)
        return path
    }

    private static let contents: [(name: String, bytes: [UInt8])] = [
        ("xvda", [UInt8](repeating: 7, count: 70_000 / 512 * 512)),
        ("xvdb", [UInt8](repeating: 0, count: 8192) + [UInt8](repeating: 3, count: 512)),
    ]

    @Test func filesAreExactlyTheDisks() throws {
        let (checkpoint, directory) = (
            try checkpoint(RestoredDisksTests.contents), try directory()
        )
        let made = try restored(checkpoint).make(.files(in: directory), nil, nil)
        #expect(made.map(\.name) == ["xvda", "xvdb"])
        for (disk, content) in zip(made, RestoredDisksTests.contents) {
            #expect(disk.path == directory.appending("new-\(disk.name).img"))
            #expect(try bytes(of: disk.path) == content.bytes)
        }
        for disk in made { disk.remove() }
        #expect(try names(in: directory) == [])
    }

    /// Nothing but what was made is removed.
    @Test func ifOneCannotBeMadeNoneIsLeft() throws {
        let (checkpoint, directory) = (
            try checkpoint(RestoredDisksTests.contents), try directory()
        )
        try write([1, 2, 3], to: directory.appending("new-xvdb.img"), at: 0)
        #expect(throws: (any Error).self) {
            _ = try restored(checkpoint).make(.files(in: directory), nil, nil)
        }
        #expect(try names(in: directory) == ["new-xvdb.img"])
        #expect(try bytes(of: directory.appending("new-xvdb.img")) == [1, 2, 3])
        let cancelled = Cancellation()
        cancelled.cancel()
        try FileManager.default.removeItem(
            atPath: directory.appending("new-xvdb.img").string)
        #expect(throws: (any Error).self) {
            _ = try restored(checkpoint).make(.files(in: directory), cancelled, nil)
        }
        #expect(try names(in: directory) == [])
    }

    /// A domain's name leads to no other directory.
    @Test func namesStayInTheDirectory() throws {
        let (checkpoint, directory) = (
            try checkpoint([RestoredDisksTests.contents[1]]), try directory()
        )
        let before = try names(in: home.path)
        let domains = ["../up", "/etc/x", "a/b", "a=2fb", "ä ", "..", "\"\\", ""]
        for domain in domains {
            let made = try RestoredDisks(
                repository: repository, checkpoint: checkpoint, domain: domain
            ).make(.files(in: directory), nil, nil)
            #expect(made[0].path.removingLastComponent() == directory)
        }
        #expect(try names(in: directory).count == domains.count)
        #expect(try names(in: home.path) == before)
        #expect(RestoredDisks.plain("web_1.x-xvda") == "web_1.x-xvda")
    }

    @Test func aPathIsAbsoluteForXl() throws {
        let checkpoint = try checkpoint([RestoredDisksTests.contents[1]])
        let name = "varve-test-\(UUID().uuidString)"
        let made = try RestoredDisks(repository: repository, checkpoint: checkpoint, domain: name)
            .make(.files(in: "."), nil, nil)
        #expect(made[0].path.isAbsolute)
        #expect(try bytes(of: made[0].path) == RestoredDisksTests.contents[1].bytes)
        made[0].remove()
    }

    // MARK: - Thin volumes

    /// A pool whose devices are links in a directory to devices of the system.
    private func volumes(
        _ pool: SimulatedPool, _ targets: [String: String]
    ) throws -> ThinVolumes {
        let directory = try directory("mapper")
        for (name, target) in targets {
            try FileManager.default.createSymbolicLink(
                atPath: directory.appending(name).string, withDestinationPath: target)
        }
        return ThinVolumes(in: "pool", calls: pool, directory: directory)
    }

    @Test func thinVolumesAreWritten() throws {
        let pool = SimulatedPool()
        let checkpoint = try checkpoint(RestoredDisksTests.contents)
        let volumes = try volumes(pool, ["new-xvda": "/dev/null", "new-xvdb": "/dev/null"])
        let made = try restored(checkpoint).make(.thinVolumes(in: volumes), nil, nil)
        #expect(made.map { $0.path.lastComponent?.string } == ["new-xvda", "new-xvdb"])
        #expect(pool.snapshotIDs.count == 2)
        for disk in made { disk.remove() }
        #expect(pool.isClean)
    }

    @Test func ifOneVolumeCannotBeMadeNoneIsLeft() throws {
        let checkpoint = try checkpoint(RestoredDisksTests.contents)
        for (index, target) in ["/dev/full", nil].enumerated() {
            let pool = SimulatedPool()
            // Not writable, or without a node.
            var targets = ["new-xvda": "/dev/null"]
            targets["new-xvdb"] = target
            try? FileManager.default.removeItem(atPath: home.path.appending("mapper").string)
            let volumes = try volumes(pool, targets)
            #expect(throws: (any Error).self) {
                _ = try restored(checkpoint).make(.thinVolumes(in: volumes), nil, nil)
            }
            #expect(pool.isClean, "case \(index)")
            #expect(try names(in: home.path.appending("mapper")) == targets.keys.sorted())
        }
    }

    @Test func snapshotsAreAllOrNone() throws {
        let pool = SimulatedPool()
        let group = try ThinDisks(
            volumes: ["a", "b"].map {
                .init(name: "xvd\($0)", device: FilePath("/dev/mapper/\($0)"))
            },
            stateDirectory: home.path.appending("state"), guardCommand: [], calls: pool)
        pool.write("a", 3, 7)
        let session = try CaptureSession(
            of: SimulatedGuest(layout: GuestLayout(pageCount: 4)), in: repository, lineage: "own",
            disks: group)
        let checkpoint = try session.capture().checkpoint
        let ids = pool.snapshotIDs
        let volumes = ThinVolumes(in: "pool", calls: pool)
        let made = try restored(checkpoint).make(.snapshots(of: group, in: volumes), nil, nil)
        #expect(pool.contents("new-xvda") == pool.contents("a"))
        for disk in made { disk.remove() }
        // The second one has a name that is taken.
        _ = try volumes.createVolume(named: "new-xvdb", byteCount: 1 << 20)
        #expect(throws: (any Error).self) {
            _ = try restored(checkpoint).make(.snapshots(of: group, in: volumes), nil, nil)
        }
        #expect(pool.snapshotIDs.count == ids.count + 1)
        try volumes.removeVolume(named: "new-xvdb")
        #expect(pool.snapshotIDs == ids && pool.violations.isEmpty)
        session.close()
        #expect(pool.isClean)
        #expect(throws: (any Error).self) {
            _ = try restored(checkpoint).make(.snapshots(of: group, in: volumes), nil, nil)
        }
    }

    // MARK: - Configurations

    @Test func aConfigurationIsCheckedBeforeAnythingIsWritten() throws {
        func json(_ name: String) -> [UInt8] {
            Array("{\"c_info\": {}, \"disks\": [{\"vdev\": \"\(name)\"}]}".utf8)
        }
        try DiskPaths.check(["xvda"], in: json("xvda"))
        #expect(throws: GuestError.self) { try DiskPaths.check(["xvda"], in: nil) }
        #expect(throws: XenStreamError.self) { try DiskPaths.check(["xvda"], in: json("xvdb")) }
        #expect(throws: GuestError.self) {
            try DiskPaths.check(["xvda"], in: Array("name = \"web\"\n".utf8))
        }
    }
}
