/// Why a guest could not do what was asked.
public struct GuestError: Error, Hashable, Sendable {
    /// The kinds of failure; more may be added.
    public struct Code: Hashable, Sendable {
        private enum Kind {
            case unsupported
            case unavailable
            case invalidRange
            case callFailed
            case sizeMismatch
            case pauseFailed
            case stateRejected
            case gone
            case crashed
            case shutDown
            case timedOut
            case busy
            case anotherGuest
            case invalidOption
        }

        private let kind: Kind

        /// The kernel or hypervisor lacks something that this guest needs.
        public static let unsupported = Code(kind: .unsupported)
        /// The guest is gone, or in a state in which the call is meaningless.
        public static let unavailable = Code(kind: .unavailable)
        /// The call named frames that the guest does not have.
        public static let invalidRange = Code(kind: .invalidRange)
        /// A system or hypervisor call failed; `errno` has the reason.
        public static let callFailed = Code(kind: .callFailed)
        /// A file or region does not have the required size.
        public static let sizeMismatch = Code(kind: .sizeMismatch)
        /// The embedder's closure could not pause its threads.
        public static let pauseFailed = Code(kind: .pauseFailed)
        /// The guest rejects the state of a checkpoint.
        public static let stateRejected = Code(kind: .stateRejected)
        /// The guest was destroyed.
        public static let gone = Code(kind: .gone)
        /// The guest crashed; what is left of it is paused.
        public static let crashed = Code(kind: .crashed)
        /// The guest shut itself down, or is rebooting.
        public static let shutDown = Code(kind: .shutDown)
        /// The guest did not respond in time.
        public static let timedOut = Code(kind: .timedOut)
        /// Another owner has what is needed; it may be free later.
        public static let busy = Code(kind: .busy)
        /// The history belongs to another guest.
        public static let anotherGuest = Code(kind: .anotherGuest)
        /// An option has an invalid value; the message names it and the valid values.
        public static let invalidOption = Code(kind: .invalidOption)
    }

    /// The kind of failure.
    public let code: Code
    /// One sentence: what failed, and the remedy.
    public let message: String
    /// The system's error number, if a call failed.
    public let errno: Int32?

    /// Makes an error.
    public init(code: Code, message: String, errno: Int32? = nil) {
        self.code = code
        self.message = message
        self.errno = errno
    }
}

extension GuestError: CustomStringConvertible {
    /// The message.
    public var description: String { message }
}

extension GuestError.Code: CustomStringConvertible {
    /// The code's name, for logs.
    public var description: String { "\(kind)" }
}
