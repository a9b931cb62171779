import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Glibc
import GuestModel
import Testing
import VarveTestSupport

@testable import XenGuest
@testable import XenStream

/// Captures and reverts of a domain that writes all the time, compared with naive copies.
@Suite struct XenDomainTests {
    private static let domainRoot = "/local/domain/\(Scene.number)"

    /// A guest that writes on every call, balloons, shares pages, and has pages that only FINAL
    /// names.
    @Test(arguments: 0..<(TestSeed.isLong ? 100 : 8))
    func everyCheckpointOfALiveDomainEqualsAFullCopy(round: Int) throws {
        let far: UInt64 = round % 4 == 0 ? 0x8000 : 1500
        let scene = try Scene(
            8000 + UInt64(round), pauseMode: round % 2 == 0 ? .suspend : .pause,
            frames: [0..<150, 160..<400, far..<far + 8])
        scene.captureOptions.pauseBudget = .microseconds(round % 3 == 0 ? 5 : 100)
        scene.options.comparesAll = round % 8 == 7
        scene.xen.with(Scene.number) { domain in
            domain.writesPerCallMax = 3
            domain.balloons = true
            let (first, second) = (Int(domain.random.next() % 4), Int(domain.random.next() % 9))
            domain.answer = .suspends(acknowledgedAfter: first, stillAfter: first + second)
        }
        var published = 0
        for _ in 0..<25 {
            do {
                _ = try scene.capture("round \(round)")
                published += 1
            } catch let error as CheckpointError {
                // A page was removed between the log and the copy, without a record in the log.
                #expect(error.message.contains("take the checkpoint again"))
                #expect(isSentence(error.message))
            }
            scene.expectSound(isLogOn: !scene.options.comparesAll)
            if Int.random(in: 0..<8, using: &scene.random) == 0 { try scene.open() }
        }
        #expect(published > 12, "most captures succeed")
        scene.close()
        scene.expectSound(isLogOn: false)
        #expect(try scene.repository.verify().isClean)
    }

    @Test(arguments: 0..<(TestSeed.isLong ? 60 : 6))
    func revertsInPlaceGiveBackEveryPageAndTheProcessors(round: Int) throws {
        let scene = try Scene(8200 + UInt64(round), pauseMode: round % 2 == 0 ? .suspend : .pause)
        scene.options.comparesAll = round % 6 == 5
        scene.xen.with(Scene.number) { $0.writesPerCallMax = 2 }
        for step in 0..<20 {
            if step < 4 || Int.random(in: 0..<3, using: &scene.random) == 0 {
                _ = try scene.capture("round \(round) step \(step)")
            } else {
                let target = try #require(scene.checkpoints.randomElement(using: &scene.random))
                try scene.revert(to: target, "round \(round) step \(step)")
            }
            scene.expectSound()
        }
        scene.close()
        scene.expectSound(isLogOn: false)
    }

    @Test(arguments: [XenPauseMode.pause, .suspend])
    func aRevertWakesADomainThatWasOnlyPaused(pauseMode: XenPauseMode) throws {
        let scene = try Scene(8613, pauseMode: pauseMode)
        let target = "/local/domain/7/memory/target"
        scene.xen.with { $0.store[target] = "131072" }
        let checkpoint = try scene.capture().checkpoint
        let before = scene.xen.with { $0.trace }.count
        scene.write()
        try scene.revert(to: checkpoint)
        let writes = scene.xen.with { $0.trace }[before...].filter { $0 == "write" }
        // A suspension is requested by a write. The generation is renewed either way.
        #expect(writes.count == 2)
        #expect(scene.xen.with { $0.store[target] } == "131072")
        // A domain that suspended itself also sets its own timers.
        #expect(scene.xen.with(Scene.number) { $0.timerCount } == (pauseMode == .pause ? 1 : 0))
        scene.expectSound(isLogOn: true)
    }

    @Test func anIncrementCopiesWhatWasWrittenAndNoMore() throws {
        let scene = try Scene(8300)
        _ = try scene.capture()
        scene.xen.with(Scene.number) { $0.write(50, $0.page()) }
        let result = try scene.capture()
        // The page, the one that a backend may write, and the one that Xen has mapped.
        #expect(result.dirtyPageCount == 3)
        #expect(!result.checkpoint.comparedAll)
    }

