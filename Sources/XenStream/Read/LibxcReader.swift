import GuestModel

/// Reads a libxc stream: the innermost one, with the pages.
struct LibxcReader {
    /// Why reading stopped.
    enum Stop {
        case checkpoint
        case end
    }

    /// The most pages passed on at once.
    private static let deliveryPageCount = 256
    // A frame number may be as high as in a 64 GiB guest, or twice the number of bytes read: page
    // maps take memory for each frame up to the highest, and a short stream must not determine how
    // much.
    private static let frameCountFree: UInt64 = 1 << 24

    private(set) var summary = XenStreamSummary()
    var state = StateBuilder()
    private var kind = XenGuestKind.hvm
    private var version: UInt32 = 3
    private var hasStaticDataEnd = false
    private var isVerifying = false
    private var entries: [UInt64] = []
    private var frames: [PageFrameNumber] = []

    init() {}

    // MARK: - Headers

    /// Reads the image header and the domain header.
    mutating func readHeaders(_ input: inout StreamInput) throws {
        let start = input.offset
        let name = "libxc image header"
        let header = try input.next(LibxcLayout.imageHeaderByteCount, of: name)
        func malformed(_ reason: String) -> XenStreamError {
            XenStreamError(.malformed, at: start, in: name, reason)
        }
        guard header.big(0, as: UInt64.self) == LibxcLayout.marker else {
            throw XenStreamError(
                .legacy, at: start, in: name,
                "it has no marker, so it is a legacy stream of Xen before 4.6 or not a stream; "
                    + "convert it with Xen's convert-legacy-stream")
        }
        guard header.big(8, as: UInt32.self) == LibxcLayout.ident else {
            throw malformed("the identifier is not XENF")
        }
        version = header.big(12)
        guard version == 2 || version == 3 else {
            throw XenStreamError(
                .unsupported, at: start, in: name,
                "it has version \(version), but only versions 2 and 3 are known")
        }
        let options: UInt16 = header.big(16)
        if options & ~1 != 0 { summary.ignoredReservedFields.add(name, at: start) }
        if header[18..<24].contains(where: { $0 != 0 }) {
            summary.ignoredReservedFields.add(name, at: start)
        }
        guard options & 1 == 0 else {
            throw XenStreamError(
                .unsupported, at: start, in: name,
                "its body is big-endian; only little-endian streams are known (x86), and no tool "
                    + "of Xen's converts it")
        }
        try readDomainHeader(&input)
    }

    private mutating func readDomainHeader(_ input: inout StreamInput) throws {
        let start = input.offset
        let name = "libxc domain header"
        let header = try input.next(LibxcLayout.domainHeaderByteCount, of: name)
        guard let kind = XenGuestKind(rawValue: header.little(0)) else {
            throw XenStreamError(
                .unsupported, at: start, in: name,
                "domain type \(header.little(0, as: UInt32.self)) is not known (1 is PV, 2 HVM)")
        }
        guard header.little(4, as: UInt16.self) == LibxcLayout.pageShift else {
            throw XenStreamError(
                .malformed, at: start, in: name, "the page shift is not 12")
        }
        self.kind = kind
        var bytes = Array(header)
        if bytes.clear(6..<8) { summary.ignoredReservedFields.add(name, at: start) }
        _ = state.set(XenStateKind.domainHeader, bytes)
        // Version 2 has no such record: its static data ends at the first pages or frames.
        hasStaticDataEnd = version == 2
    }

    // MARK: - Records

    /// Reads records up to the end of an epoch or of the stream.
    mutating func run(
        _ input: inout StreamInput, _ visitor: any XenStreamVisitor
    ) throws -> Stop {
        while true {
            let start = input.offset
            let header = try input.next(LibxcLayout.recordHeaderByteCount, of: "a record header")
            let record = Record(
                type: LibxcRecordType(rawValue: header.little(0)), length: header.little(4),
                start: start)
            guard record.length <= LibxcLayout.recordByteCountMax else {
                throw record.malformed("its length is \(record.length), over 128 MiB")
            }
            switch record.type {
            case .end:
                try record.expectEmpty()
                if !summary.isCheckpointed { try expectComplete(record) }
                return .end
            case .checkpoint:
                try record.expectEmpty()
                try expectComplete(record)
                summary.isCheckpointed = true
                return .checkpoint
            case .pageData:
                summary.hasPartialEpoch = true
                try readPages(record, &input, visitor)
            default:
                try readSmall(record, &input)
            }
        }
    }

