import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Glibc
import GuestModel
import Testing
import VarveTestSupport

@testable import XenGuest

/// The dirty log, and the actions taken where it is missing or incomplete.
@Suite struct DomainLogTests {
    private func enable(_ scene: Scene, errno: Int32) throws -> GuestError? {
        scene.xen.with(Scene.number) { $0.log.enableErrno = errno }
        return failure { _ = try scene.capture() }
    }

    @Test func aLogThatIsOnAlreadyIsSomebodyElses() throws {
        let scene = try Scene(8500)
        scene.xen.with(Scene.number) { $0.log.isOn = true }
        let error = failure { _ = try scene.capture() }
        #expect(error?.code == .busy)
        #expect(error?.message.contains("--take-over") == true)
        scene.close()
        scene.expectSound(isLogOn: true, "it is left as it was")
    }

    @Test func aLogTakenOverComparesEveryPage() throws {
        let scene = try Scene(8501)
        _ = try scene.capture()
        scene.close()
        scene.xen.with(Scene.number) { $0.log.isOn = true }
        scene.write()
        scene.options.takesLogOver = true
        let result = try scene.capture()
        #expect(result.checkpoint.comparedAll)
        scene.write()
        #expect(try !scene.capture().checkpoint.comparedAll)
        scene.close()
        scene.expectSound(isLogOn: false)
    }

    @Test(arguments: [EOPNOTSUPP, ENOSYS])
    func aHypervisorWithoutALogIsUnsupportedWithARemedy(errno: Int32) throws {
        let scene = try Scene(8502)
        let error = try enable(scene, errno: errno)
        #expect(error?.code == .unsupported)
        #expect(error?.message.contains("--compare-all") == true)
        scene.options.comparesAll = true
        try scene.open()
        #expect(try scene.capture().checkpoint.comparedAll, "the remedy works")
        scene.close()
        scene.expectSound(isLogOn: false)
    }

    @Test func aHypervisorWithoutMemoryForTheLogIsToldWithARemedy() throws {
        let scene = try Scene(8503)
        let error = try enable(scene, errno: ENOMEM)
        #expect(error?.code == .callFailed && error?.errno == ENOMEM)
        #expect(error?.message.contains("xl mem-set 0") == true)
    }

    @Test func aSetThatTheHypervisorCouldNotKeepIsUnknownAndTheLogRestarts() throws {
        let scene = try Scene(8504)
        _ = try scene.capture()
        scene.write()
        scene.xen.with(Scene.number) { domain in
            // Its writes are not in the set: that is the failure.
            domain.log.dirty = DirtyBitmap()
            domain.log.hasFailed = true
        }
        let result = try scene.capture()
        #expect(result.checkpoint.comparedAll)
        scene.expectSound(isLogOn: true)
        scene.write()
        #expect(try !scene.capture().checkpoint.comparedAll)
    }

    @Test(arguments: [1, 5, 99])
    func aBusyLogIsTriedAgain(count: Int) throws {
        let scene = try Scene(8505)
        _ = try scene.capture()
        scene.write()
        scene.xen.with(Scene.number) { $0.log.busyCount = count }
        #expect(try !scene.capture().checkpoint.comparedAll)
    }

    @Test func aLogThatStaysBusyFailsTheCaptureAndLosesNothing() throws {
        let scene = try Scene(8506)
        _ = try scene.capture()
        scene.write()
        scene.xen.with(Scene.number) { $0.log.busyCount = .max }
        #expect(failure { _ = try scene.capture() }?.errno == EBUSY)
        scene.xen.with(Scene.number) { $0.log.busyCount = 0 }
        scene.expectSound(isLogOn: true)
        _ = try scene.capture()
    }

    /// `xl save` and `xl migrate` turn the log off when they end; a log that is off reads as empty.
    @Test func aLogThatAnotherToolTurnedOffIsUnknown() throws {
        let scene = try Scene(8507)
        _ = try scene.capture()
        scene.write()
        try scene.xen.disableLog(Scene.number)
        scene.write()
        #expect(try scene.capture().checkpoint.comparedAll)
        scene.expectSound(isLogOn: true)
        scene.write()
        #expect(try !scene.capture().checkpoint.comparedAll)
    }

    @Test func aLogThatCouldNotBeTurnedOffIsUsedAgain() throws {
        let scene = try Scene(8508)
        let session = try scene.open()
        _ = try scene.capture()
        let domain = try #require(scene.domain)
        // The first call of `stop` fails.
        scene.xen.failCall(0, errno: EIO)
        session.close()
        scene.expectSound(isLogOn: true)
        domain.stop(try domain.start())
        scene.expectSound(isLogOn: false)
    }

