import CheckpointEngine
import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import XenGuest

/// What a revert leaves for the one that completes it.
@Suite struct RevertNoteTests {
    private let directory = TemporaryDirectory()
    private var path: String { directory.path.string }
    private let uuid: [UInt8] = Array(1...16)
    private var file: URL {
        URL(
            fileURLWithPath: directory.path.appending(
                "revert-0102030405060708090a0b0c0d0e0f10.note"
            ).string)
    }

    private static func checkpoint(_ random: inout SeededGenerator) -> CheckpointID {
        CheckpointID(PageDigest(bytes: some(PageDigest.byteCount, &random)))
    }

    @Test func aNoteComesBack() {
        var random = TestSeed.generator(9960)
        for _ in 0..<50 {
            let checkpoint = RevertNoteTests.checkpoint(&random)
            var pages = DirtyBitmap()
            for _ in 0..<Int.random(in: 0...300, using: &random) {
                pages.insert(PageFrameNumber(.random(in: 0..<1 << 16, using: &random)))
            }
            let cut = ["", "cut-0123456789abcdef", "4:cut-5:ü"].randomElement(using: &random) ?? ""
            let runs = (0..<Int.random(in: 0...5, using: &random)).map {
                PageRange(
                    first: PageFrameNumber(UInt64($0) * 1000),
                    count: .random(in: 1...999, using: &random))
            }
            let note = NotedRevert(
                checkpoint: checkpoint, pages: pages, layout: GuestLayout(runs: runs), diskCut: cut)
            RevertNote.leave(note, uuid, in: path)
            #expect(RevertNote.read(uuid, in: path) == note)
            #expect(RevertNote.read(Array(2...17), in: path) == nil)
        }
        RevertNote.remove(uuid, in: path)
        #expect(!FileManager.default.fileExists(atPath: file.path))
    }

    @Test func whatIsCutShortOrForgedIsNotUsed() throws {
        var random = TestSeed.generator(9961)
        let checkpoint = RevertNoteTests.checkpoint(&random)
        var pages = DirtyBitmap()
        for frame in stride(from: UInt64(3), to: 4000, by: 71) {
            pages.insert(PageFrameNumber(frame))
        }
        let layout = GuestLayout(runs: [
            PageRange(first: PageFrameNumber(1), count: 4000),
            PageRange(first: PageFrameNumber(5000), count: 3),
        ])
        let note = NotedRevert(
            checkpoint: checkpoint, pages: pages, layout: layout, diskCut: "cut-1")
        RevertNote.leave(note, uuid, in: path)
        let whole = try Data(contentsOf: file)
        // The format, which another version of the tool may read.
        let count = UInt8(pages.words.count)
        #expect(
            whole.prefix(32)
                == Data(
                    Array("VARVEREV".utf8) + [5, 0, 0, 0, 0, 0, 0, 0, count, 0, 0, 0, 0, 0, 0, 0]
                        + [2, 0, 0, 0, 0, 0, 0, 0]))
        #expect(whole[32..<64] == Data(checkpoint.digest.bytes))
        #expect(whole[64..<69] == Data("cut-1".utf8) && whole[69] == 1 << 3)
        let runs: [UInt8] = [1, 0, 0, 0, 0, 0, 0, 0, 0xa0, 0x0f, 0, 0, 0, 0, 0, 0]
        #expect(whole.suffix(32).prefix(16) == Data(runs))
        #expect(whole.count == 69 + 8 * pages.words.count + 32)
        for count in 0..<whole.count {
            try whole.prefix(count).write(to: file)
            #expect(RevertNote.read(uuid, in: path) == nil, "\(count) bytes")
        }
        for offset in 0..<64 {
            var damaged = whole
            damaged[offset] ^= UInt8.random(in: 1...255, using: &random)
            try damaged.write(to: file)
            // Another checkpoint's note is not used for this one.
            let found = RevertNote.read(uuid, in: path)
            #expect(found?.checkpoint != checkpoint, "byte \(offset)")
        }
        try FileManager.default.removeItem(at: file)
        #expect(RevertNote.read(uuid, in: path) == nil)
        try FileManager.default.createSymbolicLink(
            atPath: file.path, withDestinationPath: "/etc/passwd")
        RevertNote.leave(note, uuid, in: path)
        #expect(RevertNote.read(uuid, in: path) == nil)
    }

    /// Whatever call the first process died at, once only forward was left: the second one compares
    /// what was noted, and the guest is the checkpoint.
    @Test func aSecondProcessComparesWhatTheFirstNoted() throws {
        let scene = try Scene(9962)
        scene.addDevices()
        for _ in 0..<3 {
            _ = try scene.capture()
            scene.write()
        }
        let all = scene.xen.with(Scene.number) { $0.copy.pages.count }
        var completed = 0
        for number in 0..<400 {
            scene.options.finishesRevert = false
            try scene.open()
            _ = try scene.capture()
            scene.write()
            scene.domain?.finishCommand = ["varve"]
            scene.xen.failCall(number, errno: EIO)
            _ = try? scene.session?.revert(to: scene.checkpoints[0])
            let isOver = scene.xen.with { $0.fault != nil }
            scene.xen.failCall(nil)
            if isOver { break }
            guard scene.domain?.standsStill == true else { continue }
            scene.options.finishesRevert = true
            try scene.open()
            let result = try #require(try scene.session?.revert(to: scene.checkpoints[0]))
            #expect(result.comparedPageCount < all, "call \(number)")
            try scene.expectReverted(to: scene.checkpoints[0], "call \(number)")
            scene.expectSound("call \(number)")
            completed += 1
        }
        #expect(completed > 10)
        let names = try FileManager.default.contentsOfDirectory(atPath: scene.xen.lockDirectory)
        #expect(!names.contains { $0.hasSuffix(".note") }, "\(names)")
    }
}