    /// Marks everything since the last epoch as part of a whole one.
    mutating func endEpoch(_ visitor: any XenStreamVisitor) throws {
        try visitor.endEpoch(state.state)
        summary.epochCount += 1
        summary.hasPartialEpoch = false
    }

    /// An epoch without these cannot be restored, so it is not whole.
    private func expectComplete(_ record: Record) throws {
        let needed: [LibxcRecordType] =
            switch kind {
            case .pv: [.pvInfo, .pvP2MFrames, .sharedInfo, .vcpuBasic]
            case .hvm: [.hvmContext]
            }
        for type in needed where !state.has(type) {
            throw record.malformed("there was no \(type.name) record before it")
        }
    }

    private mutating func readSmall(_ record: Record, _ input: inout StreamInput) throws {
        let isKnown = LibxcRecords.isKnown(record.type, in: kind)
        guard isKnown || record.type.isOptional else { throw refusal(of: record) }
        guard isKnown else {
            try skip(record.length, of: record.type.name, at: record.start, &input)
            return
        }
        var body = try input.bytes(Int(record.length), of: record.type.name)
        try readPadding(record, &input)
        try LibxcRecords.check(record, body, version: version, state)
        if let reserved = LibxcRecords.reserved(record.type), body.clear(reserved) {
            summary.ignoredReservedFields.add(record.type.name, at: record.start)
        }
        switch record.type {
        case .staticDataEnd:
            guard !hasStaticDataEnd else { throw record.malformed("it occurs twice") }
            hasStaticDataEnd = true
        case .verify:
            guard !summary.isCheckpointed else {
                throw record.malformed("a checkpointed stream has no such record")
            }
            isVerifying = true
        default:
            summary.hasPartialEpoch = true
            guard !LibxcRecords.isEmptyErratum(record.type, body) else { return }
            let instance = record.type.isPerVCPU ? body.little(0, as: UInt32.self) : 0
            let kind = XenStateKind.libxc(record.type)
            guard state.set(kind, instance: UInt64(instance), body) else {
                throw record.malformed("the guest's state exceeds 256 MiB")
            }
        }
    }

    private func refusal(of record: Record) -> XenStreamError {
        switch record.type {
        case .toolstack:
            record.unsupported("this record was dropped before Xen 4.6; convert the stream again")
        case .dirtyFrames:
            record.unsupported(
                "it belongs to COLO, which is not supported; use xl remus without -c")
        default:
            record.malformed("a \(kind == .pv ? "PV" : "HVM") stream has no such record")
        }
    }

    private mutating func readPadding(_ record: Record, _ input: inout StreamInput) throws {
        let count = Int(record.length.paddedTo8 - record.length)
        guard count > 0 else { return }
        let padding = try input.next(count, of: record.type.name)
        if padding.contains(where: { $0 != 0 }) {
            summary.ignoredReservedFields.add(record.type.name, at: record.start)
        }
    }

    /// Skips the body of an optional record, and its padding.
    mutating func skip(
        _ length: UInt32, of name: String, at start: UInt64, _ input: inout StreamInput
    ) throws {
        var left = UInt64(length).paddedTo8
        while left > 0 {
            let piece = min(left, UInt64(StreamInput.viewByteCountMax))
            _ = try input.next(Int(piece), of: name)
            left -= piece
        }
        summary.skippedRecords.add(name, at: start)
    }

    // MARK: - Pages

