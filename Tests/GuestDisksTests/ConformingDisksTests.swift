import Foundation
import GuestConformance
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

/// Runs the checks for groups of disks on this module's groups, and on ones that are wrong.
@Suite struct ConformingDisksTests {
    @Test(arguments: MountedFileSystem.Kind.allCases)
    func filesWithReflinksConform(_ kind: MountedFileSystem.Kind) throws {
        guard let mounted = MountedFileSystem(kind) else { return }
        let files = ["a", "b"].map { mounted.path.appending("\($0).raw") }
        shell("truncate -s 3145728 \(files[0]); truncate -s 100352 \(files[1])")
        let report = ConformanceSuite.runDisks(seed: TestSeed.value) {
            DiskConformanceSubject(
                makeGroup: {
                    try ReflinkDisks(
                        files: files.map { .init(name: $0.lastComponent?.stem ?? "", path: $0) },
                        stateDirectory: mounted.path.appending("state"))
                }, write: { try write($2, to: files[$0], at: Int($1)) })
        }
        #expect(report.isConforming && report.skipped.isEmpty, "\(report)")
        #expect(try names(in: mounted.path) == ["a.raw", "b.raw", "state"])
    }

    /// Each block of a volume is one of the simulated pool's, filled with the first byte written.
    private static func subject(
        _ home: TemporaryDirectory, _ make: @escaping (any DiskGroup) -> any DiskGroup = { $0 }
    ) -> DiskConformanceSubject {
        let pool = SimulatedPool(volumes: ["a": 40, "b": 3])
        let model = Mutex<[String: [UInt8]]>([:])
        return DiskConformanceSubject(
            makeGroup: {
                make(
                    try ThinDisks(
                        volumes: ["a", "b"].map { .init(name: $0, device: FilePath($0)) },
                        stateDirectory: home.path.appending("state"), guardCommand: [], calls: pool)
                )
            },
            write: { disk, offset, bytes in
                let name = disk == 0 ? "a" : "b"
                let block = Int(offset) / 65536
                let start = block * 65536
                var content = model.withLock { $0[name] } ?? pool.contents(name)
                content.replaceSubrange(Int(offset)..<Int(offset) + bytes.count, with: bytes)
                model.withLock { $0[name] = content }
                pool.write(name, UInt64(block), Array(content[start..<start + 65536]))
            })
    }

    @Test func thinVolumesConform() {
        let home = TemporaryDirectory()
        let report = ConformanceSuite.runDisks(seed: TestSeed.value) {
            ConformingDisksTests.subject(home)
        }
        #expect(report.isConforming, "\(report)")
        #expect(report.skipped.map(\.check) == [.revertedDisksAreWritten])
    }

    @Test func setsConform() {
        let home = TemporaryDirectory()
        let report = ConformanceSuite.runDisks(seed: TestSeed.value) {
            ConformingDisksTests.subject(home) { DiskGroupSet([$0]) }
        }
        #expect(report.isConforming, "\(report)")
        #expect(report.skipped.map(\.check) == [.revertedDisksAreWritten])
    }

    // MARK: - Groups that are wrong

    private final class LyingGroup: DiskGroup {
        enum Lie: CaseIterable {
            case findsAnything
            case changesNothing
            case storesNothing
            case cutsAtPreparation
            case overlaps
        }

        let group: any DiskGroup
        let lie: Lie

        init(_ group: any DiskGroup, _ lie: Lie) {
            self.group = group
            self.lie = lie
        }

        func disks() throws(GuestError) -> [GuestDisk] { try group.disks() }

        func prepareCut() throws(GuestError) -> any DiskCut {
            let cut = try group.prepareCut()
            return LyingCut(cut, lie)
        }

