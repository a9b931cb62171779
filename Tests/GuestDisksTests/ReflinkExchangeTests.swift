import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

/// Files that get the contents of a checkpoint under their guest; and sets of groups.
@Suite struct ReflinkExchangeTests {
    @Test(arguments: MountedFileSystem.Kind.allCases)
    func aGuestGoesBackAndForthWithItsFiles(_ kind: MountedFileSystem.Kind) throws {
        guard let mounted = MountedFileSystem(kind) else { return }
        var random = TestSeed.generator(9930)
        let paths = ["a", "b"].map { mounted.path.appending("\($0).raw") }
        let groups = try paths.enumerated().map { index, path in
            try write([UInt8](repeating: 1, count: 300 * 512), to: path, at: 0)
            return try ReflinkDisks(
                files: [.init(name: "d\(index)", path: path)],
                stateDirectory: mounted.path.appending("state"))
        }
        let disks = DiskGroupSet(groups)
        let directory = TemporaryDirectory()
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 8))
        let session = try CaptureSession(of: guest, in: repository, lineage: "own", disks: disks)
        var copies: [(Checkpoint, [[UInt8]])] = []
        var counts: [Int] = []
        for round in 0..<30 {
            for path in paths where Bool.random(using: &random) {
                let byte = UInt8.random(in: 0...3, using: &random)
                let offset = Int.random(in: 0..<280, using: &random) * 512
                try write([UInt8](repeating: byte, count: 20 * 512), to: path, at: offset)
            }
            if round < 4 || Bool.random(using: &random) {
                let checkpoint = try session.capture().checkpoint
                copies.append((checkpoint, try paths.map { try bytes(of: $0) }))
            } else if let (target, files) = copies.randomElement(using: &random) {
                counts.append(try session.revert(to: target).writtenBlockCount)
                #expect(try paths.map { try bytes(of: $0) } == files, "round \(round)")
                let clones = try names(in: mounted.path).filter { $0.hasPrefix(".") }
                #expect(clones.count == 2, "round \(round): \(clones)")
            }
            #expect(session.diskReleaseFailure == nil)
        }
        #expect(counts.allSatisfy { $0 < 76 } && counts.contains { $0 > 0 })
        session.close()
        #expect(try disks.leftovers().isEmpty)
        #expect(try names(in: mounted.path).filter { $0.hasPrefix(".") }.isEmpty)
    }

    /// Each call of the kernel fails once: all files are as before, or all are the checkpoint's.
    @Test(arguments: MountedFileSystem.Kind.allCases)
    func aFailedCallExchangesAllFilesOrNone(_ kind: MountedFileSystem.Kind) throws {
        guard let mounted = MountedFileSystem(kind) else { return }
        let paths = ["a", "b"].map { mounted.path.appending("\($0).raw") }
        let disks = DiskGroupSet(
            try paths.enumerated().map { index, path in
                try ReflinkDisks(
                    files: [.init(name: "d\(index)", path: path)],
                    stateDirectory: mounted.path.appending("state"))
            })
        var failed = 0
        for number in 0..<400 {
            for path in paths { try write([UInt8](repeating: 1, count: 8192), to: path, at: 0) }
            let calls = FailingCalls(failing: number)
            do {
                let exchange = try disks.prepareExchange(from: nil)
                defer { try? exchange.end() }
                for index in 0..<2 {
                    let block = [UInt8](repeating: 2, count: 4096)
                    try block.withUnsafeBytes { try exchange.write(0..<1, ofDisk: index, from: $0) }
                }
                let cut = try exchange.finishWriting()
                defer { try? cut.release() }
                try exchange.exchange()
            } catch is GuestError {}
            calls.end()
            let first = try paths.map { try bytes(of: $0)[0] }
            #expect(first == [1, 1] || first == [2, 2], "\(number), \(calls.failed ?? "")")
            try disks.dropLeftovers()
            #expect(try names(in: mounted.path).filter { $0.hasPrefix(".") }.isEmpty)
            if calls.failed == nil { break }
            failed += 1
        }
        #expect(failed > 40)
    }
}
