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

@testable import Varve
@testable import XenGuest

/// Checkpoints that are started as new domains, by a program in the place of `xl`.
@Suite struct StartDomainTests {
    private let home = TemporaryDirectory()
    private let xen = FakeXen()
    private let repository: Repository

    init() throws {
        repository = try Repository.create(at: home.path.appending("store"))
        xen.add(FakeDomain(Scene.number, frames: [0..<90], seed: 3))
        xen.with {
            $0.configuration = Array(
                """
                {"c_info": {"name": "web", "uuid": "00000000-0000-0000-0000-000000000000"},
                 "disks": [{"pdev_path": "/old/a", "vdev": "xvda"},
                           {"pdev_path": "/old/b", "vdev": "xvdb", "format": "raw"}]}
                """.utf8)
        }
        try FileManager.default.createDirectory(
            atPath: disks.string, withIntermediateDirectories: true)
        // A program that was just written may still be open in a child of another test.
        let program = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("fake-xl.sh")
        try FileManager.default.createSymbolicLink(
            atPath: home.path.appending("xl").string, withDestinationPath: program.path)
    }

    private var disks: FilePath { home.path.appending("disks") }
    private var passed: FilePath { home.path.appending("passed") }

    private static let contents: [String: [UInt8]] = [
        "xvda": [UInt8](repeating: 7, count: 4096), "xvdb": [UInt8](repeating: 8, count: 512),
    ]

    private func checkpoint(
        _ contents: [String: [UInt8]]?, _ change: (inout CaptureOptions) -> Void = { _ in }
    ) throws -> Checkpoint {
        let group = contents.map { contents in
            let group = SimulatedDisks()
            group.set(contents)
            return group
        }
        var options = XenCheckpointer.Options()
        change(&options.capture)
        let checkpointer = try XenCheckpointer(
            of: try XenDomain(Scene.number, calls: xen, options: options.domain), in: repository,
            lineage: "web", disks: group, options: options)
        defer { checkpointer.close() }
        return try checkpointer.capture().checkpoint
    }

    /// What becomes of the domain that xl builds.
    private enum Outcome {
        case runs
        case isGone
        case fails
        /// It runs, and then xenstore fails.
        case isUnknown
    }

    private func start(
        _ checkpoint: Checkpoint, _ outcome: Outcome = .runs,
        _ change: (inout XenStartOptions) -> Void = { _ in }
    ) throws -> XenHost.Domain {
        let (done, go) = (home.path.appending("done"), home.path.appending("go"))
        for path in [done, go, passed] { try? FileManager.default.removeItem(atPath: path.string) }
        try Data((outcome == .fails ? "3\n" : "0\n").utf8).write(
            to: URL(fileURLWithPath: home.path.appending("status").string))
        var options = XenStartOptions()
        options.name = "new"
        options.xl = home.path.appending("xl").string
        change(&options)
        let isOver = Atomic(false)
        let thread = Thread { [xen] in
            while !FileManager.default.fileExists(atPath: done.string) {
                if isOver.load(ordering: .relaxed) { return }
                usleep(2000)
            }
            if outcome == .runs || outcome == .isUnknown {
                xen.add(FakeDomain(9, frames: [0..<10], seed: 1))
                xen.with { $0.store["/local/domain/9/name"] = "new" }
            }
            if outcome == .isUnknown { xen.failCall(0, errno: 5) }
            _ = FileManager.default.createFile(atPath: go.string, contents: nil)
        }
        thread.start()
        defer { isOver.store(true, ordering: .relaxed) }
        return try repository.startDomain(
            from: checkpoint, on: XenHost(calls: xen), options: options)
    }

