/// Why a stream could not be read or written.
public struct XenStreamError: Error, Hashable, Sendable {
    /// The kinds of failure; more may be added.
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
        /// The stream violates its format.
        public static let malformed = Code(kind: .malformed)
        /// The stream is whole, but of a kind that is not supported.
        public static let unsupported = Code(kind: .unsupported)
        /// The stream is from before Xen 4.6 and must be converted.
        public static let legacy = Code(kind: .legacy)
        /// A checkpoint lacks state that the requested format needs.
        public static let noState = Code(kind: .noState)
    }

    /// The kind of failure.
    public let code: Code
    /// One sentence: where, what, and the remedy.
    public let message: String
    /// The byte offset of the wrong record in the stream; nil when writing.
    public let offset: UInt64?
    /// The record: `PAGE_DATA`.
    public let record: String?

    /// An error at an offset in a stream.
    init(_ code: Code, at offset: UInt64, in record: String, _ reason: String) {
        self.code = code
        self.offset = offset
        self.record = record
        let what = code == .malformed ? "the stream is malformed" : "the stream cannot be read"
        message = "\(what) at offset \(offset) (\(record)): \(reason)"
    }

    /// The premature end of a stream.
    init(endAt offset: UInt64, in record: String) {
        code = .truncated
        self.offset = offset
        self.record = record
        message = "the stream ends at offset \(offset), within \(record); it is truncated"
    }

    /// An error without a position.
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

extension XenStreamError.Code: CustomStringConvertible {
    /// The code's name, for logs.
    public var description: String { "\(kind)" }
}
