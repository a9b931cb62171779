import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

/// Files that go back with the memory of their process.
@Suite struct RevertedFilesTests {
    @Test(arguments: MountedFileSystem.Kind.allCases)
    func filesAreRevertedWithTheMemory(_ kind: MountedFileSystem.Kind) throws {
        guard let mounted = MountedFileSystem(kind) else { return }
        var random = TestSeed.generator(9801)
        let disks = try ReflinkDisks(
            files: ["a", "b"].map { .init(name: $0, path: mounted.path.appending("\($0).raw")) },
            stateDirectory: mounted.path.appending("state"))
        let paths = disks.files.map(\.path)
        for path in paths { try write([UInt8](repeating: 1, count: 300 * 512), to: path, at: 0) }
        let directory = TemporaryDirectory()
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 8))
        let session = try CaptureSession(of: guest, in: repository, lineage: "own", disks: disks)
        var copies: [(Checkpoint, [[UInt8]], [UInt64: [UInt8]])] = []
        var wholeCount = 0
        for round in 0..<30 {
            for path in paths where Bool.random(using: &random) {
                if Int.random(in: 0..<4, using: &random) == 0 {
                    let size = Int.random(in: 1...800, using: &random) * 512
                    let file = try FileDescriptor.open(path, .writeOnly)
                    try file.closeAfter { try file.resize(to: Int64(size)) }
                }
                let size = try bytes(of: path).count
                for _ in 0..<3 {
                    let offset = Int.random(in: 0..<size / 512, using: &random) * 512
                    let length = min(size - offset, Int.random(in: 1...20, using: &random) * 512)
                    let byte = UInt8.random(in: 0...3, using: &random)
                    try write([UInt8](repeating: byte, count: length), to: path, at: offset)
                }
            }
            let page = [UInt8](repeating: .random(in: 0...9, using: &random), count: 4096)
            guest.with { $0.write(.random(in: 0..<8), page) }
            if round < 4 || Bool.random(using: &random) {
                let checkpoint = try session.capture().checkpoint
                copies.append(
                    (checkpoint, try paths.map { try bytes(of: $0) }, guest.with { $0.pages }))
            } else if let (target, files, pages) = copies.randomElement(using: &random) {
                let blocks = files.reduce(0) { $0 + ($1.count + 4095) / 4096 }
                let result = try session.revert(to: target)
                #expect(try paths.map { try bytes(of: $0) } == files, "round \(round)")
                #expect(guest.with { $0.pages } == pages)
                if result.writtenBlockCount == blocks { wholeCount += 1 }
            }
        }
        #expect(wholeCount <= 3, "only what differs is written")
        session.close()
        #expect(try disks.leftovers().isEmpty && session.diskReleaseFailure == nil)
        #expect(try names(in: mounted.path).filter { $0.hasPrefix(".") }.isEmpty)
    }

    @Test func blocksPastTheEndAreLeftOut() throws {
        let home = TemporaryDirectory()
        let path = home.path.appending("a.raw")
        try write([UInt8](repeating: 1, count: 6 * 512), to: path, at: 0)
        let disks = try ReflinkDisks(
            files: [.init(name: "a", path: path)], stateDirectory: home.path.appending("state"))
        // Bytes past the end of the file are left out, and the size stays.
        let block = [UInt8](repeating: 2, count: 4096)
        try block.withUnsafeBytes { try writeBlocks(disks, 0..<1, $0) }
        #expect(try bytes(of: path) == [UInt8](repeating: 2, count: 6 * 512))
        try disks.resize("a", to: 4608)
        #expect(try bytes(of: path) == [UInt8](repeating: 2, count: 3072) + zeros(1536))
        try block.withUnsafeBytes { try writeBlocks(disks, 1..<2, $0) }
        #expect(try bytes(of: path).suffix(512) == block[..<512])
        #expect(throws: GuestError.self) { try disks.resize("b", to: 512) }
        #expect(throws: GuestError.self) {
            try block.withUnsafeBytes { try writeBlocks(disks, 0..<2, $0) }
        }
    }

    private func zeros(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

    private func writeBlocks(
        _ disks: ReflinkDisks, _ blocks: BlockRange, _ bytes: UnsafeRawBufferPointer
    ) throws { try disks.write(blocks, of: "a", from: bytes) }
}
