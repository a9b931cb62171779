import Glibc
import Varve

/// The service's messages: in systemd's journal with fields, or as lines on standard error.
///
/// If standard error is the journal's, as `JOURNAL_STREAM` says, a message goes to the journal by
/// its own protocol, with fields to search by. If it is not taken, it is a line on standard error,
/// with its priority as a prefix (`sd-daemon(3)`). Otherwise it is a plain line on standard error.
final class ServiceJournal: Sendable {
    /// The priorities of syslog.
    enum Priority: Int {
        case error = 3
        case warning = 4
        case notice = 5
        case info = 6
    }

    /// Where the journal receives entries.
    static let path = "/run/systemd/journal/socket"

    private let isJournal: Bool
    private let socket: DatagramSocket?
    private let print: @Sendable (String) -> Void

    /// Reads `JOURNAL_STREAM`.
    ///
    /// - Parameters:
    ///   - environment: the value of a variable.
    ///   - descriptor: where `print` prints.
    ///   - path: where the journal receives entries.
    ///   - print: prints a line.
    init(
        environment: (String) -> String? = ServiceNotifier.variable,
        descriptor: Int32 = STDERR_FILENO, path: String = ServiceJournal.path,
        print: @escaping @Sendable (String) -> Void = Output.standardError
    ) {
        isJournal =
            environment("JOURNAL_STREAM") == ServiceJournal.stream(of: descriptor)
        socket = isJournal ? DatagramSocket(to: path) : nil
        self.print = print
    }

    /// What `JOURNAL_STREAM` says of a descriptor; empty if it is none.
    static func stream(of descriptor: Int32) -> String {
        var status = stat()
        return fstat(descriptor, &status) == 0 ? "\(status.st_dev):\(status.st_ino)" : ""
    }

    /// Writes a message.
    ///
    /// - Parameters:
    ///   - priority: its priority.
    ///   - message: one sentence.
    ///   - fields: names of capital letters and '_', and values.
    func log(_ priority: Priority, _ message: String, _ fields: [(String, String)] = []) {
        let all =
            [
                ("MESSAGE", message), ("PRIORITY", "\(priority.rawValue)"),
                ("SYSLOG_IDENTIFIER", "varve"),
            ] + fields
        if let socket, socket.send(ServiceJournal.datagram(all)) { return }
        print(isJournal ? "<\(priority.rawValue)>\(message)" : "varve: \(message)")
    }

    /// An entry as the journal's protocol wants it.
    ///
    /// A field is `NAME=value` and a newline. A value that has a newline follows the name and a
    /// newline, with its length before it: 64 bits, the lowest byte first.
    static func datagram(_ fields: [(String, String)]) -> [UInt8] {
        var bytes: [UInt8] = []
        for (name, value) in fields {
            let content = Array(value.utf8)
            bytes += Array(name.utf8)
            if content.contains(UInt8(ascii: "\n")) {
                bytes.append(UInt8(ascii: "\n"))
                withUnsafeBytes(of: UInt64(content.count).littleEndian) { bytes += $0 }
            } else {
                bytes.append(UInt8(ascii: "="))
            }
            bytes += content + [UInt8(ascii: "\n")]
        }
        return bytes
    }
}