    @Test func theStateHasWhatAStreamWouldHave() throws {
        let scene = try Scene(8301)
        let checkpoint = try scene.capture().checkpoint
        let state = try scene.repository.state(of: checkpoint)
        let uuid = scene.xen.with(Scene.number) { $0.facts.handle }
        let origin = try #require(XenOrigin(state))
        #expect(
            origin.pauseMode == .suspend && origin.domain == Scene.number && origin.uuid == uuid)
        let kinds = state.records.map(\.kind)
        #expect(Set(kinds).count == kinds.count)
        #expect(
            state.bytes(ofKind: XenStateKind.configuration) == FakeXen.configuration + [0])
        let parameters = try #require(state.bytes(ofKind: XenStateKind.libxc(.hvmParams)))
        #expect(parameters.count == 8 + 4 * 16, "parameters that are not zero")
    }

    // MARK: - Refusals

    private func expectRefused(
        _ code: GuestError.Code, saying words: String, _ change: (inout FakeXen.State) -> Void
    ) throws {
        let scene = try Scene(8302)
        scene.xen.with { change(&$0) }
        let error = failure { try scene.open() }
        #expect(error?.code == code)
        #expect(error?.message.contains(words) == true)
        #expect(!scene.xen.with { $0.trace }.contains { ["pause", "write"].contains($0) })
    }

    @Test func aDomainThatCannotBeTakenWholeIsRefusedUntouched() throws {
        try expectRefused(.gone, saying: "xl list") { $0.domains[7] = nil }
        try expectRefused(.gone, saying: "xl list") { $0.domains[7]?.facts.isDying = true }
        try expectRefused(.unsupported, saying: "use XenCheckpointer") {
            $0.domains[7]?.facts.isHVM = false
        }
        try expectRefused(.unsupported, saying: "varve import") {
            $0.store["/local/domain/0/device-model/7/state"] = "running"
        }
    }

    @Test func domainZeroIsRefused() throws {
        let xen = FakeXen()
        xen.add(FakeDomain(0, frames: [0..<4], seed: 1))
        let error = failure {
            _ = try XenDomain(0, calls: xen, options: XenDomain.Options())
        }
        #expect(error?.code == .unsupported)
    }

    @Test func aRevertToACheckpointThatDoesNotFitIsRefusedUntouched() throws {
        let scene = try Scene(8303)
        let checkpoint = try scene.capture().checkpoint
        func expectRefused(_ code: GuestError.Code, _ words: String) {
            let before = scene.xen.with(Scene.number) { $0.copy.pages }
            let writes = scene.xen.with { $0.trace }.filter { $0 == "write" }.count
            let error = failure { try scene.session?.revert(to: checkpoint) }
            #expect(error?.code == code)
            #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
            #expect(scene.xen.with(Scene.number) { $0.copy.pages } == before)
            #expect(scene.xen.with { $0.trace }.filter { $0 == "write" }.count == writes)
            scene.expectSound()
        }
        // A different pause mode now.
        scene.options.pauseMode = .pause
        try scene.open()
        expectRefused(.stateRejected, "use suspend")
        // A device whose backend would not be reverted.
        scene.options.pauseMode = .suspend
        try scene.open()
        let disk = "\(XenDomainTests.domainRoot)/device/vbd/51712/state"
        scene.xen.with { $0.store[disk] = "4" }
        expectRefused(.unsupported, "(vbd/51712)")
        scene.xen.with { $0.store[disk] = nil }
        // Another domain with the same ID now.
        scene.xen.with(Scene.number) { $0.facts.handle[0] ^= 1 }
        scene.captureOptions.acceptsGuestChange = true
        try scene.open()
        expectRefused(.stateRejected, "another domain")
        scene.captureOptions.acceptsGuestChange = false
        scene.xen.with(Scene.number) { $0.facts.handle[0] ^= 1 }
        try scene.open()
        try scene.revert(to: checkpoint)
    }

    @Test func aRevertToACheckpointOfSomethingElseIsRefused() throws {
        let scene = try Scene(8304)
        let other = SimulatedGuest(layout: GuestLayout(pageCount: 5))
        let foreign = try CaptureSession(of: other, in: scene.repository, lineage: "other")
            .capture().checkpoint
        let session = try scene.open()
        let error = failure { try session.revert(to: foreign) }
        #expect(error?.code == .stateRejected)
        scene.expectSound()
    }

    @Test func aRevertAcrossBallooningIsRefusedUntouched() throws {
        let scene = try Scene(8305)
        let checkpoint = try scene.capture().checkpoint
        scene.xen.with(Scene.number) { $0.take(41) }
        let before = scene.xen.with(Scene.number) { $0.copy.pages }
        let error = failure { try scene.session?.revert(to: checkpoint) }
        #expect(error?.code == .sizeMismatch)
        #expect(scene.xen.with(Scene.number) { $0.copy.pages } == before)
        scene.expectSound()
        _ = try scene.capture()
    }

    // MARK: - Ballooning

    @Test func framesThatComeAndGoAreNoticed() throws {
        let scene = try Scene(8306)
        _ = try scene.capture()
        scene.xen.with(Scene.number) { $0.release(50) }
        #expect(try scene.capture().checkpoint.pageCount == 92)
        // The same number of pages, elsewhere: the log names a frame that the layout lacks.
        scene.xen.with(Scene.number) { domain in
            domain.release(60)
            domain.take(41)
        }
        let result = try scene.capture()
        #expect(result.checkpoint.pageCount == 92 && !result.checkpoint.comparedAll)
    }

    @Test func aPageThatWentUnnoticedFailsOneCaptureAndLosesNothing() throws {
        let scene = try Scene(8307)
        _ = try scene.capture()
        scene.xen.with(Scene.number) { domain in
            domain.write(50, domain.page())
            domain.release(50)
            // Added without a write, which an older Xen does not log.
            domain.take(41)
            domain.log.dirty.remove(PageRange(first: PageFrameNumber(41), count: 1))
        }
        let error = failure { _ = try scene.capture() }
        #expect(error?.message.contains("take the checkpoint again") == true)
        scene.expectSound()
        _ = try scene.capture()
    }
}
