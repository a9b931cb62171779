/// Why a stream could not be read or written.
public struct XenStreamError: Error, Hashable, Sendable {
    /// The kinds of failure, open for more.
    public struct Code: Hashable, Sendable {
        private enum Kind {
            case truncated
            case malformed
            case unsupported
            case legacy
            case noState
        }

        private let kind: Kind

        /// The stream ends before its end record.
        public static let truncated = Code(kind: .truncated)
        /// The stream breaks the layout.
        public static let malformed = Code(kind: .malformed)
        /// The stream is whole, and of a kind that this code does not take.
        public static let unsupported = Code(kind: .unsupported)
        /// The stream is of the time before Xen 4.6 and must be converted.
        public static let legacy = Code(kind: .legacy)
        /// A checkpoint lacks the state that the format asked for holds.
        public static let noState = Code(kind: .noState)
    }

    /// The kind of failure.
    public let code: Code
    /// One sentence: where, what, and the remedy.
    public let message: String
    /// Byte offset in the stream of the record that is wrong; nil when writing.
    public let offset: UInt64?
    /// The record: `PAGE_DATA`.
    public let record: String?

    /// An error at a place of a stream.
    init(_ code: Code, at offset: UInt64, in record: String, _ reason: String) {
        self.code = code
        self.offset = offset
        self.record = record
        let what = code == .malformed ? "the stream is malformed" : "the stream cannot be taken"
        message = "\(what) at offset \(offset) (\(record)): \(reason)"
    }

    /// The end of a stream that should go on.
    init(endAt offset: UInt64, in record: String) {
        code = .truncated
        self.offset = offset
        self.record = record
        message = "the stream ends at offset \(offset), within \(record); it was cut short"
    }

    /// An error that has no place.
    init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
        offset = nil
        record = nil
    }
}

extension XenStreamError: CustomStringConvertible {
    /// The message.
    public var description: String { message }
}