    private func files() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: disks.string).sorted()
    }

    private func hasStarted() -> Bool {
        FileManager.default.fileExists(atPath: passed.string)
    }

    /// The disks that xl was told, by name.
    private func told() throws -> [String: String] {
        let stream = NaiveStream(
            Array(try Data(contentsOf: URL(fileURLWithPath: passed.string))))
        let json = try #require(stream.configuration).prefix { $0 != 0 }
        let object = try #require(
            try JSONSerialization.jsonObject(with: Data(json)) as? [String: Any])
        let disks = try #require(object["disks"] as? [[String: Any]])
        var paths: [String: String] = [:]
        for disk in disks {
            paths[try #require(disk["vdev"] as? String)] = disk["pdev_path"] as? String
        }
        return paths
    }

    @Test func aDomainStartsOnItsOwnDisks() throws {
        let checkpoint = try checkpoint(StartDomainTests.contents)
        let domain = try start(checkpoint) { $0.disks = .files(in: disks) }
        #expect(domain.domainID == 9)
        #expect(try files() == ["new-xvda.img", "new-xvdb.img"])
        for (name, content) in StartDomainTests.contents {
            let path = disks.appending("new-\(name).img")
            #expect(
                Array(try Data(contentsOf: URL(fileURLWithPath: path.string))) == content)
            #expect(try told()[name] == path.string)
        }
    }

    @Test func memoryDoesNotStartWithoutItsDisks() throws {
        let checkpoint = try checkpoint(StartDomainTests.contents)
        let error = failure { _ = try start(checkpoint) }
        #expect(error?.code == .stateRejected && error?.message.contains("--disks") == true)
        #expect(error?.message.contains("--force-disks") == true && !hasStarted())
        // The acceptance of omitted disks is no answer for those that exist.
        #expect(
            failure { _ = try start(checkpoint) { $0.acceptsOmittedDisks = true } }?.code
                == .stateRejected)
        _ = try start(checkpoint) { $0.disks = .unchecked }
        #expect(try told() == ["xvda": "/old/a", "xvdb": "/old/b"])
        #expect(try files().isEmpty)
    }

    @Test func omittedDisksMustBeAccepted() throws {
        let checkpoint = try checkpoint(nil) { $0.omitsDisks = true }
        for target in [nil, .unchecked, .files(in: disks)] as [XenRestoreDisks?] {
            let error = failure { _ = try start(checkpoint) { $0.disks = target } }
            #expect(error?.code == .stateRejected)
            #expect(error?.message.contains("--without-disks") == true && !hasStarted())
        }
        _ = try start(checkpoint) { $0.acceptsOmittedDisks = true }
        #expect(try told() == ["xvda": "/old/a", "xvdb": "/old/b"])
    }

    /// A domain that never had disks needs no answer.
    @Test func withoutDisksThereIsNothingToSay() throws {
        let checkpoint = try checkpoint(nil)
        _ = try start(checkpoint)
        xen.with { $0.domains[9] = nil }
        _ = try start(checkpoint) { $0.disks = .files(in: disks) }
        #expect(try files().isEmpty)
    }

    @Test func whatXlDoesNotBuildLeavesNoDisks() throws {
        let checkpoint = try checkpoint(StartDomainTests.contents)
        let error = failure { _ = try start(checkpoint, .fails) { $0.disks = .files(in: disks) } }
        #expect(error?.code == .callFailed && error?.message.contains("no room") == true)
        #expect(try files().isEmpty && hasStarted())
        // xl is not to be found.
        #expect(throws: CheckpointError.self) {
            _ = try start(checkpoint) { options in
                options.disks = .files(in: disks)
                options.xl = "/nowhere/xl"
            }
        }
        #expect(try files().isEmpty)
        // The second disk cannot be made.
        try Data([1]).write(to: URL(fileURLWithPath: disks.appending("new-xvdb.img").string))
        #expect(throws: CheckpointError.self) {
            _ = try start(checkpoint) { $0.disks = .files(in: disks) }
        }
        #expect(try files() == ["new-xvdb.img"] && !hasStarted())
    }

    /// A guest may have written to them, and may still run.
    @Test(arguments: [false, true]) func disksOfADomainThatHasRunStay(_ isUnknown: Bool) throws {
        let checkpoint = try checkpoint(StartDomainTests.contents)
        let error = failure {
            _ = try start(checkpoint, isUnknown ? .isUnknown : .isGone) {
                $0.disks = .files(in: disks)
            }
        }
        #expect(error?.code == (isUnknown ? .callFailed : .gone))
        if !isUnknown { #expect(error?.message.contains("new-xvda.img") == true) }
        #expect(try files() == ["new-xvda.img", "new-xvdb.img"])
    }

    @Test func aConfigurationWithoutTheDisksIsRefusedFirst() throws {
        let checkpoint = try checkpoint(StartDomainTests.contents)
        for (configuration, words) in [
            ("{\"c_info\": {\"name\": \"x\", \"uuid\": \"y\"}, \"disks\": []}", "no disk 'xvda'"),
            ("name = \"web\"\n", "JSON"),
        ] {
            let error = #expect(throws: CheckpointError.self) {
                _ = try start(checkpoint) { options in
                    options.disks = .files(in: disks)
                    options.configuration = Array(configuration.utf8)
                    if configuration.hasPrefix("name") { options.name = nil }
                }
            }
            #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
            #expect(try files().isEmpty && !hasStarted())
        }
    }
}
