public import GuestModel

// What a live domain's checkpoint has in addition to what a stream has:
//
//   xen.hold      "suspend" or "pause": how the domain was paused
//   xen.domain    u32 domid, then 16 bytes of uuid

/// How a domain was paused for its checkpoint.
public enum XenPauseMode: String, Hashable, Sendable {
    /// The guest suspended itself: canonical, so it can be started as a new domain.
    case suspend
    /// The hypervisor paused it, without its knowledge: for revert in place and for inspection.
    case pause
}

/// State of a live PVH or HVM domain, in the records that its stream would have.
package struct XenLiveState: Sendable {
    /// How the domain was paused.
    package var pauseMode: XenPauseMode
    /// The domain ID.
    package var domain: UInt32
    /// The domain's uuid, 16 bytes.
    package var uuid: [UInt8]
    /// The hypervisor's version.
    package var xenMajor: UInt32 = 0
    /// The hypervisor's version.
    package var xenMinor: UInt32 = 0
    /// `xen_cpuid_leaf_t`, one after another.
    package var cpuidPolicy: [UInt8] = []
    /// `xen_msr_entry_t`, one after another.
    package var msrPolicy: [UInt8] = []
    /// The configuration of xl as JSON, without a NUL; nil if there is none.
    package var configuration: [UInt8]?
    /// The body of X86_TSC_INFO: see `tscInfo`.
    package var tsc: [UInt8] = []
    /// `xc_domain_hvm_getcontext`.
    package var hvmContext: [UInt8] = []
    /// Parameters that are not zero.
    package var parameters: [(index: UInt64, value: UInt64)] = []

    /// Parameters that a stream carries: `write_hvm_params` of xg_sr_save_x86_hvm.c.
    package static let parameterIndexes: [UInt32] = [
        1, 5, 6, 9, 12, 17, 19, 27, 28, 29, 32, 33, 34, 36, 37, 38,
    ]

    /// Initializes it with what distinguishes domains.
    package init(pauseMode: XenPauseMode, domain: UInt32, uuid: [UInt8]) {
        self.pauseMode = pauseMode
        self.domain = domain
        self.uuid = uuid
    }

    /// The body of X86_TSC_INFO.
    package static func tscInfo(
        mode: UInt32, kilohertz: UInt32, nanoseconds: UInt64, incarnation: UInt32
    ) -> [UInt8] {
        mode.littleEndianBytes + kilohertz.littleEndianBytes + nanoseconds.littleEndianBytes
            + incarnation.littleEndianBytes + UInt32(0).littleEndianBytes
    }

    /// The records, in the order of a stream.
    package var guestState: GuestState {
        var records: [GuestState.Record] = []
        func add(_ kind: String, _ bytes: [UInt8]) {
            records.append(GuestState.Record(kind: kind, bytes: bytes))
        }
        add(XenStateKind.pauseMode, Array(pauseMode.rawValue.utf8))
        add(XenStateKind.domain, domain.littleEndianBytes + uuid)
        if let configuration { add(XenStateKind.configuration, configuration + [0]) }
        let header =
            XenGuestKind.hvm.rawValue.littleEndianBytes + LibxcLayout.pageShift.littleEndianBytes
            + UInt16(0).littleEndianBytes + xenMajor.littleEndianBytes
            + xenMinor.littleEndianBytes
        add(XenStateKind.domainHeader, header)
        add(XenStateKind.libxc(.cpuidPolicy), cpuidPolicy)
        add(XenStateKind.libxc(.msrPolicy), msrPolicy)
        add(XenStateKind.libxc(.tscInfo), tsc)
        add(XenStateKind.libxc(.hvmContext), hvmContext)
        let pairs = parameters.flatMap { $0.index.littleEndianBytes + $0.value.littleEndianBytes }
        add(
            XenStateKind.libxc(.hvmParams),
            UInt32(parameters.count).littleEndianBytes + UInt32(0).littleEndianBytes + pairs)
        return GuestState(records: records)
    }
}

/// What a checkpoint's state says about the domain that it was taken from.
public struct XenOrigin: Hashable, Sendable {
    /// How the domain was paused.
    public let pauseMode: XenPauseMode
    /// The domain ID at that time.
    public let domain: UInt32
    /// The domain's uuid.
    public let uuid: [UInt8]

    /// Reads a checkpoint's state; nil if it was not taken from a live domain.
    public init?(_ state: GuestState) {
        guard let hold = state.bytes(ofKind: XenStateKind.pauseMode),
            let known = XenPauseMode(rawValue: String(decoding: hold, as: UTF8.self)),
            let domain = state.bytes(ofKind: XenStateKind.domain), domain.count == 20
        else { return nil }
        pauseMode = known
        self.domain = domain.little(0)
        uuid = Array(domain[4...])
    }

    /// The HVM context in the state.
    public static func hvmContext(_ state: GuestState) -> [UInt8]? {
        state.bytes(ofKind: XenStateKind.libxc(.hvmContext))
    }
}

extension XenStateKind {
    /// How a live domain was paused.
    public static let pauseMode = "xen.hold"
    /// Which live domain it was.
    public static let domain = "xen.domain"
}
