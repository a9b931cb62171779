import Foundation
import GuestConformance
import GuestModel
import LinuxGuest
import SystemPackage
import Testing
import VarveTestSupport

/// Runs the checks on this project's guests; those of Xen are in XenGuestTests.
@Suite struct ConformingGuestTests {
    private static let canTrack = (try? ProcessMemory.checkSupport()) != nil

    private static func expectConforming(
        skipping skipped: Set<ConformanceCheck>,
        _ checks: [ConformanceCheck] = ConformanceCheck.allCases,
        _ location: SourceLocation = #_sourceLocation, _ make: () throws -> ConformanceSubject
    ) {
        var random = TestSeed.generator(9600)
        let report = ConformanceSuite.run(checks, seed: random.next(), make)
        #expect(report.isConforming, "\(report)", sourceLocation: location)
        #expect(Set(report.skipped.map(\.check)) == skipped, "\(report)", sourceLocation: location)
    }

    /// Checks that need a dirty log.
    private static let logChecks = Set(ConformanceCheck.allCases.filter { 6...20 ~= $0.rawValue })

    private final class Gate: @unchecked Sendable {
        // Unchecked: one thread runs a check.
        var isHeld = false
    }

    private static func memory(
        _ tracking: ProcessMemory.Tracking, _ backing: ProcessMemory.Backing
    ) throws -> ConformanceSubject {
        let gate = Gate()
        let memory = ProcessMemory(
            tracking: tracking, hold: { gate.isHeld = true }, release: { gate.isHeld = false })
        for count in [30, 1, 17] {
            _ = try memory.allocate(byteCount: count * Page.byteCount, backing: backing)
        }
        let regions = memory.allRegions
        let page = { (frame: PageFrameNumber) throws -> UnsafeMutableRawBufferPointer in
            guard let page = memory.mappedMemory(of: PageRange(first: frame, count: 1)) else {
                throw GuestError(code: .invalidRange, message: "frame \(frame) does not exist")
            }
            return page
        }
        var subject = ConformanceSubject(
            guest: memory, write: { try page($0).copyBytes(from: $1) },
            read: { Array(try page($0)) })
        var count = 0
        subject.work = {
            guard !gate.isHeld else { return }
            count += 1
            try page(PageFrameNumber(UInt64(count % 48)))[count % 4096] &+= 1
        }
        subject.another = {
            // One of the regions is enough.
            let other = ProcessMemory(tracking: tracking)
            _ = try other.register(regions[2].bytes)
            return other
        }
        return subject
    }

    @Test(arguments: [ProcessMemory.Backing.anonymous, .shared])
    func ownMemoryConforms(backing: ProcessMemory.Backing) {
        guard ConformingGuestTests.canTrack else {
            noteSkipped("skipped: this kernel cannot track writes")
            return
        }
        ConformingGuestTests.expectConforming(
            skipping: [.logEndedFromOutsideIsFound, .changedPagesAreTheGuests]
        ) {
            try ConformingGuestTests.memory(.writeProtect, backing)
        }
    }

    @Test func ownMemoryWithoutALogConforms() {
        ConformingGuestTests.expectConforming(
            skipping: ConformingGuestTests.logChecks.union([.changedPagesAreTheGuests])
        ) {
            try ConformingGuestTests.memory(.compareAll, .anonymous)
        }
    }

    private static func simulated(hasLog: Bool) -> ConformanceSubject {
        let layout = GuestLayout(runs: [
            PageRange(first: PageFrameNumber(0), count: 20),
            PageRange(first: PageFrameNumber(70), count: 30),
        ])
        let guest = SimulatedGuest(layout: layout, hasLog: hasLog)
        var subject = ConformanceSubject(
            guest: guest, write: { frame, bytes in guest.with { $0.write(frame.rawValue, bytes) } },
            read: { frame in guest.with { $0.pages[frame.rawValue] ?? [] } })
        var count = UInt64(0)
        subject.work = {
            count += 1
            let (frame, value) = (count % 20, UInt8(truncatingIfNeeded: count))
            guest.with { state in
                guard !state.isPaused else { return }
                state.write(frame, [UInt8](repeating: value, count: Page.byteCount))
                state.state = GuestState(records: [GuestState.Record(kind: "n", bytes: [value])])
            }
        }
        return subject
    }

    @Test(arguments: [true, false])
    func aSimulatedGuestConforms(hasLog: Bool) {
        let always: Set<ConformanceCheck> = [
            .anotherObjectIsRefused, .mappedMemoryIsTheGuests, .changedPagesAreTheGuests,
        ]
        ConformingGuestTests.expectConforming(
            skipping: always.union(
                hasLog ? [.logEndedFromOutsideIsFound] : ConformingGuestTests.logChecks)
        ) {
            ConformingGuestTests.simulated(hasLog: hasLog)
        }
    }

    /// An image has no log; only one that is being created can be written.
    @Test func anImageConforms() throws {
        let directory = TemporaryDirectory()
        let path = directory.path.appending("image")
        func handle() throws -> FileHandle {
            guard let handle = FileHandle(forUpdatingAtPath: path.string) else {
                throw GuestError(code: .unavailable, message: "the image cannot be opened")
            }
            return handle
        }
        let missing: Set<ConformanceCheck> = [
            .anotherObjectIsRefused, .mappedMemoryIsTheGuests, .pauseHoldsTheGuest,
            .resumeLetsTheGuestGoOn, .changedPagesAreTheGuests,
        ]
        let checks = ConformanceCheck.allCases.filter { $0 != .writtenPagesAreRead }
        ConformingGuestTests.expectConforming(
            skipping: missing.union(ConformingGuestTests.logChecks), checks
        ) {
            try Data(repeating: 3, count: 50 * Page.byteCount)
                .write(to: URL(fileURLWithPath: path.string))
            return ConformanceSubject(
                guest: try ImageFile(reading: path),
                write: { frame, bytes in
                    let handle = try handle()
                    try handle.seek(toOffset: frame.rawValue * 4096)
                    try handle.write(contentsOf: Data(bytes))
                },
                read: { frame in
                    let handle = try handle()
                    try handle.seek(toOffset: frame.rawValue * 4096)
                    return Array(try handle.read(upToCount: Page.byteCount) ?? Data())
                })
        }
    }
}
