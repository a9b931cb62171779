// The libxc stream, versions 2 and 3 (docs/specs/libxc-migration-stream.pandoc in Xen's tree):
//
//   image header   u64 all ones  u32 "XENF"  u32 version  u16 options  u16, u32 zero    big-endian
//   domain header  u32 type  u16 page shift  u16 zero  u32 major  u32 minor          little-endian
//   records        u32 type  u32 length  body  zeros to a multiple of 8              little-endian

/// The layout of a libxc stream.
enum LibxcLayout {
    static let imageHeaderByteCount = 24
    static let domainHeaderByteCount = 16
    static let recordHeaderByteCount = 8
    static let marker = UInt64.max
    /// "XENF".
    static let ident: UInt32 = 0x5845_4e46
    /// The version that is written; 2 and 3 are read.
    static let version: UInt32 = 3
    static let pageShift: UInt16 = 12
    /// `REC_LENGTH_MAX` of xg_sr_stream_format.h: 128 MiB.
    static let recordByteCountMax: UInt32 = 128 << 20
    /// `MAX_BATCH_SIZE` of xg_sr_common.h.
    static let batchPageCount = 1024
    /// The bit of a record type that says that readers may skip it.
    static let optionalBit: UInt32 = 1 << 31
    /// The low bits of a page entry: the frame number.
    static let frameMask: UInt64 = (1 << 52) - 1
    /// Bits of a page entry that are reserved.
    static let reservedMask: UInt64 = ((1 << 60) - 1) & ~frameMask
    static let typeShift: UInt64 = 60
}

/// The type of a libxc record.
public struct LibxcRecordType: RawRepresentable, Hashable, Sendable {
    /// The number in the record's header; bit 31 marks one that readers may skip.
    public let rawValue: UInt32

    /// Wraps a number.
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    static let end = LibxcRecordType(rawValue: 0x0)
    static let pageData = LibxcRecordType(rawValue: 0x1)
    static let pvInfo = LibxcRecordType(rawValue: 0x2)
    static let pvP2MFrames = LibxcRecordType(rawValue: 0x3)
    static let vcpuBasic = LibxcRecordType(rawValue: 0x4)
    static let vcpuExtended = LibxcRecordType(rawValue: 0x5)
    static let vcpuXsave = LibxcRecordType(rawValue: 0x6)
    static let sharedInfo = LibxcRecordType(rawValue: 0x7)
    static let tscInfo = LibxcRecordType(rawValue: 0x8)
    static let hvmContext = LibxcRecordType(rawValue: 0x9)
    static let hvmParams = LibxcRecordType(rawValue: 0xa)
    static let toolstack = LibxcRecordType(rawValue: 0xb)
    static let vcpuMSRs = LibxcRecordType(rawValue: 0xc)
    static let verify = LibxcRecordType(rawValue: 0xd)
    static let checkpoint = LibxcRecordType(rawValue: 0xe)
    static let dirtyFrames = LibxcRecordType(rawValue: 0xf)
    static let staticDataEnd = LibxcRecordType(rawValue: 0x10)
    static let cpuidPolicy = LibxcRecordType(rawValue: 0x11)
    static let msrPolicy = LibxcRecordType(rawValue: 0x12)

    private static let names: [UInt32: String] = [
        0x0: "END", 0x1: "PAGE_DATA", 0x2: "X86_PV_INFO", 0x3: "X86_PV_P2M_FRAMES",
        0x4: "X86_PV_VCPU_BASIC", 0x5: "X86_PV_VCPU_EXTENDED", 0x6: "X86_PV_VCPU_XSAVE",
        0x7: "SHARED_INFO", 0x8: "X86_TSC_INFO", 0x9: "HVM_CONTEXT", 0xa: "HVM_PARAMS",
        0xb: "TOOLSTACK", 0xc: "X86_PV_VCPU_MSRS", 0xd: "VERIFY", 0xe: "CHECKPOINT",
        0xf: "CHECKPOINT_DIRTY_PFN_LIST", 0x10: "STATIC_DATA_END", 0x11: "X86_CPUID_POLICY",
        0x12: "X86_MSR_POLICY",
    ]

    /// The name in Xen's specification, or the number.
    public var name: String {
        LibxcRecordType.names[rawValue] ?? "0x" + String(rawValue, radix: 16)
    }

    /// The type that has this name.
    init?(name: some StringProtocol) {
        if let known = LibxcRecordType.names.first(where: { $0.value == name }) {
            self.init(rawValue: known.key)
        } else if name.hasPrefix("0x"), let number = UInt32(name.dropFirst(2), radix: 16) {
            self.init(rawValue: number)
        } else {
            return nil
        }
    }

    /// True if a reader that does not know the type may skip the record.
    var isOptional: Bool { rawValue & LibxcLayout.optionalBit != 0 }

    /// True if every virtual processor has a record of this type.
    var isPerVCPU: Bool {
        switch self {
        case .vcpuBasic, .vcpuExtended, .vcpuXsave, .vcpuMSRs: true
        default: false
        }
    }
}

/// The type of a guest's frame in a stream: `XEN_DOMCTL_PFINFO_*` of public/domctl.h.
public struct XenPageType: RawRepresentable, Hashable, Sendable {
    /// The four bits.
    public let rawValue: UInt8

    /// Wraps four bits.
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// An ordinary page; every page of an HVM or PVH guest.
    public static let normal = XenPageType(rawValue: 0)
    /// Memory that the hypervisor found broken; the frame has no content.
    public static let broken = XenPageType(rawValue: 0xd)
    /// Allocated, but its content is irrelevant.
    public static let allocateOnly = XenPageType(rawValue: 0xe)
    /// No page exists.
    public static let invalid = XenPageType(rawValue: 0xf)

    /// True for the types that a stream may have: page tables of level 1 to 4, pinned or not.
    var isKnown: Bool { !(5...8).contains(rawValue) }

    /// True if 4096 bytes follow for it.
    var hasData: Bool { rawValue < 0xd }

    /// True if the guest has a page there.
    var isPopulated: Bool { hasData || self == .allocateOnly }
}

/// The guest's kind of virtualization in a stream.
public enum XenGuestKind: UInt32, Hashable, Sendable {
    /// Paravirtualized: `DHDR_TYPE_X86_PV`.
    case pv = 1
    /// With hardware virtualisation: HVM and PVH, `DHDR_TYPE_X86_HVM`.
    case hvm = 2
}
