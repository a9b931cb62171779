import CheckpointEngine
import CheckpointStore
import Glibc
import GuestModel
import Testing
import VarveTestSupport
import XenStream

@testable import XenGuest

/// Reverts in place of a domain with a disk and a network interface.
@Suite struct DeviceRevertTests {
    private func scene(_ salt: UInt64, captures: Int = 2) throws -> Scene {
        let scene = try Scene(salt)
        scene.addDevices()
        for _ in 0..<captures {
            _ = try scene.capture()
            scene.write()
        }
        return scene
    }

    /// The states of both back ends.
    private func backEnds(_ scene: Scene) -> [String?] {
        ["vbd/7/51712", "vif/7/0"].map { path in
            scene.xen.with { $0.store["/local/domain/0/backend/\(path)/state"] }
        }
    }

    private func expectConnected(_ scene: Scene, _ note: @autoclosure () -> String = "") {
        scene.expectSound(note())
        #expect(backEnds(scene) == ["4", "4"], "\(note())")
    }

    @Test func theGuestGoesBackAndConnectsItsDevices() throws {
        let scene = try scene(9901, captures: 4)
        var generations: Set<String> = []
        for round in 0..<30 {
            let target = try #require(scene.checkpoints.randomElement(using: &scene.random))
            let result = try scene.session?.revert(to: target)
            #expect(result?.unconnectedDevices == [])
            #expect(
                result?.steps.map(\.name) == [
                    "stop", "devices", "late", "prepare", "disks", "pages", "state", "resume",
                    "reconnect",
                ])
            try scene.revert(to: target, "round \(round)")
            expectConnected(scene, "round \(round)")
            let generation = scene.xen.with { $0.store["/local/domain/7/data/varve/generation"] }
            #expect(generation?.count == 32)
            #expect(generations.insert(generation ?? "").inserted)
            scene.write()
            if round % 3 == 0 { _ = try scene.capture("round \(round)") }
            scene.write()
        }
        let trace = scene.xen.with { $0.trace }
        let resets = trace.filter { $0 == "softReset" }.count
        #expect(resets == 60 && !trace.contains("shutDown"))
    }

    /// What a back end writes until it lets go is taken back, too.
    @Test func whatABackEndHasWrittenLastGoesBack() throws {
        let scene = try scene(9902)
        scene.xen.with(Scene.number) { domain in
            domain.closesNeeded = 2
            domain.overwrite(5, [UInt8](repeating: 9, count: Page.byteCount))
        }
        try scene.revert(to: scene.checkpoints[0])
        expectConnected(scene)
    }

    @Test func aDomainThatDoesNotAnswerIsStoppedByForce() throws {
        let scene = try Scene(9903)
        scene.addDevices()
        scene.options.revertSuspendTimeout = .milliseconds(30)
        _ = try scene.capture()
        for answer in [FakeDomain.Answer.never, .acknowledgesOnly] {
            scene.write()
            scene.xen.with(Scene.number) { $0.answer = answer }
            try scene.revert(to: scene.checkpoints[0])
            expectConnected(scene)
        }
        #expect(scene.xen.with { $0.trace }.contains("shutDown"))
        // Nothing of the request is left.
        scene.xen.with(Scene.number) {
            $0.answer = .suspends(acknowledgedAfter: 1, stillAfter: 2)
        }
        _ = try scene.capture()
        expectConnected(scene)
    }

    @Test func aDomainThatCrashedRunsAgain() throws {
        let scene = try scene(9904)
        for reason in [ShutdownReason.crash, .powerOff, .reboot] {
            scene.xen.with(Scene.number) { $0.facts.shutdown = reason }
            try scene.revert(to: scene.checkpoints[0])
            expectConnected(scene)
        }
    }

    @Test func aDomainThatIsPausedStaysPaused() throws {
        let scene = try scene(9905)
        try scene.xen.pause(Scene.number)
        scene.options.deviceTimeout = .milliseconds(20)
        try scene.open()
        let result = try scene.session?.revert(to: scene.checkpoints[0])
        #expect(result?.unconnectedDevices == ["vbd/51712", "vif/0"])
        #expect(scene.xen.complaints(Scene.number) == ["it is paused"])
        try scene.xen.unpause(Scene.number)
        _ = try scene.xen.facts(Scene.number)
        expectConnected(scene)
    }

    // MARK: - Failures

    /// The domain runs as it was, or as the checkpoint; or it stands still, and the same revert
    /// completes what was begun.
    @Test(arguments: [EPERM, EBUSY, EIO])
    func aFailedCallLeavesNoDomainHalfReverted(errno: Int32) throws {
        let scene = try scene(9906, captures: 3)
        var (failed, forward) = (0, 0)
        for number in 0..<400 {
            scene.write()
            let before = scene.xen.with(Scene.number) { $0.copy.pages }
            let start = scene.xen.callCount
            scene.xen.failCall(number, errno: errno)
            var isThrown = false
            do { try scene.session?.revert(to: scene.checkpoints[0]) } catch { isThrown = true }
            let isOver = scene.xen.with { $0.fault != nil }
            scene.xen.failCall(nil)
            if isOver { break }
            let call = "call \(number), \(scene.xen.with { $0.trace[start + number] })"
            failed += 1
            if scene.domain?.standsStill == true {
                forward += 1
                #expect(isThrown, "\(call)")
                #expect(scene.xen.with(Scene.number) { !$0.isRunning }, "\(call)")
            } else if isThrown {
                _ = try scene.xen.facts(Scene.number)
                expectConnected(scene, call)
                let after = scene.xen.with(Scene.number) { $0.copy.pages }
                let wrong = Set(before.keys).union(after.keys).filter {
                    before[$0] != after[$0] && !Scene.rings.contains($0)
                }
                #expect(wrong.isEmpty, "\(call): \(wrong)")
            }
            try scene.revert(to: scene.checkpoints[1], call)
            expectConnected(scene, call)
            _ = try scene.capture(call)
        }
        #expect(failed > 80 && forward > 0 && forward < failed / 2)
        print("\(failed) calls failed with \(errno), after \(forward) only forward was left")
    }

    @Test func aRevertThatIsGivenUpLeavesTheGuestAsItWas() throws {
        let scene = try scene(9907)
        scene.xen.with(Scene.number) { $0.take(41) }
        let before = scene.xen.with(Scene.number) { ($0.copy.pages, $0.context) }
        let error = failure { try scene.session?.revert(to: scene.checkpoints[0]) }
        #expect(error?.code == .sizeMismatch)
        _ = try scene.xen.facts(Scene.number)
        expectConnected(scene)
        let after = scene.xen.with(Scene.number) { ($0.copy.pages, $0.context) }
        let wrong = before.0.keys.filter {
            before.0[$0] != after.0[$0] && !Scene.rings.contains($0)
        }
        #expect(wrong.isEmpty && before.0.count == after.0.count && before.1 == after.1)
        // It had to connect its devices again.
        #expect(scene.xen.with { $0.trace }.contains("softReset"))
        _ = try scene.capture()
    }

    /// One that was stopped by force is in no suspend call to return from.
    @Test func aGuestThatWasForcedAndGivenUpStandsStillUntilItIsReverted() throws {
        let scene = try scene(9908)
        scene.options.revertSuspendTimeout = .milliseconds(30)
        try scene.open()
        scene.xen.with(Scene.number) { domain in
            domain.answer = .never
            domain.take(41)
        }
        let error = failure { try scene.session?.revert(to: scene.checkpoints[0]) }
        #expect(error?.message.contains("replace it (--replace)") == true)
        #expect(scene.domain?.standsStill == true)
        scene.xen.with(Scene.number) { $0.release(41) }
        try scene.revert(to: scene.checkpoints[0])
        expectConnected(scene)
    }

    @Test func aBackEndThatNeverLetsGoIsReported() throws {
        let scene = try Scene(9909)
        scene.addDevices()
        scene.options.deviceTimeout = .milliseconds(20)
        let target = try scene.capture().checkpoint
        scene.write()
        scene.xen.with(Scene.number) { $0.closesNeeded = .max }
        let error = failure { try scene.session?.revert(to: target) }
        #expect(error?.message.contains("still uses the domain's memory") == true)
        #expect(scene.xen.with(Scene.number) { !$0.isRunning })
        #expect(scene.xen.with { $0.violations }.isEmpty)
        scene.xen.with(Scene.number) { $0.closesNeeded = 0 }
        try scene.revert(to: target)
        expectConnected(scene)
    }

    // MARK: - Refused

    @Test func whatCannotGoBackIsRefusedUntouched() throws {
        let scene = try scene(9910)
        let target = scene.checkpoints[0]
        func expectRefused(_ code: GuestError.Code, _ words: String) throws {
            let before = scene.xen.with(Scene.number) { $0.copy.pages }
            try scene.open()
            let error = failure { try scene.session?.revert(to: target) }
            #expect(error?.code == code)
            #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
            #expect(scene.xen.with(Scene.number) { $0.copy.pages } == before)
            expectConnected(scene)
        }
        scene.options.disksGoBack = false
        try expectRefused(.unsupported, "would not go back with its memory")
        scene.options.disksGoBack = true
        scene.xen.with(Scene.number) { $0.grantVersion = 2 }
        try expectRefused(.unsupported, "version 2")
        scene.xen.with(Scene.number) { $0.grantVersion = 1 }
        scene.xen.with { $0.store["/local/domain/7/device/vfb/0/state"] = "4" }
        try expectRefused(.unsupported, "(vfb/0)")
        scene.xen.with { $0.store["/local/domain/7/device/vfb/0/state"] = nil }
        try scene.revert(to: target)
    }

    @Test func aCheckpointByPauseOfADomainWithDevicesIsRefused() throws {
        let scene = try Scene(9911)
        scene.addDevices()
        scene.options.pauseMode = .pause
        let error = failure { try scene.open() }
        #expect(error?.code == .unsupported)
        #expect(error?.message.contains("--introspection") == true)
        scene.options.isForIntrospection = true
        let target = try scene.capture().checkpoint
        #expect(failure { try scene.session?.revert(to: target) }?.code == .stateRejected)
        expectConnected(scene)
    }
}
