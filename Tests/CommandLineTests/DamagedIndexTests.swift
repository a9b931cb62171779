import Foundation
import Testing
import VarveTestSupport

/// Damage to derived files: it costs a rebuild, and never affects a pack or is attributed to one.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct DamagedIndexTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }
    private var index: URL { URL(fileURLWithPath: path("store/index/data.mdb")) }
    private var pack: URL { URL(fileURLWithPath: path("store/packs/00000001.pack")) }

    private func importImage(_ image: Data, _ lineage: String) throws -> Tool.Result {
        try image.write(to: URL(fileURLWithPath: path("image")))
        return try Tool.run("import", store, path("image"), "--lineage", lineage)
    }

    private func make() throws -> [Data] {
        var random = TestSeed.generator(640)
        #expect(try Tool.run("init", store).status == 0)
        var images = [Images.make(pages: 3000, &random)]
        images.append(Images.change(images[0], pages: 500, &random))
        for image in images { #expect(try importImage(image, "web").status == 0) }
        return images
    }

    @Test func anIndexThatIsCutIsMadeAnew() throws {
        let images = try make()
        let log = try Tool.run("log", store, "--json").text
        let whole = try Data(contentsOf: index)
        let packBefore = try Data(contentsOf: pack)
        let commands = [
            ["log", store, "--json"], ["verify", store], ["export", store, "web~1", "-"],
            ["stats", store],
        ]
        var step = 0
        for count in [1, 4096, 8192, 12288, whole.count / 2, whole.count - 4096, whole.count - 1] {
            try whole.prefix(count).write(to: index)
            var arguments = commands[step % commands.count]
            step += 1
            let (process, output, error) = try Tool.start(arguments)
            let data = output.fileHandleForReading.readDataToEndOfFile()
            let text = error.fileHandleForReading.readDataToEndOfFile()
            process.waitUntilExit()
            #expect(
                process.terminationStatus == 0,
                "cut to \(count), \(arguments): \(String(decoding: text, as: UTF8.self))")
            arguments.removeFirst()
            if arguments.count == 3 { #expect(data == images[0]) }
            #expect(try Tool.run("log", store, "--json").text == log)
        }
        try whole.prefix(whole.count / 2).write(to: index)
        #expect(try Tool.run("forget", store, "web~1").status == 0)
        #expect(try Tool.run("verify", store).status == 0)
        #expect(try Data(contentsOf: pack).starts(with: packBefore))
    }

    /// Overwritten pages of the index: no command crashes, the packs are unchanged, and the second
    /// command succeeds.
    @Test func whatAnIndexHoldsIsNotTrustedBlindly() throws {
        let images = try make()
        let log = try Tool.run("log", store, "--json").text
        let whole = [UInt8](try Data(contentsOf: index))
        let packBefore = try Data(contentsOf: pack)
        var random = TestSeed.generator(641)
        // Values of the table of pages begin with pack 1; make them name others.
        for round in 0..<12 {
            var damaged = whole
            for place in stride(from: 8192, to: whole.count - 14, by: 2)
            where Int.random(in: 0..<50, using: &random) == 0 {
                let isLocation =
                    damaged[place..<place + 4].elementsEqual([1, 0, 0, 0])
                    && (1...64).contains(damaged[place + 12])
                    && damaged[place + 13] < damaged[place + 12]
                if isLocation { damaged[place] = UInt8.random(in: 2...9, using: &random) }
            }
            try Data(damaged).write(to: index)
            let first = try Tool.run("verify", store)
            #expect([0, 1].contains(first.status), "round \(round): \(first.error)")
            if first.status == 1 {
                #expect(first.error.contains("rebuil"), "\(first.error)")
                #expect(!first.error.contains("copies of the named files"))
            }
            #expect(try Tool.run("verify", store).status == 0)
            #expect(try Tool.run("log", store, "--json").text == log)
            #expect(try Tool.run("export", store, "web", "-").output == images[1])
            #expect(try Data(contentsOf: pack) == packBefore)
        }
    }

    /// One flipped bit anywhere in the index: no command is ended by a signal, and each is correct.
    @Test func aBitThatRotsEndsNoCommand() throws {
        let images = try make()
        let log = try Tool.run("log", store, "--json").text
        let whole = [UInt8](try Data(contentsOf: index))
        let packBefore = try Data(contentsOf: pack)
        var random = TestSeed.generator(642)
        let commands = [
            ["log", store, "--json"], ["log", store, "-n", "1"], ["show", store, "web~1"],
            ["verify", store], ["stats", store], ["export", store, "web~1", "-"],
            ["diff", store, "web", "web~1"], ["prune", store, "--dry-run"],
        ]
        for round in 0..<60 {
            var damaged = whole
            // Every other round flips a bit in the header of a page, which LMDB follows first.
            var place = Int.random(in: 0..<whole.count, using: &random)
            if round % 2 == 0 { place = place / 4096 * 4096 + place % 32 }
            damaged[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            try Data(damaged).write(to: index)
            let arguments = commands[round % commands.count]
            let (process, output, error) = try Tool.start(arguments)
            let data = output.fileHandleForReading.readDataToEndOfFile()
            let text = error.fileHandleForReading.readDataToEndOfFile()
            process.waitUntilExit()
            let what = "byte \(place), \(arguments): \(String(decoding: text, as: UTF8.self))"
            #expect(process.terminationReason == .exit, "\(what)")
            #expect(process.terminationStatus == 0, "\(what)")
            if arguments[0] == "export" { #expect(data == images[0], "\(what)") }
            #expect(try Tool.run("log", store, "--json").text == log, "\(what)")
        }
        #expect(try Data(contentsOf: pack) == packBefore)
    }
}
