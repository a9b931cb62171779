import GuestModel

/// Reads a guest's stream: an xl save file, a libxl stream, a bare libxc stream or a suspend image
/// of xenopsd; PV, HVM or PVH; plain or checkpointed (Remus).
///
/// Memory is bounded: a buffer of 1 MiB and the guest's state. It is as strict as Xen's own
/// verifier, except for fields that Xen's specification says to ignore, and accepts what Xen's
/// receiver accepts. Not thread-safe; used once.
///
/// The layouts are those of Xen's docs/specs and of tools/xl.
package struct XenStreamReader: ~Copyable {
    private var input: StreamInput
    private let format: XenStreamFormat
    private var libxc = LibxcReader()

    /// - Parameters:
    ///   - format: the stream's format.
    ///   - source: fills a buffer from the current position; returns the byte count, 0 at the end.
    package init(
        format: XenStreamFormat,
        source: @escaping (UnsafeMutableRawBufferPointer) throws -> Int
    ) {
        self.format = format
        input = StreamInput(source: source)
    }

    /// What was read so far; valid after an error too.
    package var summary: XenStreamSummary { libxc.summary }

    /// Reads the stream to its end.
    ///
    /// Blocks as the source does. Throws `XenStreamError`, or what source or visitor throws; epochs
    /// that were reported as whole remain valid.
    package mutating func run(_ visitor: any XenStreamVisitor) throws {
        switch format {
        case .xl:
            try readXlHeader()
            try readLibxl(visitor)
            try endPlain(visitor)
        case .libxl:
            try readLibxl(visitor)
            try endPlain(visitor)
        case .libxc:
            try readLibxc(visitor)
            try endPlain(visitor)
        case .xenopsd: try readXenopsd(visitor)
        }
    }

    /// Examines what follows a stream that `run` has read to its end record; nil: nothing.
    ///
    /// - Parameter source: continues where the source of the stream stopped. Without it only what
    ///   was read along with the stream is examined, and nothing blocks: the other end of a
    ///   migration keeps sending after its stream.
    package mutating func trailer(
        from source: ((UnsafeMutableRawBufferPointer) throws -> Int)? = nil
    ) throws -> XenStreamTrailer? {
        input.read(from: source ?? { _ in 0 })
        let view = try input.view(atLeast: XenStreamFormat.byteCount)
        guard !view.isEmpty else { return nil }
        return XenStreamTrailer(offset: input.offset, format: XenStreamFormat(detecting: view))
    }

    /// The end of a plain stream ends its one epoch; a checkpointed stream's incomplete last epoch
    /// is dropped, as by Xen's receiver.
    private mutating func endPlain(_ visitor: any XenStreamVisitor) throws {
        if !libxc.summary.isCheckpointed { try libxc.endEpoch(visitor) }
    }

    // MARK: - xl

    private mutating func readXlHeader() throws {
        let name = "xl header"
        let start = input.offset
        let header = try input.next(XlLayout.headerByteCount, of: name)
        guard header.starts(with: XlLayout.magic) else {
            throw XenStreamError(.malformed, at: start, in: name, "it is not an xl save file")
        }
        let order: UInt32 = header.little(32)
        guard order == XlLayout.byteOrder else {
            throw XenStreamError(
                .unsupported, at: start, in: name,
                order == XlLayout.byteOrder.byteSwapped
                    ? "it is big-endian; only little-endian files are known (x86), and no tool of "
                        + "Xen's converts it" : "its byte order field is not known")
        }
        let mandatory: UInt32 = header.little(36)
        guard mandatory & ~(XlLayout.jsonFlag | XlLayout.streamFlag) == 0 else {
            throw XenStreamError(
                .unsupported, at: start, in: name,
                "mandatory flags 0x\(String(mandatory, radix: 16)) are not known")
        }
        guard mandatory & XlLayout.streamFlag != 0 else {
            throw XenStreamError(
                .legacy, at: start, in: name,
                "it holds a legacy stream of Xen before 4.6; convert it with Xen's "
                    + "convert-legacy-stream")
        }
        let length: UInt32 = header.little(44)
        guard length <= XlLayout.configurationByteCountMax else {
            throw XenStreamError(
                .malformed, at: start, in: name, "\(length) bytes of configuration are too many")
        }
        try readConfiguration(Int(length), isJSON: mandatory & XlLayout.jsonFlag != 0)
    }

    private mutating func readConfiguration(_ length: Int, isJSON: Bool) throws {
        guard length > 0 else { return }
        let name = "xl configuration"
        let start = input.offset
        let bytes = try input.bytes(length, of: name)
        guard length >= 4, bytes.little(0, as: UInt32.self) <= UInt32(length - 4) else {
            throw XenStreamError(
                .malformed, at: start, in: name, "it is longer than the header says")
        }
        let count = Int(bytes.little(0, as: UInt32.self))
        let kind = isJSON ? XenStateKind.configuration : XenStateKind.configurationText
        _ = libxc.state.set(kind, Array(bytes[4..<4 + count]))
    }

    // MARK: - libxc and libxl

    /// Reads a bare libxc stream to its end.
    private mutating func readLibxc(_ visitor: any XenStreamVisitor) throws {
        try libxc.readHeaders(&input)
        while try libxc.run(&input, visitor) == .checkpoint { try libxc.endEpoch(visitor) }
    }

    private mutating func readLibxlHeader() throws {
        let start = input.offset
        let name = "libxl header"
        let header = try input.next(LibxlLayout.headerByteCount, of: name)
        guard header.big(0, as: UInt64.self) == LibxlLayout.ident else {
            throw XenStreamError(
                .malformed, at: start, in: name, "the identifier is not LibxlFmt")
        }
        let version: UInt32 = header.big(8)
        guard version == LibxlLayout.version else {
            throw XenStreamError(
                .unsupported, at: start, in: name, "it has version \(version), but only 2 is known")
        }
        let options: UInt32 = header.big(12)
        guard options & ~(LibxlLayout.bigEndianOption | LibxlLayout.legacyOption) == 0 else {
            throw XenStreamError(.malformed, at: start, in: name, "reserved bits are set")
        }
        guard options & LibxlLayout.bigEndianOption == 0 else {
            throw XenStreamError(
                .unsupported, at: start, in: name,
                "it is big-endian; only little-endian streams are known (x86), and no tool of "
                    + "Xen's converts it")
        }
    }

    /// The position of a libxl stream relative to the libxc stream inside it.
    private enum LibxlPhase {
        case before
        /// After CHECKPOINT: device state follows, then CHECKPOINT_END.
        case inCheckpoint
        /// After END.
        case after
    }

    private mutating func readLibxl(_ visitor: any XenStreamVisitor) throws {
        try readLibxlHeader()
        var phase = LibxlPhase.before
        while true {
            let start = input.offset
            let header = try input.next(
                LibxcLayout.recordHeaderByteCount, of: "a libxl record header")
            let type = LibxlRecordType(rawValue: header.little(0))
            let length: UInt32 = header.little(4)
            func malformed(_ reason: String) -> XenStreamError {
                XenStreamError(.malformed, at: start, in: type.name, reason)
            }
            guard length <= LibxcLayout.recordByteCountMax else {
                throw malformed("its length is \(length), over 128 MiB")
            }
            let isEmptyType = [.end, .libxcContext, .checkpointEnd].contains(type)
            guard !isEmptyType || length == 0 else {
                throw malformed("it has \(length) bytes but must have none")
            }
            switch (type, phase) {
            case (.libxcContext, .before):
                try libxc.readHeaders(&input)
                phase = try libxc.run(&input, visitor) == .checkpoint ? .inCheckpoint : .after
            case (.checkpointEnd, .inCheckpoint):
                try libxc.endEpoch(visitor)
                phase = try libxc.run(&input, visitor) == .checkpoint ? .inCheckpoint : .after
            case (.end, .after): return
            case (.emulatorXenstoreData, .inCheckpoint), (.emulatorXenstoreData, .after),
                (.emulatorContext, .inCheckpoint), (.emulatorContext, .after):
                try readEmulator(type, Int(length), at: start)
            case (.checkpointState, _):
                throw XenStreamError(
                    .unsupported, at: start, in: type.name,
                    "it belongs to COLO, which is not supported; use xl remus without -c")
            case (.libxcContext, _), (.checkpointEnd, _), (.end, _), (.emulatorContext, _),
                (.emulatorXenstoreData, _):
                throw malformed("it occurs where it must not")
            default:
                guard type.rawValue & LibxcLayout.optionalBit != 0 else {
                    throw malformed("a libxl stream has no such record")
                }
                try libxc.skip(length, of: type.name, at: start, &input)
            }
        }
    }

    /// Reads a body and its padding.
    private mutating func body(
        _ length: Int, of record: String, at start: UInt64
    ) throws -> [UInt8] {
        let bytes = try input.bytes(length, of: record)
        let padding = try input.next(length.paddedTo8 - length, of: record)
        guard padding.allSatisfy({ $0 == 0 }) else {
            throw XenStreamError(.malformed, at: start, in: record, "its padding is not zero")
        }
        return bytes
    }

    private mutating func readEmulator(
        _ type: LibxlRecordType, _ length: Int, at start: UInt64
    ) throws {
        let bytes = try body(length, of: type.name, at: start)
        func malformed(_ reason: String) -> XenStreamError {
            XenStreamError(.malformed, at: start, in: type.name, reason)
        }
        guard length >= 8 else { throw malformed("it is shorter than its header") }
        let emulator: UInt32 = bytes.little(0)
        guard emulator <= 2 else { throw malformed("emulator \(emulator) is not known") }
        if type == .emulatorXenstoreData, length > 8 {
            guard bytes.last == 0 else { throw malformed("its last string is not terminated") }
            let strings = bytes[8...].reduce(0) { $0 + ($1 == 0 ? 1 : 0) }
            guard strings % 2 == 0 else { throw malformed("a key in it has no value") }
        }
        // One for each emulator and index.
        guard
            libxc.state.set(
                XenStateKind.libxl(type), instance: bytes.little(0, as: UInt64.self), bytes)
        else { throw malformed("the guest's state exceeds 256 MiB") }
    }

    // MARK: - xenopsd

    private mutating func readXenopsd(_ visitor: any XenStreamVisitor) throws {
        let start = input.offset
        let magic = try input.next(XenopsdLayout.magic.count, of: "xenopsd header")
        guard magic.elementsEqual(XenopsdLayout.magic) else {
            guard magic.elementsEqual(XenopsdLayout.legacyMagic) else {
                throw XenStreamError(
                    .malformed, at: start, in: "xenopsd header", "it is not a suspend image")
            }
            throw XenStreamError(
                .legacy, at: start, in: "xenopsd header",
                "it is a legacy image of XenServer before 7; resume the guest there and suspend it "
                    + "again, or convert its stream with Xen's convert-legacy-stream")
        }
        var hasMemory = false
        while true {
            let start = input.offset
            let header = try input.next(16, of: "a xenopsd record header")
            let (type, length): (Int64, Int64) = (header.little(0), header.little(8))
            func malformed(_ reason: String) -> XenStreamError {
                XenStreamError(.malformed, at: start, in: "xenopsd record \(type)", reason)
            }
            switch type {
            case XenopsdLayout.libxc, XenopsdLayout.libxl:
                guard !hasMemory else { throw malformed("the guest's memory occurs twice") }
                hasMemory = true
                if type == XenopsdLayout.libxl {
                    try readLibxl(visitor)
                } else {
                    try readLibxc(visitor)
                }
            case XenopsdLayout.legacyLibxc:
                throw XenStreamError(
                    .legacy, at: start, in: "xenopsd record \(type)",
                    "it is a legacy stream of Xen before 4.6; convert it with Xen's "
                        + "convert-legacy-stream")
            case XenopsdLayout.end:
                guard hasMemory else { throw malformed("the image ends without memory") }
                try endPlain(visitor)
                return
            default:
                guard let name = XenopsdLayout.names[type] else {
                    throw malformed("there is no such record")
                }
                guard length >= 0, length <= Int64(LibxcLayout.recordByteCountMax) else {
                    throw malformed("its length is \(length), over 128 MiB")
                }
                let bytes = try input.bytes(Int(length), of: "xenopsd record \(name)")
                guard libxc.state.set(XenStateKind.xenopsdPrefix + name, bytes) else {
                    throw malformed("the guest's state exceeds 256 MiB")
                }
            }
        }
    }
}
