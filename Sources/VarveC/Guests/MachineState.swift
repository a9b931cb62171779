import GuestModel

/// The state of a guest of this interface: bytes that only its program knows, in one record.
enum MachineState {
    private static let kind = "machine.state"

    /// A state with these bytes; none are no state.
    static func make(_ bytes: [UInt8]) -> GuestState {
        bytes.isEmpty ? .empty : GuestState(records: [.init(kind: kind, bytes: bytes)])
    }

    /// The bytes of a state; throws for the state of another kind of guest.
    static func bytes(of state: GuestState) throws(GuestError) -> [UInt8] {
        if state.records.isEmpty { return [] }
        guard state.records.count == 1, let bytes = state.bytes(ofKind: kind) else {
            let kinds = state.records.prefix(3).map(\.kind).joined(separator: ", ")
            throw GuestError(
                code: .stateRejected,
                message: "the checkpoint has the state of another kind of guest (\(kinds)); read "
                    + "its pages, or restore it as such a guest")
        }
        return bytes
    }
}
