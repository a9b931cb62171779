/// Why a guest could not do what was asked of it.
public struct GuestError: Error, Hashable, Sendable {
    /// The kinds of failure, open for more.
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

        /// The kernel or hypervisor lacks something this guest needs.
        public static let unsupported = Code(kind: .unsupported)
        /// The guest is gone, or in a state in which the call has no meaning.
        public static let unavailable = Code(kind: .unavailable)
        /// Frames were named that the guest does not have.
        public static let invalidRange = Code(kind: .invalidRange)
        /// A system or hypervisor call failed; `errno` tells how.
        public static let callFailed = Code(kind: .callFailed)
        /// A file or region has another size than it must have.
        public static let sizeMismatch = Code(kind: .sizeMismatch)
        /// The embedder's closure could not hold its threads.
        public static let pauseFailed = Code(kind: .pauseFailed)
        /// The guest would not take the state that a checkpoint holds.
        public static let stateRejected = Code(kind: .stateRejected)
        /// The guest was destroyed.
        public static let gone = Code(kind: .gone)
        /// The guest crashed; what is left of it stands still.
        public static let crashed = Code(kind: .crashed)
        /// The guest shut itself down, or reboots.
        public static let shutDown = Code(kind: .shutDown)
        /// The guest did not do in time what it was asked.
        public static let timedOut = Code(kind: .timedOut)
        /// Somebody else holds what is needed; later it may be free.
        public static let busy = Code(kind: .busy)
        /// The history is of another guest.
        public static let anotherGuest = Code(kind: .anotherGuest)
        /// An option has a value that it cannot have; the message names it, and what it can have.
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
