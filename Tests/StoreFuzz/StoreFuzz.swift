// Targets for libFuzzer; Scripts/fuzz builds and runs them, and the tests run them over the corpus
// and over mutations of it. Conditions for any bytes in a record or in a pack, with right checksums
// around them:
//
//   - decoding ends, with a value or a FormatError, and reads nothing outside the input
//   - a decoded value encodes to the same bytes, if each value has one form
//   - a pack is scanned and salvaged, and each record that the scan names can be read
import CheckpointFormat
import GuestModel

/// The format of an input.
package enum StoreFuzz {
    /// The first byte of a pack: 10 open, 11 sealed, 12 rewritten and sealed.
    static let packs: ClosedRange<UInt8> = 10...12

    /// Tries an input: a record's type and its payload, or a pack: for each record its type, its
    /// transaction, a 16-bit little-endian length, and its payload.
    package static func run(_ bytes: UnsafeRawBufferPointer) {
        guard let kind = bytes.first else { return }
        let rest = Array(bytes.dropFirst())
        if packs.contains(kind) {
            PackTrial.run(rest, kind)
        } else {
            try? record(RecordType(rawValue: kind), rest)
        }
    }

    /// The types, and how the payload of each is tried: a line for each.
    private static func record(_ type: RecordType, _ payload: [UInt8]) throws(FormatError) {
        switch type {
        case .pageGroup: try frame(payload)
        case .mapPart: try map(payload)
        case .guestState:
            same(GuestStateCoding.encode(try GuestStateCoding.decode(payload)), payload)
        case .publish: same(try Manifest.decode(payload).encoded, payload)
        case .packIndex: try index(payload)
        case .forget: same(try ForgetRecord.decode(payload).encoded, payload)
        case .pruned: same(try PrunedRecord.decode(payload).encoded, payload)
        case .labels: same(try LabelsRecord.decode(payload).encoded, payload)
        default: break
        }
    }

    private static func same(_ encoded: [UInt8], _ payload: [UInt8]) {
        precondition(encoded == payload, "there is one form for each value")
    }

    private static func decompressor() -> Decompressor {
        do {
            return try Decompressor()
        } catch {
            preconditionFailure("no memory is left: \(error)")
        }
    }

    private static func frame(_ payload: [UInt8]) throws(FormatError) {
        let table = try payload.withUnsafeBufferPointer { (bytes) throws(FormatError) in
            try PageGroupTable.decode(UnsafeRawBufferPointer(bytes), payloadCount: bytes.count)
        }
        var count = 0
        table.forEachLocation(pack: 1, recordOffset: 64) { _ in count += 1 }
        precondition(count == table.pageCount, "each page has a place")
        let decompressor = decompressor()
        var offset = table.headByteCount
        for block in table.blocks {
            var pages = [UInt8](repeating: 0, count: Int(block.pageCount) * Page.byteCount)
            let stored = Array(payload[offset..<offset + Int(block.byteCount)])
            offset += stored.count
            stored.withUnsafeBytes { source in
                pages.withUnsafeMutableBytes {
                    try? PageBlock.decode(source, decompressor: decompressor, into: $0)
                }
            }
        }
    }

    private static func map(_ payload: [UInt8]) throws(FormatError) {
        let decompressor = decompressor()
        let part = try payload.withUnsafeBufferPointer { (bytes) throws(FormatError) in
            try MapPart.decode(UnsafeRawBufferPointer(bytes), decompressor: decompressor)
        }
        let count = part.runs.reduce(0) { $0 + $1.range.count }
        precondition(count <= MapPart.frameCountMax, "a part names no more frames")
        var manifest = Manifest()
        (manifest.memory.frameEnd, manifest.memory.pageCount) = (1 << 20, 1 << 20)
        var disk = VolumeRecord(number: VolumeNumber(1), name: "xvda", byteCount: 1 << 32)
        disk.frameEnd = 1 << 20
        manifest.volumes.append(disk)
        var check = MapCheck(manifest)
        try check.take(
            part,
            at: MapPlace(
                firstFrame: part.runs.first?.range.first ?? PageFrameNumber(0),
                location: RecordLocation(pack: 1, offset: 64)))
    }

    private static func index(_ payload: [UInt8]) throws(FormatError) {
        for isRewritten in [false, true] {
            for end: UInt32 in [64, 4096, 1 << 20, .max] {
                let found = try? payload.withUnsafeBytes {
                    try PackIndex.decode($0, recordOffset: end, isRewritten: isRewritten)
                }
                if let found { same(found.encoded, payload) }
            }
        }
    }
}

/// The entry that libFuzzer calls.
@_cdecl("LLVMFuzzerTestOneInput")
package func fuzzStore(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    StoreFuzz.run(UnsafeRawBufferPointer(start: start, count: count))
    return 0
}
