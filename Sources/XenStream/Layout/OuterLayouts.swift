// The formats that enclose a libxc stream.
//
//   xl save file   magic[32]  u32 0x01020304  u32 mandatory  u32 optional  u32 length
//                  then `length` bytes: u32 count, configuration; then a libxl stream
//                  (savefileheader in tools/xl/xl.h)
//   libxl stream   u64 "LibxlFmt"  u32 version 2  u32 options        big-endian
//                  records as in libxc; LIBXC_CONTEXT is followed by a whole libxc stream
//                  (docs/specs/libxl-migration-stream.pandoc)
//   xenopsd image  "XenSavedDomv2-\n", then s64 type, s64 length, body  (suspend_image.ml)

/// The header of a file that `xl save` writes.
enum XlLayout {
    static let magic: [UInt8] =
        Array("Xen saved domain, xl format\n ".utf8) + [0] + Array(" \r".utf8)
    static let headerByteCount = 48
    static let byteOrder: UInt32 = 0x0102_0304
    /// The configuration is JSON.
    static let jsonFlag: UInt32 = 1
    /// A libxl stream of version 2 follows.
    static let streamFlag: UInt32 = 2
    /// Configurations are a few kilobytes; a larger one is rejected.
    static let configurationByteCountMax: UInt32 = 16 << 20
}

/// The libxl stream.
enum LibxlLayout {
    /// "LibxlFmt".
    static let ident: UInt64 = 0x4c69_6278_6c46_6d74
    static let headerByteCount = 16
    static let version: UInt32 = 2
    static let bigEndianOption: UInt32 = 1
    static let legacyOption: UInt32 = 2
}

/// The type of a libxl record.
struct LibxlRecordType: RawRepresentable, Hashable {
    let rawValue: UInt32

    static let end = LibxlRecordType(rawValue: 0)
    static let libxcContext = LibxlRecordType(rawValue: 1)
    static let emulatorXenstoreData = LibxlRecordType(rawValue: 2)
    static let emulatorContext = LibxlRecordType(rawValue: 3)
    static let checkpointEnd = LibxlRecordType(rawValue: 4)
    static let checkpointState = LibxlRecordType(rawValue: 5)

    private static let names = [
        "END", "LIBXC_CONTEXT", "EMULATOR_XENSTORE_DATA", "EMULATOR_CONTEXT", "CHECKPOINT_END",
        "CHECKPOINT_STATE",
    ]

    /// The name in Xen's specification, or the number.
    var name: String {
        rawValue < LibxlRecordType.names.count
            ? LibxlRecordType.names[Int(rawValue)] : "0x" + String(rawValue, radix: 16)
    }

    /// The type that has this name.
    init?(name: some StringProtocol) {
        guard let number = LibxlRecordType.names.firstIndex(where: { $0 == name }) else {
            return nil
        }
        self.init(rawValue: UInt32(number))
    }

    init(rawValue: UInt32) { self.rawValue = rawValue }
}

/// The suspend image of xenopsd.
enum XenopsdLayout {
    static let magic: [UInt8] = Array("XenSavedDomv2-\n".utf8)
    static let legacyMagic: [UInt8] = Array("XenSavedDomain\n".utf8)
    static let libxc: Int64 = 0xf0
    static let libxl: Int64 = 0xf1
    static let legacyLibxc: Int64 = 0xf2
    static let end: Int64 = 0xffff

    /// The records with a length and a body.
    static let names: [Int64: String] = [
        0x0f: "Xenops", 0xf00: "Qemu_trad", 0xf01: "Qemu_xen", 0xf10: "Demu",
        0xf11: "Varstored", 0xf12: "Swtpm0", 0xf13: "Swtpm",
    ]
}

/// The format of a file or pipe, detected from its first bytes.
public enum XenStreamFormat: String, Hashable, Sendable {
    /// A file of `xl save`.
    case xl
    /// A libxl stream, as libxl passes it to a toolstack.
    case libxl
    /// A bare libxc stream.
    case libxc
    /// A suspend image of xenopsd.
    case xenopsd

    /// Bytes that are needed to detect a format.
    public static let byteCount = 48

    /// Detects the format; nil if it is none of these.
    ///
    /// - Parameter bytes: the first bytes, up to `byteCount`.
    public init?(detecting bytes: UnsafeRawBufferPointer) {
        if bytes.starts(with: XlLayout.magic) {
            self = .xl
        } else if bytes.starts(with: LibxlLayout.ident.bigEndianBytes) {
            self = .libxl
        } else if bytes.starts(
            with: LibxcLayout.marker.bigEndianBytes + LibxcLayout.ident.bigEndianBytes)
        {
            self = .libxc
        } else if bytes.starts(with: XenopsdLayout.magic)
            || bytes.starts(with: XenopsdLayout.legacyMagic)
        {
            self = .xenopsd
        } else {
            return nil
        }
    }
}
