import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

@Suite struct MappingReaderTests {
    /// As printed by thin_delta 0.9.0.
    private static let delta = """
        <superblock uuid="" time="3" transaction="5" data_block_size="128" nr_data_blocks="1000">
          <diff left="1" right="12582913">
            <same begin="0" length="4"/>
            <different begin="4" length="3"/>
            <same begin="7" length="1"/>
            <different begin="20" length="1"/>
            <left_only begin="22" length="1"/>
            <right_only begin="50" length="1"/>
          </diff>
        </superblock>

        """
    /// As printed by thin_dump 0.9.0.
    private static let dump = """
        <superblock uuid="" time="3" transaction="5" flags="0" version="2" data_block_size="128" \
        nr_data_blocks="1000">
          <device dev_id="7" mapped_blocks="10" transaction="0" creation_time="1" snap_time="1">
            <range_mapping origin_begin="0" data_begin="0" length="4" time="0"/>
            <range_mapping origin_begin="4" data_begin="40" length="3" time="1"/>
            <single_mapping origin_block="7" data_block="7" time="0"/>
            <single_mapping origin_block="20" data_block="33" time="1"/>
          </device>
        </superblock>

        """

    private func answer(
        _ question: MappingReader.Question, _ text: String, pieces: Int = 1000,
        blockByteCount: UInt64 = 65536, blockCount: UInt64 = 100_000
    ) -> [BlockRange]? {
        var reader = MappingReader(
            question, blockByteCount: blockByteCount, blockCount: blockCount)
        let bytes = Array(text.utf8)
        for start in stride(from: 0, to: bytes.count, by: pieces) {
            let isUnderstood = bytes[start..<min(bytes.count, start + pieces)]
                .withUnsafeBytes { reader.feed($0) }
            guard isUnderstood else { return nil }
        }
        return reader.result
    }

    @Test(arguments: [1, 2, 13, 100_000]) func answersAreRead(_ pieces: Int) {
        let delta = answer(
            .difference(1, 12_582_913), MappingReaderTests.delta, pieces: pieces)
        #expect(delta == [64..<112, 320..<336, 352..<368, 800..<816])
        let dump = answer(.mapped(7), MappingReaderTests.dump, pieces: pieces)
        #expect(dump == [0..<128, 320..<336])
    }

    @Test func theDiskCutsOffWhatIsBehindItsEnd() {
        let delta = answer(
            .difference(1, 12_582_913), MappingReaderTests.delta, blockCount: 330)
        #expect(delta == [64..<112, 320..<330])
    }

    /// Newer versions of thin_dump name mappings that devices share.
    @Test func definitionsAreFollowed() {
        let text = """
            <superblock data_block_size="128">
            <def name="0"><range_mapping origin_begin="2" data_begin="0" length="2" time="0"/></def>
            <device dev_id="7" mapped_blocks="3">
            <single_mapping origin_block="0" data_block="7" time="0"/><ref name="0"/>
            </device></superblock>
            """
        #expect(answer(.mapped(7), text) == [0..<16, 32..<64])
        #expect(answer(.mapped(7), text.replacing("ref name=\"0\"", with: "ref name=\"1\"")) == nil)
    }

    @Test func wrongAnswersAreRefused() {
        let right = MappingReaderTests.delta
        let question = MappingReader.Question.difference(1, 12_582_913)
        #expect(answer(.difference(2, 12_582_913), right) == nil)
        #expect(answer(.difference(1, 3), right) == nil)
        #expect(answer(.mapped(1), right) == nil)
        #expect(answer(question, right, blockByteCount: 131_072) == nil)
        #expect(answer(question, right + right) == nil)
        #expect(answer(question, right + "x") == nil)
        let changes = [
            ("<same begin=\"7\" length=\"1\"/>", "<same begin=\"6\" length=\"1\"/>"),
            ("length=\"3\"", "length=\"0\""), ("length=\"3\"", "length=\"-3\""),
            ("length=\"3\"", "length=\"+3\""), ("length=\"3\"", "length=\"3"),
            ("length=\"3\"", "length=\"99999999999999999999\""),
            ("length=\"3\"", "length=\"1099511627776\""),
            ("length=\"3\"", "length=\"3\" length=\"3\""), ("length=\"3\"", ""),
            ("left_only", "somewhere"), ("</diff>", ""), ("</superblock>", ""),
            ("<diff", "<!-- --><diff"), ("</diff>", "</device>"), ("left=\"1\"", "left=\"&#49;\""),
        ]
        for (old, new) in changes {
            #expect(answer(question, right.replacing(old, with: new)) == nil, "\(old) \(new)")
        }
    }

