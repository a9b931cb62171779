import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import LinuxGuest
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointEngine

/// Two sessions of one guest: the second is refused; and where it cannot be known that both have
/// the same guest, neither misses a page.
@Suite struct OwnershipTests {
    enum Kind: String, CaseIterable {
        case simulated
        case simulatedWithoutLog
        case ownMemory
        case ownMemoryCompared
    }

    /// A guest and how it writes.
    private struct Subject {
        let guest: any WritableGuest
        let pageCount: UInt64
        let write: (UInt64, UInt8) -> Void
    }

    private static let canTrack = (try? ProcessMemory.checkSupport()) != nil
    private let directory = TemporaryDirectory()

    /// nil where this kernel cannot track writes.
    private static func make(_ kind: Kind) throws -> Subject? {
        let pageCount = 120
        switch kind {
        case .simulated, .simulatedWithoutLog:
            let guest = SimulatedGuest(
                layout: GuestLayout(pageCount: pageCount), hasLog: kind == .simulated)
            return Subject(guest: guest, pageCount: UInt64(pageCount)) { frame, value in
                guest.with { $0.write(frame, [UInt8](repeating: value, count: Page.byteCount)) }
            }
        case .ownMemory, .ownMemoryCompared:
            guard kind == .ownMemoryCompared || canTrack else { return nil }
            let memory = ProcessMemory(tracking: kind == .ownMemory ? .writeProtect : .compareAll)
            let region = try memory.allocate(byteCount: pageCount * Page.byteCount)
            return Subject(guest: memory, pageCount: UInt64(pageCount)) { frame, value in
                region.bytes[Int(frame) * Page.byteCount + Int(frame)] = value
            }
        }
    }

    private func repository(_ name: String) throws -> Repository {
        try Repository.create(at: directory.path.appending(name))
    }

    private static func write(_ subject: Subject, _ random: inout SeededGenerator) {
        for _ in 0..<Int.random(in: 1...12, using: &random) {
            subject.write(
                .random(in: 0..<subject.pageCount, using: &random),
                .random(in: 1...255, using: &random))
        }
    }

