import Glibc
import GuestModel
import Synchronization
import Testing
import VarveTestSupport

@testable import XenGuest
@testable import XenStream

/// The stream of a PV domain.
enum PVStream {
    /// A stream in epochs, which the writer writes between its steps.
    static func epochs(isCheckpointed: Bool) -> [[UInt8]] {
        var random = TestSeed.generator(8800)
        let maker = StreamMaker.guest(
            isPV: true, wrapper: .libxc, epochCount: isCheckpointed ? 4 : 0, pageCount: 300,
            &random)
        var parts: [[UInt8]] = []
        var start = 0
        for boundary in maker.boundaries where maker.bytes[boundary] == 0xe && isCheckpointed {
            let isRecord = maker.bytes[boundary..<boundary + 8].elementsEqual(
                little(UInt32(0xe)) + little(UInt32(0)))
            guard isRecord else { continue }
            parts.append(Array(maker.bytes[start..<boundary + 8]))
            start = boundary + 8
        }
        if start < maker.bytes.count { parts.append(Array(maker.bytes[start...])) }
        return parts
    }
}

/// PV domains, whose stream is read while libxenguest writes it.
@Suite struct XenPVDomainTests {
    private struct GaveUp: Error {}

    private func make(
        isCheckpointed: Bool, suspendTimeout: Duration = .seconds(10)
    ) throws -> (FakeXen, XenPVDomain, [[UInt8]]) {
        let xen = FakeXen()
        xen.add(FakeDomain(Scene.number, frames: [0..<300], seed: 3, isHVM: false))
        let epochs = PVStream.epochs(isCheckpointed: isCheckpointed)
        xen.with { $0.epochs = epochs }
        var options = XenDomain.Options()
        options.suspendTimeout = suspendTimeout
        return (xen, try XenPVDomain(Scene.number, calls: xen, options: options), epochs)
    }

    private func readAll(
        _ source: (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws -> [UInt8] {
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 7000)
        while true {
            let count = try buffer.withUnsafeMutableBytes { try source($0) }
            if count == 0 { return bytes }
            bytes += buffer[..<count]
        }
    }

    @Test func aPlainSaveReadsWhatWasWrittenWhileTheDomainStoodStill() throws {
        let (xen, domain, epochs) = try make(isCheckpointed: false)
        #expect(domain.configuration == FakeXen.configuration)
        var bytes: [UInt8] = []
        let pauses = try domain.save(.plain) { bytes = try readAll($0) }
        #expect(bytes == Array(epochs.joined()))
        #expect(pauses.count == 1 && pauses[0].downtime > .zero)
        #expect(xen.complaints(Scene.number, isLogOn: false) == [])
    }

    @Test func aCheckpointedSaveHoldsAndResumesOnceForEachEpoch() throws {
        let (xen, domain, epochs) = try make(isCheckpointed: true)
        #expect(epochs.count == 4)
        let asked = Atomic(0)
        var bytes: [UInt8] = []
        let next: @Sendable (PauseTimes) -> Bool = { times in
            #expect(times.downtime > .zero)
            // It is asked while the domain runs.
            #expect(xen.complaints(Scene.number) == [])
            return asked.add(1, ordering: .relaxed).newValue < 3
        }
        let pauses = try domain.save(.checkpointed(next: next)) { bytes = try readAll($0) }
        #expect(bytes == Array(epochs[..<3].joined()))
        #expect(pauses.count == 3)
        let steps = xen.with { $0.trace }.filter { ["write", "resumeSuspended"].contains($0) }
        #expect(
            steps == Array(["write", "resumeSuspended", "write", "resumeSuspended"] + steps[4...]))
        #expect(steps.count == 6)
        #expect(xen.complaints(Scene.number) == [])
    }

    @Test(arguments: [true, false])
    func aReaderThatGivesUpLeavesTheDomainRunning(isCheckpointed: Bool) throws {
        let (xen, domain, _) = try make(isCheckpointed: isCheckpointed)
        let mode: XenPVDomain.Mode = isCheckpointed ? .checkpointed(next: { _ in true }) : .plain
        var buffer = [UInt8](repeating: 0, count: 100)
        #expect(throws: GaveUp.self) {
            try domain.save(mode) { source in
                _ = try buffer.withUnsafeMutableBytes { try source($0) }
                throw GaveUp()
            }
        }
        #expect(xen.complaints(Scene.number) == [])
        #expect(try domain.save(.plain) { _ = try readAll($0) }.count == 1, "it goes on")
    }

    @Test func aReaderThatStopsEarlyIsToldSo() throws {
        let (xen, domain, _) = try make(isCheckpointed: false)
        let error = failure { _ = try domain.save(.plain) { _ in } }
        #expect(error?.errno == EPIPE)
        #expect(xen.complaints(Scene.number) == [])
    }

    @Test func theWritersFailureIsTheCauseOfTheReaders() throws {
        let (xen, domain, _) = try make(
            isCheckpointed: false, suspendTimeout: .milliseconds(40))
        xen.with(Scene.number) { $0.answer = .never }
        let error = failure {
            _ = try domain.save(.plain) { source in
                _ = try readAll(source)
                throw XenStreamError(.truncated, "the stream is cut")
            }
        }
        #expect(error?.code == .timedOut)
        #expect(xen.complaints(Scene.number) == [])
    }

    @Test(arguments: [EPERM, EIO])
    func everyFailedCallOfASaveLeavesTheDomainRunning(errno: Int32) throws {
        for call in 0..<60 {
            let (xen, domain, epochs) = try make(isCheckpointed: true)
            xen.failCall(call, errno: errno)
            let count = Atomic(0)
            do {
                _ = try domain.save(
                    .checkpointed(next: { _ in count.add(1, ordering: .relaxed).newValue < 2 })
                ) { _ = try readAll($0) }
            } catch {
                let message = (error as? GuestError)?.message ?? ""
                #expect(isSentence(message), "call \(call)")
            }
            let isOver = xen.with { $0.fault != nil }
            xen.failCall(nil)
            #expect(xen.complaints(Scene.number) == [], "call \(call) of \(epochs.count) epochs")
            if isOver { return }
        }
        Issue.record("a save makes fewer calls")
    }

    @Test func aDomainOfAnotherKindOrHoldIsRefused() throws {
        let xen = FakeXen()
        xen.add(FakeDomain(Scene.number, frames: [0..<4], seed: 3))
        let error = failure {
            _ = try XenPVDomain(Scene.number, calls: xen, options: XenDomain.Options())
        }
        #expect(error?.code == .unsupported && error?.message.contains("XenDomain") == true)
        xen.with(Scene.number) { $0.facts.isHVM = false }
        var options = XenDomain.Options()
        options.pauseMode = .pause
        #expect(
            failure { _ = try XenPVDomain(Scene.number, calls: xen, options: options) }?.code
                == .unsupported)
        #expect(
            failure { _ = try XenPVDomain(99, calls: xen, options: XenDomain.Options()) }?.code
                == .gone)
    }
}
