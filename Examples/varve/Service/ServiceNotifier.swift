import Glibc
import Varve

/// Tells the service manager how the service is: the protocol of `sd_notify(3)`.
///
/// Without `NOTIFY_SOCKET` in the environment it tells no one.
final class ServiceNotifier: Sendable {
    private let socket: DatagramSocket?
    /// The time within which the manager wants to hear `WATCHDOG=1`; nil if it does not.
    let watchdog: Duration?

    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    ///
    /// - Parameter environment: the value of a variable.
    init(environment: (String) -> String? = ServiceNotifier.variable) {
        socket = environment("NOTIFY_SOCKET").flatMap { DatagramSocket(to: $0) }
        let isMeant = environment("WATCHDOG_PID").map { $0 == "\(getpid())" } ?? true
        let microseconds = environment("WATCHDOG_USEC").flatMap { Int64($0) } ?? 0
        watchdog =
            socket != nil && isMeant && microseconds > 0 ? .microseconds(microseconds) : nil
    }

    /// A variable of the environment.
    static func variable(_ name: String) -> String? {
        getenv(name).map { String(cString: $0) }
    }

    /// The service has begun; with a status.
    func ready(_ text: String) { send("READY=1\n" + status(text)) }

    /// One line about what the service is doing.
    func say(_ text: String) { send(status(text)) }

    /// The service is ending.
    func stopping() { send("STOPPING=1\n" + status("ends after the checkpoint in progress")) }

    /// The service works.
    func beat() { send("WATCHDOG=1") }

    private func status(_ text: String) -> String { "STATUS=" + PrintableText.escape(text) }

    private func send(_ text: String) { _ = socket?.send(Array(text.utf8)) }
}