    /// The tools that are installed, on a pool's metadata in a file.
    @Test func theInstalledToolsAreUnderstood() throws {
        guard shell("thin_restore --version && thin_delta --version").status == 0 else {
            noteSkipped(
                "skipped, what thin_delta prints: thin-provisioning-tools are not installed")
            return
        }
        let home = TemporaryDirectory()
        var generator = SeededGenerator(seed: 11)
        var mappings: [[Int: Int]] = [[:], [:]]
        var text = "<superblock uuid=\"\" time=\"1\" transaction=\"1\" data_block_size=\"128\" "
        text += "nr_data_blocks=\"9000\">\n"
        for (index, id) in [5, 12_582_913].enumerated() {
            text += "<device dev_id=\"\(id)\" mapped_blocks=\"0\" transaction=\"0\" "
            text += "creation_time=\"0\" snap_time=\"0\">\n"
            for block in 0..<3000 where Int.random(in: 0..<4, using: &generator) != 0 {
                // Half of them are shared.
                let data = Bool.random(using: &generator) ? block : 3000 * (index + 1) + block
                mappings[index][block] = data
                text += "<single_mapping origin_block=\"\(block)\" data_block=\"\(data)\" "
                text += "time=\"0\"/>\n"
            }
            text += "</device>\n"
        }
        text += "</superblock>\n"
        try write(Array(text.utf8), to: home.path.appending("xml"), at: 0)
        let metadata = home.path.appending("metadata")
        #expect(
            shell("truncate -s 8M \(metadata); thin_restore -i \(home.path)/xml -o \(metadata)")
                .status == 0)
        func ask(_ question: MappingReader.Question, _ command: [String]) throws -> [BlockRange]? {
            var reader = MappingReader(question, blockByteCount: 65536, blockCount: 48_000)
            var isUnderstood = true
            let end = try Program.run(command + [metadata.string], within: .seconds(60)) {
                isUnderstood = reader.feed($0) && isUnderstood
            }
            #expect(end.status == 0 && isUnderstood)
            return reader.result
        }
        func ranges(_ blocks: [Int]) -> [BlockRange] {
            var found = BlockRanges(blockCount: 48_000)
            for block in blocks {
                _ = found.add(bytes: UInt64(block) * 65536..<UInt64(block + 1) * 65536)
            }
            return found.ranges
        }
        let differing = (0..<3000).filter { mappings[0][$0] != mappings[1][$0] }
        #expect(
            try ask(
                .difference(5, 12_582_913),
                ["thin_delta", "--thin1", "5", "--thin2", "12582913"]) == ranges(differing))
        #expect(
            try ask(.mapped(5), ["thin_dump", "--dev-id", "5"]) == ranges(mappings[0].keys.sorted())
        )
    }

    /// Any damage gives no answer, or one that is within the disk; nothing traps.
    @Test func damageNeverTraps() {
        var generator = TestSeed.generator(9702)
        for (question, text) in [
            (MappingReader.Question.difference(1, 12_582_913), MappingReaderTests.delta),
            (.mapped(7), MappingReaderTests.dump),
        ] {
            for _ in 0..<3000 {
                var bytes = Array(text.utf8)
                for _ in 0..<Int.random(in: 1...3, using: &generator) {
                    let index = Int.random(in: 0..<bytes.count, using: &generator)
                    if Bool.random(using: &generator) {
                        bytes[index] = UInt8.random(in: 0...255, using: &generator)
                    } else {
                        bytes.remove(at: index)
                    }
                }
                var reader = MappingReader(question, blockByteCount: 1 << 30, blockCount: 64)
                guard bytes.withUnsafeBytes({ reader.feed($0) }) else { continue }
                for range in reader.result ?? [] {
                    #expect(range.upperBound <= 64 && !range.isEmpty)
                }
            }
        }
    }

    @Test func tablesAreRead() {
        #expect(ThinTable("253:1 12")?.pool == DeviceNumber(major: 253, minor: 1))
        #expect(ThinTable("253:1 12 8:0")?.externalOrigin == "8:0")
        for wrong in ["", "253:1", "253 1", "/dev/x 1", "253:1 -1", "253:1 1 2 3", "253:1: 1"] {
            #expect(ThinTable(wrong) == nil, "\(wrong)")
        }
        #expect(PoolTable("253:2 253:3 128 0 1 skip_block_zeroing")?.blockByteCount == 65536)
        for wrong in ["", "253:2 253:3 0 0", "253:2 253:3 100 0", "253:2 253:3 4194304 0"] {
            #expect(PoolTable(wrong) == nil, "\(wrong)")
        }
        let status = PoolStatus(
            "1 406/4480000 178084/16304640 - rw discard_passdown queue_if_no_space - 1024")
        #expect(status?.usedDataBlocks == 178_084 && status?.hasMetadataSnapshot == false)
        #expect(PoolStatus("1 4/8 1/2 99 ro x error_if_no_space needs_check")?.needsCheck == true)
        for wrong in ["Fail", "Error", "", "1 4/0 1/2 - rw", "1 4/8/2 1/2 - rw"] {
            #expect(PoolStatus(wrong) == nil, "\(wrong)")
        }
        for number in [0, 0x0800, 0xfd03, 0x1_2345_6789_abcd] as [UInt64] {
            #expect(DeviceNumber(number).number == number)
        }
    }
}