        func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
            if lie == .findsAnything { return try prepareCut() }
            return try group.standingCut(name).map { LyingCut($0, lie) }
        }
    }

    private final class LyingCut: DiskCut {
        let base: any DiskCut
        let lie: LyingGroup.Lie
        let isMade = Mutex(false)

        init(_ base: any DiskCut, _ lie: LyingGroup.Lie) {
            self.base = base
            self.lie = lie
        }

        var disks: [GuestDisk] { base.disks }
        var name: String { base.name }

        func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
            try base.cut(within: budget)
        }

        func changedBlocks(
            ofDisk index: Int, since earlier: any DiskCut
        ) throws(GuestError) -> [BlockRange]? {
            if lie == .changesNothing { return [] }
            guard let earlier = earlier as? LyingCut else { return nil }
            return try base.changedBlocks(ofDisk: index, since: earlier.base)
        }

        func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
            switch lie {
            case .storesNothing: []
            case .overlaps: [0..<2, 1..<3]
            default: try base.storedBlocks(ofDisk: index)
            }
        }

        func read(
            _ blocks: BlockRange, ofDisk index: Int,
            into destination: UnsafeMutableRawBufferPointer
        ) throws(GuestError) {
            try base.read(blocks, ofDisk: index, into: destination)
            if lie == .cutsAtPreparation, blocks.contains(0) {
                destination[0] = isMade.withLock { made in
                    defer { made = true }
                    return made ? destination[0] &+ 1 : destination[0]
                }
            }
        }

        func release() throws(GuestError) { try base.release() }
    }

    /// Disks of the own process, whose writes or resizes do something else.
    private final class LyingOwnDisks: RevertibleDisks {
        enum Lie: CaseIterable {
            case none
            case writesNothing
            case writesTheBlockBefore
            case keepsWhatIsCutOff
            case keepsTheSize
        }

        let own = OwnDisks()
        let lie: Lie
        private let cutOff = Mutex<[UInt8]>([])

        init(_ lie: Lie) {
            self.lie = lie
            own.inner.set([
                "a": [UInt8](repeating: 1, count: 3 << 20), "b": .init(repeating: 2, count: 9216),
            ])
        }

        func disks() throws(GuestError) -> [GuestDisk] { try own.disks() }
        func prepareCut() throws(GuestError) -> any DiskCut { try own.prepareCut() }
        func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
            try own.standingCut(name)
        }

        func resize(_ disk: String, to byteCount: UInt64) throws(GuestError) {
            if lie == .keepsTheSize { return }
            let before = own.inner.contents[disk] ?? []
            try own.resize(disk, to: byteCount)
            guard lie == .keepsWhatIsCutOff else { return }
            var contents = own.inner.contents
            if before.count > byteCount {
                cutOff.withLock { $0 = Array(before[Int(byteCount)...]) }
            } else {
                contents[disk]?.replaceSubrange(before.count..., with: cutOff.withLock { $0 })
                own.inner.set(contents)
            }
        }

        func write(
            _ blocks: BlockRange, of disk: String, from source: UnsafeRawBufferPointer
        ) throws(GuestError) {
            switch lie {
            case .writesNothing: return
            case .writesTheBlockBefore where blocks.lowerBound > 0:
                try own.write(
                    blocks.lowerBound - 1..<blocks.upperBound - 1, of: disk, from: source)
            default: try own.write(blocks, of: disk, from: source)
            }
        }
    }

    @Test func wrongWritesAndSizesAreFound() {
        for lie in LyingOwnDisks.Lie.allCases {
            let report = ConformanceSuite.runDisks(
                [.revertedDisksAreWritten], seed: TestSeed.value
            ) {
                let group = LyingOwnDisks(lie)
                return DiskConformanceSubject(
                    makeGroup: { group },
                    write: { disk, offset, bytes in
                        try bytes.withUnsafeBytes {
                            let block = offset / 4096
                            try group.own.write(
                                block..<block + 1, of: disk == 0 ? "a" : "b", from: $0)
                        }
                    })
            }
            #expect(report.isConforming == (lie == .none), "\(lie): \(report)")
            #expect(report.skipped.isEmpty)
        }
    }

    @Test func wrongGroupsAreFound() {
        let expected: [LyingGroup.Lie: Set<DiskConformanceCheck>] = [
            .findsAnything: [.releasedCutIsGone, .standingCutIsFound],
            .changesNothing: [.changedBlocksAreComplete, .standingCutIsFound],
            .storesNothing: [.storedBlocksAreComplete],
            .overlaps: [.storedBlocksAreComplete],
        ]
        for (lie, checks) in expected {
            let home = TemporaryDirectory()
            let report = ConformanceSuite.runDisks(seed: TestSeed.value) {
                ConformingDisksTests.subject(home) { LyingGroup($0, lie) }
            }
            #expect(Set(report.failures.map(\.check)) == checks, "\(lie): \(report)")
        }
        let home = TemporaryDirectory()
        let report = ConformanceSuite.runDisks(seed: TestSeed.value) {
            ConformingDisksTests.subject(home) { LyingGroup($0, .cutsAtPreparation) }
        }
        #expect(report.failures.contains { $0.check == .cutKeepsItsContent }, "\(report)")
    }
}