    private mutating func readPages(
        _ record: Record, _ input: inout StreamInput, _ visitor: any XenStreamVisitor
    ) throws {
        guard hasStaticDataEnd else {
            throw record.malformed("there was no STATIC_DATA_END record before it")
        }
        guard record.length >= 8 else { throw record.malformed("it is shorter than its header") }
        let head = try input.next(8, of: record.type.name)
        let count: UInt32 = head.little(0)
        if head.little(4, as: UInt32.self) != 0 {
            summary.ignoredReservedFields.add(record.type.name, at: record.start)
        }
        guard count > 0 else { throw record.malformed("it has no pages") }
        guard UInt64(count) * 8 + 8 <= UInt64(record.length) else {
            throw record.malformed("\(count) entries do not fit in its \(record.length) bytes")
        }
        try readEntries(Int(count), record, &input)
        let dataCount = entries.reduce(0) { $0 + (LibxcReader.type($1).hasData ? 1 : 0) }
        let expected = 8 + UInt64(count) * 8 + UInt64(dataCount) * UInt64(Page.byteCount)
        guard UInt64(record.length) == expected else {
            throw record.malformed(
                "its length is \(record.length), but its entries need \(expected)")
        }
        try deliver(record, &input, visitor)
    }

    private static func type(_ entry: UInt64) -> XenPageType {
        XenPageType(rawValue: UInt8(entry >> LibxcLayout.typeShift))
    }

    private mutating func readEntries(
        _ count: Int, _ record: Record, _ input: inout StreamInput
    ) throws {
        entries.removeAll(keepingCapacity: true)
        while entries.count < count {
            let piece = min(count - entries.count, StreamInput.viewByteCountMax / 8)
            let bytes = try input.next(piece * 8, of: record.type.name)
            let limit = max(LibxcReader.frameCountFree, input.offset * 2)
            for index in 0..<piece {
                var entry: UInt64 = bytes.little(index * 8)
                let number = entries.count
                if entry & LibxcLayout.reservedMask != 0 {
                    summary.ignoredReservedFields.add(record.type.name, at: record.start)
                    entry &= ~LibxcLayout.reservedMask
                }
                guard LibxcReader.type(entry).isKnown else {
                    throw record.malformed(
                        "entry \(number) has the invalid type \(entry >> LibxcLayout.typeShift)")
                }
                guard entry & LibxcLayout.frameMask < limit else {
                    let frame = PageFrameNumber(entry & LibxcLayout.frameMask)
                    throw record.malformed(
                        "entry \(number) names frame \(frame), far beyond the memory read "
                            + "so far")
                }
                entries.append(entry)
            }
        }
    }

    /// Passes the pages on as they arrive.
    private mutating func deliver(
        _ record: Record, _ input: inout StreamInput, _ visitor: any XenStreamVisitor
    ) throws {
        var next = 0
        while next < entries.count {
            let type = LibxcReader.type(entries[next])
            let frame = PageFrameNumber(entries[next] & LibxcLayout.frameMask)
            if !type.hasData {
                if !isVerifying {
                    state.setType(type, of: frame.rawValue)
                    try visitor.frame(frame, isPopulated: type.isPopulated)
                }
                next += 1
                continue
            }
            let view = try input.view(atLeast: Page.byteCount)
            guard view.count >= Page.byteCount else {
                throw XenStreamError(
                    endAt: input.offset + UInt64(view.count), in: record.type.name)
            }
            frames.removeAll(keepingCapacity: true)
            let limit = min(view.count / Page.byteCount, LibxcReader.deliveryPageCount)
            while next < entries.count, frames.count < limit {
                let type = LibxcReader.type(entries[next])
                guard type.hasData else { break }
                let frame = entries[next] & LibxcLayout.frameMask
                if !isVerifying { state.setType(type, of: frame) }
                frames.append(PageFrameNumber(frame))
                next += 1
            }
            let byteCount = frames.count * Page.byteCount
            // Pages after VERIFY are meant for comparison by Xen's developers: they were sent
            // before.
            if !isVerifying {
                try visitor.pages(
                    frames.span, UnsafeRawBufferPointer(rebasing: view[..<byteCount]).bytes)
            }
            input.take(byteCount)
        }
    }
}
