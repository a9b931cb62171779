public import GuestModel

/// Which guest of Xen a state is of: its kind and its uuid.
public struct XenIdentity: Hashable, Sendable {
    /// PV, or HVM and PVH.
    public let kind: XenGuestKind
    /// The uuid in small letters, with its dashes; nil where the state does not say it, as a bare
    /// libxc stream does not.
    public let uuid: String?

    /// Makes an identity.
    public init(kind: XenGuestKind, uuid: String?) {
        self.kind = kind
        self.uuid = uuid
    }

    /// Reads it from a checkpoint's state; nil if that is not a Xen guest's.
    public init?(_ state: GuestState) {
        guard let header = state.bytes(ofKind: XenStateKind.domainHeader),
            header.count == LibxcLayout.domainHeaderByteCount,
            let kind = XenGuestKind(rawValue: header.little(0))
        else { return nil }
        self.kind = kind
        var found: String?
        if let domain = state.bytes(ofKind: XenStateKind.domain), domain.count == 20 {
            found = XenConfiguration.text(ofUUID: Array(domain[4...]))
        } else if let json = state.bytes(ofKind: XenStateKind.configuration) {
            found = XenConfiguration(json).uuid?.lowercased()
        }
        // What stands for none.
        uuid = found.flatMap { $0.contains { $0 != "0" && $0 != "-" } ? $0 : nil }
    }

    /// In which way the state of a history is not of this guest; nil if it may be.
    ///
    /// A uuid that is not known may be any.
    public func difference(from state: GuestState) -> String? {
        guard let other = XenIdentity(state) else {
            return "its newest checkpoint is of no guest of Xen"
        }
        guard other.kind == kind else {
            return "its newest checkpoint is of \(other.kind == .pv ? "a PV" : "an HVM or PVH") "
                + "guest, and this is \(kind == .pv ? "a PV" : "an HVM or PVH") one"
        }
        guard let uuid, let before = other.uuid, uuid != before else { return nil }
        return "its newest checkpoint is of the guest with the uuid "
            + "\(PrintableText.escape(before)), and this one has \(PrintableText.escape(uuid))"
    }
}
