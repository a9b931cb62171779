import CheckpointEngine
import CheckpointStore
import GuestModel
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks
@testable import Varve
@testable import XenGuest

/// Cuts that outlive their process, in the next one; and what is told of them.
@Suite struct KeptCutTests {
    private let home = TemporaryDirectory()
    private let pool = SimulatedPool()
    private let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))

    private func group() throws -> ThinDisks {
        try ThinDisks(
            volumes: ["a", "b"].map {
                .init(name: "xvd\($0)", device: FilePath("/dev/mapper/\($0)"))
            },
            stateDirectory: home.path.appending("state"), guardCommand: [], calls: pool)
    }

    private func session(
        _ repository: Repository, _ group: ThinDisks, keeps: Bool
    ) throws -> CaptureSession {
        var options = CaptureOptions()
        options.keepsDiskCut = keeps
        return try CaptureSession(
            of: guest, in: repository, lineage: "web", disks: group, options: options)
    }

    /// The kept cut is continued from, and all else is dropped.
    @Test func onlyTheCutThatIsContinuedFromIsLeft() throws {
        let repository = try Repository.create(at: home.path.appending("store"))
        pool.write("a", 3, 7)
        var name: String?
        do {
            let group = try group()
            let first = try session(repository, group, keeps: true)
            name = try first.capture().checkpoint.cutName
            first.close()
            // A process that died: one cut prepared, one made, one in which a volume is suspended.
            _ = try group.prepareCut()
            let made = try group.prepareCut()
            _ = try made.cut(within: .seconds(10))
            _ = try made.storedBlocks(ofDisk: 0)
            let dying = try group.prepareCut()
            withExtendedLifetime(dying) {
                pool.state.withLock { $0.devices["b"]?.mapped.isSuspended = true }
            }
        }
        #expect(try group().leftovers().count == 4)

        let group = try group()
        let second = try session(repository, group, keeps: false)
        try XenDiskFinder.dropLeftovers(of: group)
        let left = try group.leftovers()
        #expect(left.map(\.name) == [name] && left[0].isOwned && left[0].isWhole)
        #expect(pool.suspendedNames.isEmpty && pool.snapshotIDs.count == 2)
        pool.write("a", 9, 8)
        let result = try second.capture()
        // Blocks of 64 KiB of which one was written: the rest was not even compared.
        #expect(result.checkpoint.changedPageCount == 16)
        second.close()
        #expect(pool.isClean && pool.violations.isEmpty)
        #expect(try group.leftovers().isEmpty)
    }

    // MARK: - Findings

    private func finding(
        _ path: String, _ backend: XenDisk.Backend = .blockDevice, isReadOnly: Bool = false,
        isHVM: Bool = true
    ) -> (grade: XenHost.Finding.Grade, text: String) {
        DiskDoctor.examine(
            XenDisk(
                name: "xvda", backend: backend, path: path, isReadOnly: isReadOnly, isCDROM: false),
            of: isHVM ? .hvm : .pv, XenDiskOptions(), pool)
    }

    @Test func howADiskIsCutIsTold() {
        let thin = finding("/dev/mapper/a")
        #expect(thin.grade == .good)
        #expect(
            thin.text.contains("in the pool pool, of which 30.0 % of the data and 12.0 % of the "))
        #expect(finding("/dev/mapper/a", isReadOnly: true).grade == .good)
        #expect(finding("/dev/mapper/a", isHVM: false).text.contains("--no-disks"))
        for (path, backend, words) in [
            ("/dev/sda", .blockDevice, "lvcreate --thin"),
            ("/dev/plain", .blockDevice, "lvcreate --thin"),
            ("/dev/mapper/pool", .blockDevice, "lvcreate --thin"),
            ("/dev/mapper/gone", .blockDevice, ""),
            ("/img", .rawInQEMU, "use thin volumes"),
            ("/img", .other("qcow2"), "type 'qcow2'; use thin volumes"),
            ("/nowhere/img", .file, "/nowhere/img"),
        ] as [(String, XenDisk.Backend, String)] {
            let found = finding(path, backend)
            #expect(found.grade == .missing && found.text.contains(words), "\(path): \(found)")
        }
        pool.state.withLock { $0.usage = "120/1000 990/1000" }
        let full = finding("/dev/mapper/a")
        #expect(full.grade == .missing && full.text.contains("lvextend"))
        pool.state.withLock { $0.devices["a"]?.mapped.isSuspended = true }
        #expect(finding("/dev/mapper/a").text.contains("dmsetup resume a"))
        #expect(pool.snapshotIDs.isEmpty)
    }

    @Test func whetherAFileCanBeClonedIsTriedWithoutATrace() throws {
        for kind in MountedFileSystem.Kind.allCases {
            guard let mounted = MountedFileSystem(kind) else { continue }
            let path = mounted.path.appending("xvda.raw")
            try write([UInt8](repeating: 3, count: 1 << 20), to: path, at: 0)
            let found = finding(path.string, .file)
            #expect(found.grade == .good, "\(found.text)")
            #expect(try names(in: mounted.path) == ["xvda.raw"])
        }
        let memory = TemporaryDirectory(inMemory: true)
        guard memory.path.starts(with: "/dev/shm") else { return }
        let path = memory.path.appending("xvda.raw")
        try write([UInt8](repeating: 3, count: 1 << 20), to: path, at: 0)
        let found = finding(path.string, .file)
        #expect(found.grade == .missing && found.text.contains("XFS"), "\(found.text)")
        #expect(try names(in: memory.path) == ["xvda.raw"])
    }
}
