import CheckpointEngine
import GuestModel
import Testing
import VarveTestSupport
import XenStream

@testable import XenGuest

/// Timers that a guest had set by hypercall, after a revert to a checkpoint by pause.
@Suite struct TimerStubTests {
    @Test func theCodeIsWhatAProcessorIsToRun() throws {
        let stub = try TimerStub(frame: PageFrameNumber(66), processors: [0, 1], isAMD: true)
        let code: [UInt8] = [
            0x0f, 0x01, 0xd9, 0x89, 0x06, 0xc7, 0x46, 0x04, 1, 0, 0, 0, 0xf3, 0x90, 0xeb, 0xfc,
        ]
        #expect(stub.bytes == code + [UInt8](repeating: 0, count: 16 + 2 * 8))
        let intel = try TimerStub(frame: PageFrameNumber(66), processors: [0], isAMD: false)
        #expect(intel.bytes[2] == 0xc1, "vmcall")
        // The second processor's record: its number, and the address of its own result.
        let record = stub.registers(of: 1, in: [UInt8](repeating: 0xaa, count: 1032))
        func word(_ offset: Int) -> UInt64 {
            record.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: UInt64.self) }
        }
        #expect(word(512) == 24 && word(520) == 8 && word(528) == 1)
        #expect(word(536) == 66 * 4096 + 16 && word(552) == 66 * 4096 + 40)
        #expect(word(640) == 66 * 4096 && word(648) == 2)
        #expect(word(0) == 0xaaaa_aaaa_aaaa_aaaa, "what it does not need stays")
    }

    /// The processors are those of a checkpoint's state, which may say anything.
    @Test func moreProcessorsThanAPageHasRoomForAreRefused() throws {
        let most = try TimerStub(
            frame: PageFrameNumber(66), processors: Array(0..<508), isAMD: true)
        #expect(most.bytes.count == Page.byteCount)
        let error = #expect(throws: GuestError.self) {
            try TimerStub(frame: PageFrameNumber(66), processors: Array(0..<509), isAMD: true)
        }
        #expect(error?.code == .stateRejected)
    }

    @Test func theVendorIsReadFromThePolicy() {
        func policy(_ name: String) -> [UInt8] {
            let text = Array(name.utf8)
            // leaf, subleaf, a; b, c, d hold the first, last and middle part.
            return [UInt8](repeating: 0, count: 12) + text[0..<4] + text[8..<12] + text[4..<8]
        }
        #expect(HVMRecords.isAMD(cpuidPolicy: policy("AuthenticAMD")))
        #expect(HVMRecords.isAMD(cpuidPolicy: policy("HygonGenuine")))
        #expect(!HVMRecords.isAMD(cpuidPolicy: policy("GenuineIntel")))
        #expect(!HVMRecords.isAMD(cpuidPolicy: []))
    }

    @Test func recordsAreTakenApart() throws {
        var random = TestSeed.generator(8700)
        let context = StreamMaker.hvmContext(&random)
        let records = try #require(HVMRecords(context))
        #expect(records.processors == [0])
        #expect(records.spuriousVector(of: 0) == 0xff)
        #expect(records.withoutInterrupts == context)
        #expect(records.processorsOnly { _, record in record } == context)
        for count in 0..<context.count { #expect(HVMRecords(Array(context[..<count])) == nil) }
    }

    /// A context with a local APIC, in which bits of vectors are set: those in service at 0x100,
    /// those requested at 0x200.
    private func context(
        _ vectors: [(base: Int, vector: Int)], _ random: inout SeededGenerator
    ) -> [UInt8] {
        var body = (0..<1024).map { _ in UInt8.random(in: 0...255, using: &random) }
        for base in [0x100, 0x200] {
            for offset in 0..<0x80 { body[base + offset] = 0 }
        }
        body[0xf0] = 0xff
        for (base, vector) in vectors {
            body[base + vector / 32 * 16 + vector % 32 / 8] |= 1 << UInt8(vector % 8)
        }
        let made = StreamMaker.hvmContext(&random)
        let record: [UInt8] = [6, 0, 0, 0, 0, 4, 0, 0] + body
        // Before the end record, which has no body.
        return made.dropLast(8) + record + made.suffix(8)
    }

    /// An interrupt that is requested or in service when a domain is reverted stays requested.
    @Test func requestsOfTheLocalAPICStay() throws {
        var random = TestSeed.generator(8702)
        let target = context([(0x200, 0x31), (0x100, 0xec)], &random)
        let live = context(
            [(0x200, 0xf3), (0x100, 0x40), (0x200, 0x31), (0x200, 0xff)], &random)
        let (records, other) = (
            try #require(HVMRecords(target)), try #require(HVMRecords(live))
        )
        let merged = records.requesting(interruptsOf: other)
        let start = target.count - 8 - 1024
        let changed = merged.indices.filter { merged[$0] != target[$0] }
        #expect(merged.count == target.count)
        #expect(
            changed == [0x40, 0xf3].map { start + 0x200 + $0 / 32 * 16 + $0 % 32 / 8 })
        #expect(merged[changed[0]] == 1 && merged[changed[1]] == 1 << 3)
        // Without a local APIC on either side nothing changes.
        let bare = StreamMaker.hvmContext(&random)
        let without = try #require(HVMRecords(bare))
        #expect(records.requesting(interruptsOf: without) == target)
        #expect(without.requesting(interruptsOf: other) == bare)
    }

    @Test func aRevertKeepsWhatIsRequested() throws {
        let scene = try Scene(8703, pauseMode: .pause)
        let made = context([(0x200, 0x31)], &scene.random)
        scene.xen.with(Scene.number) { $0.context = made }
        let checkpoint = try scene.capture().checkpoint
        func place(_ vector: Int) -> Int {
            made.count - 8 - 1024 + 0x200 + vector / 32 * 16 + vector % 32 / 8
        }
        // One is requested before, the other in between.
        scene.xen.with(Scene.number) {
            $0.context[place(0xf3)] |= 1 << 3
            $0.eventAtInterrupt = 0x40
        }
        try scene.session?.revert(to: checkpoint)
        let now = scene.xen.with(Scene.number) { $0.context }
        #expect(now.indices.filter { now[$0] != made[$0] } == [place(0x40), place(0xf3)])
        #expect(now[place(0x40)] == 1 && now[place(0xf3)] == 1 << 3)
    }

    /// Memory and processors are the checkpoint's all the same, and another revert can follow.
    @Test func aProcessorThatDoesNotAnswerFailsTheRevert() throws {
        let scene = try Scene(8701, pauseMode: .pause)
        let checkpoint = try scene.capture().checkpoint
        scene.write()
        scene.xen.with(Scene.number) { $0.isStuck = true }
        let error = #expect(throws: CheckpointError.self) {
            try scene.session?.revert(to: checkpoint)
        }
        #expect(error?.message.contains("has not set its timer") == true)
        scene.expectSound()
        scene.xen.with(Scene.number) { $0.isStuck = false }
        try scene.revert(to: checkpoint)
        #expect(scene.xen.with(Scene.number) { $0.timerCount } == 1)
        scene.expectSound()
    }
}