    private static func expectWhole(
        _ session: CaptureSession, _ subject: Subject, _ note: String,
        _ location: SourceLocation = #_sourceLocation
    ) throws {
        let result = try session.capture()
        #expect(
            try result.checkpoint.memory.root == subject.guest.memoryRoot(), "\(note)",
            sourceLocation: location)
    }

    private static func refusal(_ body: () throws(CheckpointError) -> Void) -> GuestError? {
        do {
            try body()
            return nil
        } catch {
            return error.guestError
        }
    }

    @Test(arguments: Kind.allCases)
    func aSecondSessionIsRefusedUntilTheFirstHasEnded(kind: Kind) throws {
        let (here, there) = (try repository("here"), try repository("there"))
        for salt in UInt64(0)..<5 {
            guard let subject = try OwnershipTests.make(kind) else { return }
            var random = TestSeed.generator(9100 + salt)
            var first: CaptureSession? = try CaptureSession(
                of: subject.guest, in: here, lineage: LineageName("a\(salt)"))
            OwnershipTests.write(subject, &random)
            _ = try first?.capture()
            let lineage = try LineageName("b\(salt)")
            let error = OwnershipTests.refusal { () throws(CheckpointError) in
                _ = try CaptureSession(of: subject.guest, in: there, lineage: lineage)
            }
            #expect(error?.code == .busy)
            #expect(error?.message.contains("close that session") == true, "the remedy is said")
            // Closed, or dropped without closing; closing twice has no further effect.
            let isClosed = Bool.random(using: &random)
            if isClosed { first?.close() } else { first = nil }
            OwnershipTests.write(subject, &random)
            let second = try CaptureSession(
                of: subject.guest, in: there, lineage: LineageName("b\(salt)"))
            try OwnershipTests.expectWhole(second, subject, "the second's first")
            OwnershipTests.write(subject, &random)
            first?.close()
            first = nil
            try OwnershipTests.expectWhole(second, subject, "after the first's end, salt \(salt)")
            #expect(
                OwnershipTests.refusal { () throws(CheckpointError) in
                    _ = try CaptureSession(of: subject.guest, in: here, lineage: "c")
                }?.code == .busy, "the first's end has freed nothing of the second's")
            second.close()
        }
    }

    enum Order: CaseIterable {
        /// A captures, B begins and captures, A is dropped, the guest writes, B captures.
        case oldEndsAfterNewCaptured
        /// A captures, B begins, A is dropped, the guest writes, B captures twice.
        case oldEndsBeforeNewCaptured
        /// A and B capture by turns, and B ends first.
        case byTurns
    }

    /// Views of a guest that do not know of each other: they have only the names of the logs in
    /// common.
    @Test(arguments: Kind.allCases, Order.allCases)
    func whoSharesALogUnknowinglyMissesNoPage(kind: Kind, order: Order) throws {
        let (here, there) = (try repository("here"), try repository("there"))
        for salt in UInt64(0)..<5 {
            guard let subject = try OwnershipTests.make(kind) else { return }
            var random = TestSeed.generator(9200 + salt)
            var a: CaptureSession? = try CaptureSession(
                of: AnotherView(of: subject.guest), in: here, lineage: LineageName("a\(salt)"))
            OwnershipTests.write(subject, &random)
            _ = try a?.capture()
            OwnershipTests.write(subject, &random)
            let b = try CaptureSession(
                of: AnotherView(of: subject.guest), in: there, lineage: LineageName("b\(salt)"))
            if order != .oldEndsBeforeNewCaptured {
                try OwnershipTests.expectWhole(b, subject, "\(order), salt \(salt), B's first")
            }
            if order == .byTurns {
                for turn in 0..<3 {
                    OwnershipTests.write(subject, &random)
                    if let a { try OwnershipTests.expectWhole(a, subject, "A's turn \(turn)") }
                    OwnershipTests.write(subject, &random)
                    try OwnershipTests.expectWhole(b, subject, "B's turn \(turn), salt \(salt)")
                }
                b.close()
                OwnershipTests.write(subject, &random)
                if let a { try OwnershipTests.expectWhole(a, subject, "A after B's end") }
                a = nil
                continue
            }
            a = nil
            for turn in 0..<2 {
                OwnershipTests.write(subject, &random)
                try OwnershipTests.expectWhole(b, subject, "\(order), salt \(salt), turn \(turn)")
            }
        }
    }

    /// A log that ends in the middle of a capture or revert, at each call of the guest.
    @Test func aLogThatEndsAtAnyMomentCostsATimeAndNoPage() throws {
        let store = try repository("here")
        for salt in UInt64(0)..<5 {
            var random = TestSeed.generator(9300 + salt)
            let guest = SimulatedGuest(layout: GuestLayout(pageCount: 120))
            let session = try CaptureSession(of: guest, in: store, lineage: LineageName("a\(salt)"))
            let first = try session.capture().checkpoint
            for calls in 0..<14 {
                let subject = Subject(guest: guest, pageCount: 120) { frame, value in
                    guest.with { $0.write(frame, [UInt8](repeating: value, count: Page.byteCount)) }
                }
                OwnershipTests.write(subject, &random)
                // Another party begins a log of its own, and may end it.
                guest.intrude(after: calls, ends: Bool.random(using: &random))
                if calls % 3 == 2 {
                    try session.revert(to: first)
                    #expect(try guest.memoryRoot() == first.memory.root, "\(calls), salt \(salt)")
                }
                try OwnershipTests.expectWhole(session, subject, "call \(calls), salt \(salt)")
            }
            session.close()
        }
        #expect(try store.verify().isClean)
    }

    /// A guest with another guest's history, whose owner is that of the guest that it wraps.
    private final class Stranger: Guest {
        let base: SimulatedGuest

        init(_ base: SimulatedGuest) { self.base = base }

        func layout() throws(GuestError) -> GuestLayout { try base.layout() }
        var dirtyTracking: (any DirtyTracking)? { base.dirtyTracking }
        func pause() throws(GuestError) { try base.pause() }
        func resume() throws(GuestError) { try base.resume() }
        func copyPages(
            _ runs: Span<PageRange>, into destination: inout MutableRawSpan
        ) throws(GuestError) {
            try base.copyPages(runs, into: &destination)
        }
        func captureState() throws(GuestError) -> GuestState { try base.captureState() }
        func difference(fromHistory state: GuestState) -> String? { "it is of somebody else" }
        func claim() throws(GuestError) -> GuestClaim { try base.claim() }
    }

    @Test func aSessionThatCannotBeginLeavesTheGuestFree() throws {
        let store = try repository("here")
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 8))
        let session = try CaptureSession(of: guest, in: store, lineage: "a")
        _ = try session.capture()
        session.close()
        for _ in 0..<2 {
            let error = OwnershipTests.refusal { () throws(CheckpointError) in
                _ = try CaptureSession(of: Stranger(guest), in: store, lineage: "a")
            }
            #expect(error?.code == .anotherGuest)
        }
        let next = try CaptureSession(of: guest, in: store, lineage: "a")
        _ = try next.capture()
        next.close()
    }

    /// Two guests over the same memory are one guest.
    @Test func memoryHasOneOwnerWhicheverObjectStandsForIt() throws {
        let (here, there) = (try repository("here"), try repository("there"))
        let owner = ProcessMemory(tracking: .compareAll)
        let region = try owner.allocate(byteCount: 16 * Page.byteCount)
        let other = ProcessMemory(tracking: .compareAll)
        _ = try other.register(UnsafeMutableRawBufferPointer(rebasing: region.bytes[(8 * 4096)...]))
        let session = try CaptureSession(of: owner, in: here, lineage: "a")
        let error = OwnershipTests.refusal { () throws(CheckpointError) in
            _ = try CaptureSession(of: other, in: there, lineage: "b")
        }
        #expect(error?.code == .busy && error?.message.contains("memory at 0x") == true)
        session.close()
        let second = try CaptureSession(of: other, in: there, lineage: "b")
        #expect(
            OwnershipTests.refusal { () throws(CheckpointError) in
                _ = try CaptureSession(of: owner, in: here, lineage: "a")
            }?.code == .busy)
        second.close()
    }

    /// Memory added to a guest that has an owner belongs to that owner too.
    @Test func memoryThatComesLaterIsClaimedToo() throws {
        let (here, there) = (try repository("here"), try repository("there"))
        let owner = ProcessMemory(tracking: .compareAll)
        let other = ProcessMemory(tracking: .compareAll)
        let session = try CaptureSession(of: owner, in: here, lineage: "a")
        let region = try owner.allocate(byteCount: 4 * Page.byteCount)
        _ = try other.register(region.bytes)
        #expect(
            OwnershipTests.refusal { () throws(CheckpointError) in
                _ = try CaptureSession(of: other, in: there, lineage: "b")
            }?.code == .busy)
        // And in the other direction: memory that has an owner cannot be added to another owner's
        // guest.
        let third = ProcessMemory(tracking: .compareAll)
        let thirdSession = try CaptureSession(of: third, in: there, lineage: "c")
        #expect(throws: GuestError.self) { try third.register(region.bytes) }
        session.close()
        _ = try third.register(region.bytes)
        thirdSession.close()
    }
}