    @Test func anAssignedDeviceMeansThatEveryPageIsCompared() throws {
        let scene = try Scene(8509)
        scene.xen.with { $0.store["/local/domain/7/device/pci/0/state"] = "4" }
        try scene.open()
        #expect(scene.domain?.comparesAllBecause?.contains("PCI") == true)
        #expect(scene.domain?.dirtyTracking == nil)
        for _ in 0..<3 {
            scene.write()
            #expect(try scene.capture().checkpoint.comparedAll)
        }
        #expect(!scene.xen.with { $0.trace }.contains("enableLog"))
        scene.expectSound(isLogOn: false)
    }

    @Test func aFrameThatABackendMayWriteIsInEverySet() throws {
        let scene = try Scene(8510)
        let domain = try XenDomain(Scene.number, calls: scene.xen, options: scene.options)
        let log = try domain.start()
        for isFinal in [false, true, false] {
            var set = DirtyBitmap()
            #expect(try domain.takeDirty(log, into: &set, isFinal: isFinal) == .complete)
            #expect(set.contains(PageFrameNumber(3)), "mapped for writing")
            #expect(!set.contains(PageFrameNumber(4)), "granted and not mapped so")
            #expect(set.contains(PageFrameNumber(2105)) == isFinal, "mapped by the hypervisor")
        }
        // A frame outside the guest's memory is ignored.
        scene.xen.with(Scene.number) { $0.grants.append(GrantEntry(flags: 1 << 4, frame: 1 << 40)) }
        var set = DirtyBitmap()
        _ = try domain.takeDirty(log, into: &set, isFinal: false)
        #expect(set.words.count * 64 < 1 << 20)
    }

    @Test func aDirtyFrameOutsideTheLayoutMeansAnotherScan() throws {
        let scene = try Scene(8511)
        let domain = try XenDomain(Scene.number, calls: scene.xen, options: scene.options)
        let log = try domain.start()
        let before = try domain.layout()
        func scans() -> Int { scene.xen.with { $0.trace }.filter { $0 == "frameTypes" }.count }
        let count = scans()
        #expect(try domain.layout() == before)
        #expect(scans() == count, "the layout is remembered")
        // A bit without a page is ignored; one with a page is not.
        scene.xen.with(Scene.number) { $0.markDirty(1000) }
        var set = DirtyBitmap()
        _ = try domain.takeDirty(log, into: &set, isFinal: false)
        _ = try domain.layout()
        #expect(scans() == count + 1, "one look at the strange frame")
        scene.xen.with(Scene.number) { guest in
            guest.release(10)
            guest.take(1000)
        }
        _ = try domain.takeDirty(log, into: &set, isFinal: false)
        let after = try domain.layout()
        #expect(after.contains(PageFrameNumber(1000)) && !after.contains(PageFrameNumber(10)))
    }

    @Test func aPeekClearsNothing() throws {
        let scene = try Scene(8512)
        let domain = try XenDomain(Scene.number, calls: scene.xen, options: scene.options)
        let log = try domain.start()
        scene.xen.with(Scene.number) { guest in
            for frame in UInt64(10)..<20 { guest.write(frame, guest.page()) }
        }
        #expect(try domain.peekDirtyCount(log) == 10)
        #expect(try domain.peekDirtyCount(log) == 10)
        scene.xen.with(Scene.number) { $0.log.hasFailed = true }
        #expect(try domain.peekDirtyCount(log) >= 93, "an unknown set counts as all")
    }

    @Test func beginningAgainLosesNothingAndStoppingAgainIsHarmless() throws {
        let scene = try Scene(8513)
        let domain = try XenDomain(Scene.number, calls: scene.xen, options: scene.options)
        domain.stop(DirtyLog())
        #expect(!scene.xen.with { $0.trace }.contains("disableLog"))
        let first = try domain.start()
        scene.xen.with(Scene.number) { $0.write(10, $0.page()) }
        let second = try domain.start()
        var set = DirtyBitmap()
        #expect(try domain.takeDirty(first, into: &set, isFinal: false) == .unknown)
        #expect(set.isEmpty, "it is not the first one's any more")
        #expect(try domain.takeDirty(second, into: &set, isFinal: false) == .complete)
        #expect(set.contains(PageFrameNumber(10)))
        domain.stop(first)
        scene.expectSound(isLogOn: true, "the end of a log that has ended ends no other")
        domain.stop(second)
        domain.stop(second)
        #expect(try domain.takeDirty(second, into: &set, isFinal: false) == .unknown)
        #expect(scene.xen.with { $0.trace }.filter { $0 == "disableLog" }.count == 1)
    }
}
