public import GuestModel

/// The Xen guest that a state belongs to: its kind and its uuid.
public struct XenIdentity: Hashable, Sendable {
    /// PV, or HVM and PVH.
    public let kind: XenGuestKind
    /// The uuid in lower case, with its dashes; nil where the state does not have it, as after a
    /// bare libxc stream.
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
        // All zeros means none.
        uuid = found.flatMap { $0.contains { $0 != "0" && $0 != "-" } ? $0 : nil }
    }

    /// How the state of a history is known to belong to another guest; nil if it may be this
    /// guest's.
    ///
    /// An unknown uuid matches any.
    public func difference(from state: GuestState) -> String? {
        guard let other = XenIdentity(state) else {
            return "its newest checkpoint is not of a Xen guest"
        }
        guard other.kind == kind else {
            return "its newest checkpoint is of \(other.kind == .pv ? "a PV" : "an HVM or PVH") "
                + "guest, but this is \(kind == .pv ? "a PV" : "an HVM or PVH") one"
        }
        guard let uuid, let before = other.uuid, uuid != before else { return nil }
        return "its newest checkpoint is of the guest with the uuid "
            + "\(PrintableText.escape(before)), but this one has \(PrintableText.escape(uuid))"
    }
}
