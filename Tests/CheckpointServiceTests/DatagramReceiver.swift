import Glibc
import PackStore
import SystemPackage
import VarveTestSupport

/// A socket of a test's own that receives what a service sends.
final class DatagramReceiver: Sendable {
    /// Its address, as `NOTIFY_SOCKET` has it.
    let address: String
    private let descriptor: Int32
    private let directory = TemporaryDirectory()

    /// - Parameter isAbstract: it has a name instead of a file.
    init(isAbstract: Bool = false) {
        let path = directory.path.appending("socket").string
        address = isAbstract ? "@varve-test-\(getpid())-\(UInt64.random(in: 0 ... .max))" : path
        descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0)
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(address.utf8)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
        if isAbstract { name.sun_path.0 = 0 }
        let length = MemoryLayout<sa_family_t>.size + bytes.count + (isAbstract ? 0 : 1)
        let result = withUnsafePointer(to: &name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(length))
            }
        }
        precondition(descriptor >= 0 && result == 0, "no socket for the test")
        var time = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(
            descriptor, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    /// The next datagram; empty if none comes within 20 s.
    func next() -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 1 << 16)
        let count = recv(descriptor, &bytes, bytes.count, 0)
        return Array(bytes.prefix(max(0, count)))
    }

    /// Receives on a thread of its own until the service stops: a sender waits, for a second, while
    /// the queue is full, which has room for ten.
    func collect() throws -> Monitor<[String]> {
        let heard = Monitor<[String]>([])
        _ = try Threads.Thread { [self] in
            while true {
                let text = nextText()
                if text.isEmpty { return }
                heard.change { $0.append(text) }
                if text.hasPrefix("STOPPING=1") { return }
            }
        }
        return heard
    }

    /// The next datagram as text.
    func nextText() -> String { String(decoding: next(), as: UTF8.self) }
}
