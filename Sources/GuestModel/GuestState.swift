/// The state of a guest other than its memory: typed records, opaque to the repository.
///
/// For a Xen domain these are the HVM context, parameters, TSC and policies; for the process's own
/// memory, what the embedder passes. Order is kept.
public struct GuestState: Hashable, Sendable {
    /// One piece of state.
    public struct Record: Hashable, Sendable {
        /// What the bytes are, chosen by the writer: `process.state`, `hvm.context`.
        public var kind: String
        /// The state itself.
        public var bytes: [UInt8]

        /// Makes a record.
        public init(kind: String, bytes: [UInt8]) {
            self.kind = kind
            self.bytes = bytes
        }
    }

    /// The records, in the order in which the guest gave them.
    public var records: [Record]

    /// Makes a state of records.
    public init(records: [Record] = []) {
        self.records = records
    }

    /// No state other than memory.
    public static let empty = GuestState()

    /// The bytes of the first record of a kind, or nil.
    public func bytes(ofKind kind: String) -> [UInt8]? {
        records.first { $0.kind == kind }?.bytes
    }
}
