import CheckpointFormat
import GuestModel
import Testing
import VarveTestSupport

/// An encoding decodes to the same value, and no input makes a decoder trap.
@Suite struct DecoderTests {
    private static let rounds = TestSeed.isLong ? 20_000 : 1500

    /// Runs a decoder over an encoding, then over random mutations of it.
    private func attack(
        _ bytes: [UInt8], salt: UInt64, _ decode: ([UInt8]) throws -> Void
    ) throws {
        try decode(bytes)
        var random = TestSeed.generator(salt)
        for _ in 0..<DecoderTests.rounds {
            var other = bytes
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                switch Int.random(in: 0..<4, using: &random) {
                case 0: other = Array(other.prefix(Int.random(in: 0...other.count, using: &random)))
                case 1: other += [0, 255, 128].shuffled(using: &random)
                default:
                    guard let place = other.indices.randomElement(using: &random) else { continue }
                    other[place] =
                        [0, 1, 127, 128, 255, .random(in: 0...255, using: &random)]
                        .randomElement(using: &random) ?? 0
                }
            }
            _ = try? decode(other)
        }
    }

    private func digest(_ value: UInt64) -> PageDigest { PageDigest(words: (value, 1, 2, value)) }

    private func range(_ first: UInt64, _ count: Int) -> PageRange {
        PageRange(first: PageFrameNumber(first), count: count)
    }

    @Test func envelopes() throws {
        let envelope = Envelope(kind: .pack, repository: .random(), number: 7)
        try attack(envelope.encoded, salt: 700) { bytes in
            let found = try Envelope.decode(bytes, kind: .pack)
            #expect(found == envelope, "a checksum lets nothing else through")
        }
        #expect(throws: Envelope.Refusal.foreign) {
            try Envelope.decode(envelope.encoded, kind: .repository)
        }
    }

    @Test func records() throws {
        var writer = RecordWriter()
        writer.append(.mark, transaction: 3, confirmed: 64, payload: [])
        let second = writer.append(.publish, transaction: 9, confirmed: 96, payload: [1, 2, 3])
        #expect(second == 32..<72)
        try attack(Array(writer.bytes[second]), salt: 701) { bytes in
            try bytes.withUnsafeBytes { raw in
                let header = try RecordHeader(raw)
                guard header.recordByteCount <= raw.count else { return }
                try RecordHeader.check(
                    UnsafeRawBufferPointer(rebasing: raw[..<header.recordByteCount]))
                #expect(header.transaction == 9 && header.payloadCount == 3)
            }
        }
    }

    @Test func forgetRecords() throws {
        let record = ForgetRecord(timeNanoseconds: -7, ids: (1...5).map { digest($0) })
        try attack(record.encoded, salt: 710) { bytes in
            let found = try ForgetRecord.decode(bytes)
            #expect(found.ids.count * 32 + 16 == bytes.count)
        }
        #expect(try ForgetRecord.decode(record.encoded) == record)
    }

    @Test func labelsRecords() throws {
        let labels = ["good", "", "bäd", String(repeating: "x", count: 255)]
        let record = LabelsRecord(
            timeNanoseconds: 7,
            changes: labels.enumerated().map { .init(id: digest(UInt64($0 + 1)), label: $1) })
        try attack(record.encoded, salt: 712) { bytes in
            let found = try LabelsRecord.decode(bytes)
            #expect(found.encoded == bytes, "there is one form for each")
        }
        #expect(try LabelsRecord.decode(record.encoded) == record)
        for label in ["-x", "a b", "\u{1b}[31m", String(repeating: "x", count: 256)] {
            let bad = LabelsRecord(
                timeNanoseconds: 7, changes: [.init(id: digest(1), label: label)])
            #expect(throws: FormatError.self) { try LabelsRecord.decode(bad.encoded) }
        }
        var many = record.encoded
        many.replaceSubrange(8..<12, with: [0xff, 0xff, 0xff, 0xff])
        #expect(throws: FormatError.self) { try LabelsRecord.decode(many) }
    }

    @Test func prunedRecords() throws {
        let record = PrunedRecord([9, 1, 2, 3, 7, 9, 8] as [UInt32])
        #expect(record.ranges == [1..<4, 7..<10])
        #expect((0...11).filter { record.contains($0) } == [1, 2, 3, 7, 8, 9])
        #expect(record.union([4, 5, 6, 12]).ranges == [1..<10, 12..<13])
        #expect(record.union([]) == record)
        try attack(record.encoded, salt: 711) { bytes in
            let found = try PrunedRecord.decode(bytes)
            #expect(found.encoded == bytes, "there is one form for each set")
        }
        #expect(try PrunedRecord.decode(record.encoded) == record)
    }

    @Test func indexesOfRewrittenPacks() throws {
        let frame = PageGroupTable(
            firstOrdinal: 3, blocks: [.init(byteCount: 100, pageCount: 1)])
        let first = PackIndex.Entry(
            type: .mapPart, offset: 64, payloadCount: 24, transaction: 2, address: 5000, frame: nil)
        let second = PackIndex.Entry(
            type: .pageGroup, offset: first.end, payloadCount: frame.payloadCount, transaction: 2,
            address: 70_000, frame: frame)
        let index = PackIndex(entries: [first, second], isRewritten: true)
        try attack(index.encoded, salt: 712) { bytes in
            try bytes.withUnsafeBytes {
                let found = try PackIndex.decode(
                    $0, recordOffset: second.end, isRewritten: true)
                let addresses = found.entries.map(\.addresses)
                #expect(
                    zip(addresses, addresses.dropFirst()).allSatisfy {
                        $0.upperBound <= $1.lowerBound
                    })
            }
        }
        try index.encoded.withUnsafeBytes { bytes in
            let found = try PackIndex.decode(bytes, recordOffset: second.end, isRewritten: true)
            #expect(found == index)
            #expect(throws: FormatError.self) {
                try PackIndex.decode(bytes, recordOffset: second.end, isRewritten: false)
            }
        }
    }

    @Test func mapParts() throws {
        let part = MapPart(
            runs: [
                MapRun(range: range(3, 2), content: .storedHere, firstOrdinal: 5),
                MapRun(range: range(5, 100), content: .zero),
                MapRun(range: range(1 << 20, 1), content: .storedBefore),
                MapRun(range: range(1 << 21, 4), content: .absent),
                MapRun(range: range(1 << 22, 2), content: .storedHere, firstOrdinal: 0),
            ], digests: (1...5).map { digest($0) })
        let compressor = try Compressor(level: .standard)
        let decompressor = try Decompressor()
        let encoded = part.encoded(compressor: compressor)
        try attack(encoded, salt: 702) { bytes in
            let found = try bytes.withUnsafeBytes {
                try MapPart.decode($0, decompressor: decompressor)
            }
            if bytes == encoded { #expect(found == part) }
        }
    }

    @Test func manifests() throws {
        var manifest = Manifest()
        manifest.parent = digest(1)
        manifest.transaction = 7
        manifest.lineage = "web"
        manifest.label = "läbel"
        manifest.cutName = "cut-7"
        manifest.memory.root = digest(2)
        (manifest.memory.frameEnd, manifest.memory.pageCount) = (100, 90)
        manifest.memory.zeroPageCount = 10
        var disk = VolumeRecord(
            number: VolumeNumber(3), name: "xvda", byteCount: 8704, sectorByteCount: 512)
        (disk.root, disk.frameEnd, disk.pageCount) = (digest(4), 3, 2)
        disk.requestsUnderWay = 12
        manifest.volumes.append(disk)
        manifest.volumeNumberEnd = 5
        manifest.maps = [
            MapPlace(
                firstFrame: PageFrameNumber(7), location: RecordLocation(pack: 1, offset: 64)),
            MapPlace(
                firstFrame: PageFrameNumber(1, in: VolumeNumber(3)),
                location: RecordLocation(pack: 1, offset: 80)),
        ]
        manifest.stateParts = [RecordLocation(pack: 1, offset: 96), .init(pack: 2, offset: 64)]
        try attack(manifest.encoded, salt: 703) { bytes in
            let found = try Manifest.decode(bytes)
            #expect(found.encoded == bytes, "one encoding for each manifest")
        }
    }

    @Test func packIndexes() throws {
        let table = PageGroupTable(
            firstOrdinal: 16,
            blocks: [.init(byteCount: 700, pageCount: 3), .init(byteCount: 4096, pageCount: 1)])
        let first = PackIndex.Entry(
            type: .pageGroup, offset: 64, payloadCount: table.payloadCount, transaction: 5,
            frame: table)
        let second = PackIndex.Entry(
            type: .publish, offset: first.end, payloadCount: 300, transaction: 4, frame: nil)
        let index = PackIndex(entries: [first, second])
        try attack(index.encoded, salt: 704) { bytes in
            let found = try bytes.withUnsafeBytes {
                try PackIndex.decode($0, recordOffset: second.end, isRewritten: false)
            }
            #expect(found.encoded == bytes)
        }
        let footer = PackFooter(indexOffset: 5000, pack: 3)
        try attack(footer.encoded, salt: 705) { bytes in
            let found = try PackFooter.decode(bytes)
            #expect(found == nil || found == footer)
        }
    }

    @Test func guestStates() throws {
        let state = GuestState(records: [
            .init(kind: "a", bytes: [1, 2, 3]), .init(kind: "", bytes: []),
        ])
        try attack(GuestStateCoding.encode(state), salt: 706) { bytes in
            let found = try GuestStateCoding.decode(bytes)
            #expect(GuestStateCoding.encode(found) == bytes)
        }
    }

    @Test func pageGroupsComeBackAndDamageIsRefused() throws {
        var random = TestSeed.generator(707)
        var pages = [UInt8](repeating: 5, count: 4 * Page.byteCount)
        for index in 0..<Page.byteCount { pages[index] = .random(in: 0...255, using: &random) }
        let compressor = try Compressor(level: .standard)
        let decompressor = try Decompressor()
        var writer = RecordWriter()
        let table = pages.withUnsafeBytes { raw in
            PageGroupEncoder.append(
                [
                    PageBlockSource(bytes: UnsafeRawBufferPointer(rebasing: raw[..<4096])),
                    PageBlockSource(bytes: UnsafeRawBufferPointer(rebasing: raw[4096...])),
                ], firstOrdinal: 3, transaction: 1, compressor: compressor, to: &writer)
        }
        #expect(table.blocks.map(\.pageCount) == [1, 3])
        #expect(table.blocks[0].byteCount == 4096, "what does not shrink is stored as it is")
        let payload = Array(writer.bytes[32..<32 + table.payloadCount])
        try attack(payload, salt: 708) { bytes in
            let found = try bytes.withUnsafeBytes {
                try PageGroupTable.decode($0, payloadCount: bytes.count)
            }
            var offset = found.headByteCount
            for block in found.blocks {
                let stored = Array(bytes[offset..<offset + Int(block.byteCount)])
                offset += stored.count
                var target = [UInt8](repeating: 0, count: Int(block.pageCount) * Page.byteCount)
                try stored.withUnsafeBytes { source in
                    try target.withUnsafeMutableBytes {
                        try PageBlock.decode(source, decompressor: decompressor, into: $0)
                    }
                }
                if bytes == payload, block.pageCount == 3 {
                    #expect(target == Array(pages[4096...]))
                }
            }
        }
    }
}
