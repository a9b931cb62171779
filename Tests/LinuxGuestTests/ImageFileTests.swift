import Foundation
import GuestModel
import LinuxGuest
import SystemPackage
import Testing
import VarveTestSupport

@Suite struct ImageFileTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> FilePath { directory.path.appending(name) }

    private func write(_ name: String, _ byteCount: Int) throws {
        try Data(repeating: 7, count: byteCount).write(to: URL(fileURLWithPath: path(name).string))
    }

    private var names: [String] {
        get throws { try FileManager.default.contentsOfDirectory(atPath: directory.path.string) }
    }

    @Test func sizesThatAreNoPagesAreRefused() throws {
        for byteCount in [0, 1, 4095, 4097] {
            try write("image", byteCount)
            let error = #expect(throws: GuestError.self) { try ImageFile(reading: path("image")) }
            #expect(error?.code == .sizeMismatch)
        }
        #expect(throws: GuestError.self) { try ImageFile(reading: path("missing")) }
        #expect(throws: GuestError.self) { try ImageFile(reading: directory.path) }
    }

    @Test func aFileThatGetsShorterIsAnError() throws {
        try write("image", 8 * 4096)
        let image = try ImageFile(reading: path("image"))
        try write("short", 4096)
        try FileHandle(forUpdating: URL(fileURLWithPath: path("image").string))
            .truncate(atOffset: 4096)
        var buffer = [UInt8](repeating: 0, count: 8 * 4096)
        let error = #expect(throws: GuestError.self) {
            try buffer.withUnsafeMutableBytes { bytes in
                var span = bytes.mutableBytes
                let runs = [PageRange(first: PageFrameNumber(0), count: 8)]
                try image.copyPages(runs.span, into: &span)
            }
        }
        #expect(error?.message.contains("ends at byte 4096") == true)
    }

    @Test func theImageOfADiskTakesNoOther() throws {
        let image = try ImageFile(
            creating: path("new"), disk: GuestDisk(name: "a", byteCount: 8704))
        for pageCount in [0, 1, 2, 4] {
            let error = #expect(throws: GuestError.self) {
                try image.adoptLayout(GuestLayout(pageCount: pageCount))
            }
            #expect(error?.code == .sizeMismatch)
        }
        try image.adoptLayout(GuestLayout(pageCount: 3))
        try image.finish()
        let size = try FileManager.default.attributesOfItem(atPath: path("new").string)[.size]
        #expect(size as? Int == 8704)
    }

    @Test func aNewImageGetsItsNameAtTheEnd() throws {
        let image = try ImageFile(creating: path("new"))
        try image.adoptLayout(GuestLayout(pageCount: 3))
        let page = [UInt8](repeating: 5, count: 4096)
        try image.writePages(
            [PageRange(first: PageFrameNumber(1), count: 1)].span, from: page.span.bytes)
        #expect(try !names.contains("new"))
        try image.finish()
        #expect(try names == ["new"])
        let data = try Data(contentsOf: URL(fileURLWithPath: path("new").string))
        #expect(data == Data(count: 4096) + Data(page) + Data(count: 4096))
    }

    @Test func withoutAnEndNothingIsLeft() throws {
        do {
            let image = try ImageFile(creating: path("new"))
            try image.adoptLayout(GuestLayout(pageCount: 3))
        }
        #expect(try names.isEmpty)
    }

    @Test func anExistingFileIsKept() throws {
        try write("kept", 4096)
        #expect(throws: GuestError.self) { try ImageFile(creating: path("kept")) }
        let image = try ImageFile(creating: path("late"))
        try image.adoptLayout(GuestLayout(pageCount: 1))
        try write("late", 12_288)
        #expect(throws: GuestError.self) { try image.finish() }
        image.abandon()
        #expect(try Set(names) == ["kept", "late"])
        let replacing = try ImageFile(creating: path("kept"), replacing: true)
        try replacing.adoptLayout(GuestLayout(pageCount: 2))
        try replacing.finish()
        let data = try Data(contentsOf: URL(fileURLWithPath: path("kept").string))
        #expect(data.count == 8192)
    }
}
