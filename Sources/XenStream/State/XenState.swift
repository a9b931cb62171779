public import GuestModel

/// A checkpoint's state, read back as a Xen guest's.
struct XenState {
    let kind: XenGuestKind
    /// The original domain header.
    let domainHeader: [UInt8]
    /// libxc records in the order of their stream.
    let libxc: [(type: LibxcRecordType, body: [UInt8])]
    /// libxl records in the order of their stream.
    let libxl: [(type: LibxlRecordType, body: [UInt8])]
    let pageTypes: PageTypeRuns

    /// - Parameter purpose: what cannot be done without it, for the message.
    init(_ state: GuestState, for purpose: String) throws(XenStreamError) {
        guard let header = state.bytes(ofKind: XenStateKind.domainHeader),
            header.count == LibxcLayout.domainHeaderByteCount,
            let kind = XenGuestKind(rawValue: header.little(0))
        else {
            throw XenStreamError(
                .noState,
                "the checkpoint has no state of a Xen guest, so it cannot be \(purpose); export it "
                    + "as raw, or take it from a stream of the guest")
        }
        self.kind = kind
        domainHeader = header
        var (libxc, libxl): ([(LibxcRecordType, [UInt8])], [(LibxlRecordType, [UInt8])]) = ([], [])
        var types = PageTypeRuns([:])
        for record in state.records {
            if record.kind == XenStateKind.pageTypes {
                guard let runs = PageTypeRuns(record.bytes) else {
                    throw XenStreamError(
                        .malformed, "the checkpoint's \(record.kind) record has a wrong layout")
                }
                types = runs
            } else if record.kind.hasPrefix(XenStateKind.libxcPrefix),
                let type = LibxcRecordType(
                    name: record.kind.dropFirst(XenStateKind.libxcPrefix.count))
            {
                libxc.append((type, record.bytes))
            } else if record.kind.hasPrefix(XenStateKind.libxlPrefix),
                let type = LibxlRecordType(
                    name: record.kind.dropFirst(XenStateKind.libxlPrefix.count))
            {
                libxl.append((type, record.bytes))
            }
        }
        self.libxc = libxc
        self.libxl = libxl
        pageTypes = types
    }

    /// The bodies of all records of a type.
    func bodies(_ type: LibxcRecordType) -> [[UInt8]] {
        libxc.filter { $0.type == type }.map(\.body)
    }
}

/// The guest of a checkpoint, as far as its state describes it.
public struct XenGuestDescription: Sendable {
    /// PV, or HVM and PVH.
    public let kind: XenGuestKind
    /// The Xen that wrote the stream; 0 if the stream was converted from a legacy one.
    public let xenMajor: UInt32
    /// The Xen that wrote the stream.
    public let xenMinor: UInt32
    /// Virtual processors that were online.
    public let vcpuCount: Int
    /// True if there is state of a device model: an HVM guest with QEMU.
    public let hasDeviceModel: Bool
    /// The configuration of xl as JSON, without its NUL; nil if there is none or it is an xl.cfg.
    public let configurationJSON: [UInt8]?

    /// Reads a checkpoint's state; nil if it is not a Xen guest's.
    public init?(_ state: GuestState) {
        guard let xen = try? XenState(state, for: "described") else { return nil }
        kind = xen.kind
        xenMajor = xen.domainHeader.little(8)
        xenMinor = xen.domainHeader.little(12)
        switch xen.kind {
        case .pv: vcpuCount = xen.bodies(.vcpuBasic).count
        case .hvm: vcpuCount = xen.bodies(.hvmContext).last.map { HVMContext.cpus($0).count } ?? 0
        }
        hasDeviceModel =
            xen.libxl.contains { $0.type == .emulatorContext }
            || state.records.contains { $0.kind.hasPrefix(XenStateKind.xenopsdPrefix + "Qemu") }
        configurationJSON = state.bytes(ofKind: XenStateKind.configuration).map { bytes in
            Array(bytes.prefix { $0 != 0 })
        }
    }
}
