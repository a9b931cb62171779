import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Foundation
import GuestDisks
import GuestModel
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import Varve
@testable import XenGuest

/// Disks of a domain, as xenstore has them, and how they are chosen.
@Suite struct XenDisksTests {
    private let home = TemporaryDirectory(inMemory: true)
    private let xen = FakeXen()

    init() {
        xen.add(FakeDomain(3, frames: [0..<10], seed: 1))
        xen.add(FakeDomain(5, frames: [0..<20], seed: 2, isHVM: false))
    }

    private func write(_ bytes: [UInt8], to path: FilePath) throws {
        let file = try FileDescriptor.open(
            path, .writeOnly, options: .create, permissions: [.ownerReadWrite])
        try file.closeAfter { _ = try file.writeAll(bytes) }
    }

    private var host: XenHost { XenHost(calls: xen) }

    private func domain(_ number: UInt32 = 3) throws -> XenHost.Domain {
        try host.domain(named: "\(number)")
    }

    // MARK: - Found in xenstore

    @Test func disksAreWhatTheirBackEndsSay() throws {
        let file = home.path.appending("raw.img")
        try write([], to: file)
        xen.with { state in
            state.addDisk(3, "xvdd", kind: "qdisk", type: "qdisk", params: "qcow2:/d.qcow2")
            state.addDisk(3, "xvda", params: "/dev/vg/a")
            state.addDisk(3, "xvdb", type: "file", params: "/b:1.img", mode: "r")
            state.addDisk(3, "xvdc", kind: "qdisk", type: "qdisk", params: "aio:/c:1.img")
            state.addDisk(
                3, "xvde", kind: "qdisk", type: "qdisk", params: "aio:", mode: "r",
                deviceType: "cdrom")
            // libxl's way with a raw file.
            state.addDisk(3, "xvdf", params: file.string)
            state.addDisk(3, "xvdg", kind: "vbd3", params: "/dev/vg/g")
            state.addDisk(3, "xvdh", type: "tap", params: "vhd:/h.vhd")
            state.addDisk(3, "xvdi", params: "/dev/vg/i", mode: "w!")
            state.addDisk(4, "xvdz", params: "/dev/vg/another")
        }
        func disk(
            _ name: String, _ backend: XenDisk.Backend, _ path: String, isReadOnly: Bool = false,
            isCDROM: Bool = false
        ) -> XenDisk {
            XenDisk(
                name: name, backend: backend, path: path, isReadOnly: isReadOnly,
                isCDROM: isCDROM)
        }
        #expect(
            try host.disks(of: domain()) == [
                disk("xvda", .blockDevice, "/dev/vg/a"),
                disk("xvdb", .file, "/b:1.img", isReadOnly: true),
                disk("xvdc", .rawInQEMU, "/c:1.img"),
                disk("xvdd", .other("qcow2"), "/d.qcow2"),
                disk("xvde", .rawInQEMU, "", isReadOnly: true, isCDROM: true),
                disk("xvdf", .file, file.string),
                disk("xvdg", .blockDevice, "/dev/vg/g"),
                disk("xvdh", .other("tap"), "vhd:/h.vhd"),
                disk("xvdi", .blockDevice, "/dev/vg/i"),
            ])
        #expect(try !host.hasForeignDisks(domain()))
        #expect(try host.disks(of: domain(5)).isEmpty)
    }

    /// What xenstore does not say must not leave a disk out.
    @Test func aDiskWithoutAModeCountsAsWritable() throws {
        xen.with { state in
            state.addDisk(3, "xvda", params: "/dev/vg/a")
            state.store = state.store.filter { !$0.key.hasSuffix("/mode") }
        }
        #expect(try host.disks(of: domain()).map(\.isReadOnly) == [false])
    }

    @Test func disksOfOthersAreForeign() throws {
        xen.with { $0.addDisk(3, "xvda", params: "/dev/vg/a") }
        #expect(try !host.hasForeignDisks(domain()))
        xen.with { $0.addDisk(3, "xvdb", params: "/dev/vg/b", backend: 2) }
        #expect(try host.hasForeignDisks(domain()))
        #expect(try host.disks(of: domain()).map(\.name) == ["xvda"])
        // As many as dom0 has, and yet one is another's.
        xen.with { state in
            state.store = state.store.filter {
                !$0.key.hasPrefix("/local/domain/3/device/vbd/51712")
            }
        }
        #expect(try host.hasForeignDisks(domain()))
        xen.with { state in
            state.store = state.store.filter { !$0.key.contains("/vbd/") }
            state.store["/local/domain/3/device/virtio_disk/51712/backend"] =
                "/local/domain/0/backend/virtio_disk/3/51712"
        }
        #expect(try host.hasForeignDisks(domain()), "a transport that is not known")
    }

    /// Detached at any moment: the disk is whole or not there, and never taken for another's.
    @Test func disksVanishWhileTheyAreRead() throws {
        var (wholeCount, goneCount) = (0, 0)
        for count in 0..<40 {
            xen.with { state in
                state.addDisk(3, "xvda", params: "/dev/vg/a")
                state.addDisk(3, "xvdb", params: "/dev/vg/b", mode: "r")
            }
            let domain = try domain()
            let paths = [
                "/local/domain/0/backend/vbd/3/51728", "/local/domain/3/device/vbd/51728",
            ]
            xen.with { $0.removal = (count, paths) }
            let isForeign = try host.hasForeignDisks(domain)
            xen.with { state in
                state.removal = nil
                state.addDisk(3, "xvdb", params: "/dev/vg/b", mode: "r")
                state.removal = (count, paths)
            }
            let disks = try host.disks(of: domain)
            #expect(!isForeign, "call \(count)")
            #expect(disks.first?.path == "/dev/vg/a")
            if disks.count == 2 {
                #expect(disks[1].isReadOnly && disks[1].path == "/dev/vg/b", "call \(count)")
                wholeCount += 1
            } else {
                goneCount += 1
            }
            xen.with { $0.removal = nil }
        }
        #expect(wholeCount > 5 && goneCount > 5)
    }

    @Test func aFailureOfXenstoreIsReported() throws {
        xen.with { $0.addDisk(3, "xvda", params: "/dev/vg/a") }
        let domain = try domain()
        let before = xen.callCount
        _ = try host.hasForeignDisks(domain)
        for count in 0..<xen.callCount - before {
            xen.failCall(count, errno: 5)
            #expect(failure { _ = try host.hasForeignDisks(domain) }?.errno == 5)
        }
    }

    // MARK: - Chosen

    private func finder(_ selection: XenDiskSelection = .automatic) -> XenDiskFinder {
        var options = XenDiskOptions()
        options.selection = selection
        options.stateDirectory = home.path.appending("state/disks")
        return XenDiskFinder(host: host, options: options)
    }

    private var hasState: Bool {
        (try? FileDescriptor.open(home.path.appending("state"), .readOnly).close()) != nil
    }

    private func refusal(
        _ number: UInt32 = 3, pauseMode: XenPauseMode = .suspend,
        _ selection: XenDiskSelection = .automatic
    ) throws -> String {
        var options = XenCheckpointer.Options()
        options.domain.pauseMode = pauseMode
        let domain = try domain(number)
        let error = failure { _ = try finder(selection).choose(for: domain, &options) }
        #expect(error?.code == .unsupported && !hasState)
        return error?.message ?? ""
    }

    @Test func whatCannotBeCutIsRefusedWithTheRemedy() throws {
        func refusal(
            _ number: UInt32 = 3, pauseMode: XenPauseMode = .suspend,
            _ add: (inout FakeXen.State) -> Void
        ) throws -> String {
            xen.with { state in
                state.store = state.store.filter {
                    !$0.key.contains("/backend/") && !$0.key.contains("/device/vbd")
                }
                add(&state)
            }
            return try self.refusal(number, pauseMode: pauseMode)
        }
        let qemu = try refusal {
            $0.addDisk(3, "xvda", kind: "qdisk", type: "qdisk", params: "aio:/a.img")
        }
        #expect(qemu.contains("xvda is written by a QEMU process") && qemu.contains("thin volumes"))
        let qcow2 = try refusal {
            $0.addDisk(3, "xvda", params: "/dev/vg/a")
            $0.addDisk(3, "xvdb", kind: "qdisk", type: "qdisk", params: "qcow2:/b.img")
        }
        #expect(qcow2.contains("xvdb is of type 'qcow2'") && qcow2.contains("--no-disks"))
        let foreign = try refusal { $0.addDisk(3, "xvda", params: "/dev/vg/a", backend: 2) }
        #expect(foreign.contains("another domain than dom0") && foreign.contains("blkback in dom0"))
        let pv = try refusal(5) { $0.addDisk(5, "xvda", params: "/dev/vg/a") }
        #expect(pv.contains("PV") && pv.contains("--no-disks") && !pv.contains("thin volumes"))
        let paused = try refusal(pauseMode: .pause) { $0.addDisk(3, "xvda", params: "/dev/vg/a") }
        #expect(paused.contains("by suspend") && paused.contains("--no-disks"))
        // A group of the caller's is as little of use.
        #expect(try self.refusal(5, .group(SimulatedDisks())).contains("PV"))
        #expect(
            try self.refusal(pauseMode: .pause, .group(SimulatedDisks())).contains("by suspend"))
    }

    @Test func readOnlyDisksAndDrivesAreNoneToCut() throws {
        xen.with { state in
            state.addDisk(3, "xvda", type: "file", params: "/a.iso", mode: "r")
            state.addDisk(
                3, "xvdb", kind: "qdisk", type: "qdisk", params: "aio:", mode: "r",
                deviceType: "cdrom")
        }
        var options = XenCheckpointer.Options()
        let group = try finder().choose(for: domain(), &options)
        #expect(try group?.disks().isEmpty == true)
        var none = XenCheckpointer.Options()
        #expect(try finder(.none).choose(for: domain(), &none) == nil)
        #expect(!none.capture.omitsDisks && !options.capture.omitsDisks && !hasState)
    }

    @Test func disksAreOmittedOnlyIfThereAreSome() throws {
        for (number, adds) in [(3, false), (5, false), (3, true), (5, true)] as [(UInt32, Bool)] {
            if adds { xen.with { $0.addDisk(number, "xvda", params: "/dev/vg/a", backend: 2) } }
            var options = XenCheckpointer.Options()
            options.domain.pauseMode = .pause
            #expect(try finder(.none).choose(for: domain(number), &options) == nil)
            #expect(options.capture.omitsDisks == adds)
        }
        // What the caller knows is not overruled.
        xen.add(FakeDomain(8, frames: [0..<10], seed: 1))
        var options = XenCheckpointer.Options()
        options.capture.omitsDisks = true
        #expect(try finder(.none).choose(for: domain(8), &options) == nil)
        #expect(options.capture.omitsDisks)
    }

    /// A disk that is attached between two checkpoints is in the second one, or prevents it.
    @Test func disksAreLookedForAtEachCapture() throws {
        var options = XenCheckpointer.Options()
        let group = try #require(try finder().choose(for: domain(), &options))
        let cut = try group.prepareCut()
        #expect(try cut.cut(within: .seconds(1)) == DiskCutTimes() && cut.name.isEmpty)
        try cut.release()
        #expect(!hasState, "a domain without disks leaves nothing")
        xen.with { $0.addDisk(3, "xvda", kind: "qdisk", type: "qdisk", params: "aio:/a") }
        #expect(failure { _ = try group.prepareCut() }?.message.contains("QEMU") == true)
        let file = home.path.appending("b.img")
        try write([UInt8](repeating: 7, count: 1024), to: file)
        xen.with { state in
            state.store = state.store.filter { !$0.key.contains("/51712/") }
            state.addDisk(3, "xvdb", params: file.string)
        }
        #expect(try group.disks() == [GuestDisk(name: "xvdb", byteCount: 1024)])
        #expect(hasState)
        xen.with { state in state.store = state.store.filter { !$0.key.contains("/51728/") } }
        #expect(try group.disks().isEmpty)
        // By pause: refused as soon as there is one.
        options.domain.pauseMode = .pause
        let paused = try #require(try finder().choose(for: domain(), &options))
        try paused.prepareCut().release()
        xen.with { $0.addDisk(3, "xvda", params: "/dev/vg/a") }
        #expect(failure { _ = try paused.prepareCut() }?.message.contains("by suspend") == true)
    }

    // MARK: - Cut by a command

    /// A command that answers each verb by these lines of a shell.
    private func command(_ verbs: [String: String]) throws -> [String] {
        var script = "cd \(home.path)\necho \"$1\" >>log\ncase $1 in\n"
        for (verb, lines) in verbs { script += "\(verb)) \(lines) ;;\n" }
        let path = home.path.appending("command")
        try? FileManager.default.removeItem(atPath: path.string)
        try write(Array((script + "esac\n").utf8), to: path)
        return ["/bin/sh", path.string]
    }

    private func answer(_ names: [String]) -> String {
        let disks = names.map { "{\"name\": \"\($0)\", \"bytes\": 8192}" }
        return "echo '{\"disks\": [\(disks.joined(separator: ", "))]}'"
    }

    @Test func aCommandCutsTheDisksThatItNames() throws {
        let file = home.path.appending("b.img")
        try write([UInt8](repeating: 7, count: 1024), to: file)
        try write([UInt8](repeating: 9, count: 8192), to: home.path.appending("remote"))
        xen.with { state in
            state.addDisk(3, "xvda", params: "/dev/rbd/pool/a")
            state.addDisk(3, "xvdb", params: file.string)
        }
        var finder = finder()
        var options = XenCheckpointer.Options()
        let verbs = [
            "disks": answer(["xvda"]), "cut": "cp remote cut-$2; echo '{}'",
            "open": "echo '{\"path\": \"\(home.path)/cut-'$2'\"}'",
            "changed": "echo '{\"changed\": null}'", "release": "rm -f cut-$2",
        ]
        finder = XenDiskFinder(
            host: host, options: try with(finder.options) { $0.command = try command(verbs) })
        let group = try #require(try finder.choose(for: domain(), &options))
        #expect(
            try group.disks() == [
                GuestDisk(name: "xvdb", byteCount: 1024), GuestDisk(name: "xvda", byteCount: 8192),
            ])
        // Without the file, the command's cut alone: captured, kept, found again, dropped.
        xen.with { state in state.store = state.store.filter { !$0.key.contains("/51728/") } }
        let repository = try Repository.create(at: home.path.appending("store"))
        options.capture.keepsDiskCut = true
        for count in 0..<2 {
            let group = try #require(try finder.choose(for: domain(), &options))
            let session = try CaptureSession(
                of: try XenDomain(3, calls: xen, options: options.domain), in: repository,
                lineage: "web", disks: group, options: options.capture)
            let taken = try session.capture().checkpoint
            #expect(taken.disks.map(\.name) == ["xvda"])
            #expect(taken.disks[0].changedPageCount == (count == 0 ? 2 : 0))
            session.close()
        }
        let left = try DiskDoctor(finder: finder).findings(of: domain())
        #expect(left.map(\.grade) == [.good, .good])
        #expect(left[0].text == "is cut by /bin/sh")
        #expect(left[1].text.hasSuffix(": a cut of disk xvda"))
        let journaled = try #require(
            try finder.choose(for: domain(), &options) as? any JournaledDisks)
        #expect(try journaled.dropLeftovers().count == 1)
        #expect(try DiskDoctor(finder: finder).findings(of: domain()).count == 1)
    }

    private func with(
        _ options: XenDiskOptions, _ change: (inout XenDiskOptions) throws -> Void
    ) rethrows -> XenDiskOptions {
        var options = options
        try change(&options)
        return options
    }

    @Test func aCommandNamesDisksOfTheDomain() throws {
        xen.with { state in
            state.addDisk(3, "xvda", params: "/dev/rbd/pool/a")
            state.addDisk(3, "xvdb", params: "/dev/rbd/pool/b", mode: "r")
            state.addDisk(3, "xvdc", kind: "qdisk", type: "qdisk", params: "qcow2:/c.qcow2")
        }
        var options = XenCheckpointer.Options()
        for (verbs, words) in [
            (["disks": answer(["xvda", "xvdz"])], "cuts a disk 'xvdz', and domain"),
            (["disks": answer(["xvdb"])], "cuts a disk 'xvdb', and domain"),
            (["disks": answer(["xvda"])], "xvdc is of type 'qcow2'"),
            (["disks": "echo no cluster >&2; exit 1"], "failed with status 1: no cluster"),
            ([:], "see HookedDisks for what it must print"),
        ] as [([String: String], String)] {
            let finder = XenDiskFinder(
                host: host,
                options: try with(finder().options) { $0.command = try command(verbs) })
            let error = failure { _ = try finder.choose(for: domain(), &options) }
            #expect(error?.message.contains(words) == true, "\(String(describing: error))")
            #expect(!hasState)
        }
        // Not even asked where there is nothing to cut.
        xen.with { state in state.store = state.store.filter { !$0.key.contains("/vbd/") } }
        xen.with { state in state.store = state.store.filter { !$0.key.contains("/qdisk/") } }
        let finder = XenDiskFinder(
            host: host, options: with(finder().options) { $0.command = ["/does/not/exist"] })
        #expect(try finder.choose(for: domain(), &options)?.disks().isEmpty == true)
    }

    // MARK: - Findings

    @Test func findingsNameEachDiskAndWhatCutsHaveLeft() throws {
        xen.with { state in
            state.addDisk(3, "xvda", kind: "qdisk", type: "qdisk", params: "qcow2:/a.qcow2")
            state.addDisk(3, "xvdb", params: "/nowhere", mode: "r")
            state.addDisk(3, "xvdc", params: "/dev/vg/a", backend: 2)
        }
        let finder = finder()
        let doctor = DiskDoctor(finder: finder)
        let domain = try domain()
        func findings() throws -> [String] {
            try doctor.findings(of: domain).map {
                "\($0.subject): \($0.grade.rawValue): \($0.text)"
            }
        }
        let found = try findings()
        #expect(found.count == 3 && !hasState, "looking leaves nothing")
        #expect(found[0].hasPrefix("disk xvda: missing: /a.qcow2 is of type 'qcow2'; use thin"))
        #expect(found[1].hasPrefix("disk xvdb: good: read-only"))
        #expect(found[2].hasPrefix("disks: missing: a disk of it is provided by another domain"))

        try StateDirectory.create(finder.options.stateDirectory)
        let directory = finder.directory(of: domain)
        #expect(directory.lastComponent?.string.count == 32)
        _ = try ReflinkDisks(files: [], stateDirectory: directory)
        func add(_ name: String, _ text: String) throws {
            try write(Array(text.utf8), to: directory.appending(name))
        }
        try add("cut-1", "varve-disks 1 reflink made\nfile xvda 512 /.a.varve-cut-1-0\nend\n")
        try add("cut-2", "varve-disks 1 reflink prepared\nfile xvda 512 /.a.varve-cut-2-0\nend\n")
        try add("cut-3", "damaged")
        let owned = try ReflinkDisks(files: [], stateDirectory: directory)
        let cut = try owned.prepareCut()
        let all = try findings()
        #expect(all.count == 7)
        #expect(
            all.contains(
                "cut-1: good: kept: the next checkpoint continues from it, or drops it: "
                    + "/.a.varve-cut-1-0"))
        #expect(
            all.contains(
                "cut-2: limited: left behind: the next checkpoint drops it: /.a.varve-cut-2-0"))
        #expect(all.contains { $0.hasPrefix("cut-3: limited") && $0.contains("by hand") })
        #expect(all.contains { $0.contains("good: in use by a process that runs") })
        try cut.release()
        #expect(try findings().count == 6)
    }

    // MARK: - Checkpointers

    /// A group that notes in memory what is left, and whose cuts have owners.
    private final class NotedDisks: JournaledDisks {
        let inner = SimulatedDisks()
        let owner: String?

        init(keeping name: String?) { owner = name }

        func disks() throws(GuestError) -> [GuestDisk] { try inner.disks() }
        func prepareCut() throws(GuestError) -> any DiskCut { try inner.prepareCut() }
        func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
            try inner.standingCut(name)
        }
        func leftovers() throws(GuestError) -> [DiskLeftover] { [] }
        func dropLeftovers() throws(GuestError) -> [DiskLeftover] {
            if owner == "fails" {
                throw GuestError(
                    code: .unavailable, message: "a pool is not active; activate it")
            }
            for name in inner.standing where name != owner {
                try inner.standingCut(name)?.release()
            }
            return []
        }
    }

    private func checkpointer(
        _ repository: Repository, _ disks: NotedDisks, keeps: Bool,
        notice: (@Sendable (String) -> Void)? = nil
    ) throws -> XenCheckpointer {
        var options = XenCheckpointer.Options()
        options.disks.thin.notice = notice
        options.capture.keepsDiskCut = keeps
        return try XenCheckpointer(
            of: try XenDomain(3, calls: xen, options: options.domain), in: repository,
            lineage: "web", disks: disks, options: options)
    }

    @Test func aCheckpointerDropsWhatItDoesNotContinueFrom() throws {
        let repository = try Repository.create(at: home.path.appending("store"))
        let disks = NotedDisks(keeping: "cut-1")
        disks.inner.set(["xvda": [UInt8](repeating: 7, count: 8192)])
        do {
            let first = try checkpointer(repository, disks, keeps: true)
            #expect(try first.capture().checkpoint.cutName == "cut-1")
            first.close()
        }
        _ = try disks.inner.prepareCut()
        #expect(disks.inner.standing == ["cut-1", "cut-2"])
        do {
            let second = try checkpointer(repository, disks, keeps: false)
            #expect(disks.inner.standing == ["cut-1"])
            #expect(try second.capture().checkpoint.changedPageCount == 0)
            second.close()
        }
        #expect(disks.inner.standing.isEmpty)
        // What cannot be dropped is said, and stays noted; the domain is checkpointed.
        let failing = NotedDisks(keeping: "fails")
        failing.inner.set(["xvda": [UInt8](repeating: 7, count: 8192)])
        let notices = Mutex<[String]>([])
        let third = try checkpointer(repository, failing, keeps: false) { text in
            notices.withLock { $0.append(text) }
        }
        #expect(notices.withLock { $0 } == ["a pool is not active; activate it"])
        _ = try third.capture()
        third.close()
        #expect(xen.complaints(3, isLogOn: false) == [])
    }

    @Test(arguments: [false, true])
    func checkpointsOfAPVDomainSayThatDisksAreOmitted(_ isLive: Bool) throws {
        let repository = try Repository.create(at: home.path.appending("store"))
        xen.add(FakeDomain(Scene.number, frames: [0..<300], seed: 3, isHVM: false))
        xen.with { $0.epochs = PVStream.epochs(isCheckpointed: isLive) }
        for hasDisk in [false, true] {
            if hasDisk { xen.with { $0.addDisk(Scene.number, "xvda", params: "/dev/vg/a") } }
            var options = XenCheckpointer.Options()
            options.domain.comparesAll = !isLive
            let group = try finder(.none).choose(for: domain(Scene.number), &options)
            #expect(group == nil)
            let checkpointer = try XenCheckpointer(
                of: try XenPVDomain(Scene.number, calls: xen, options: options.domain),
                in: repository, lineage: "web", options: options)
            var schedule = CheckpointSchedule(every: .zero)
            schedule.countMax = 2
            try checkpointer.run(schedule) { _ in }
            checkpointer.close()
        }
        #expect(
            try repository.checkpoints().map(\.omitsDisks) == [false, false, true, true])
    }
}
