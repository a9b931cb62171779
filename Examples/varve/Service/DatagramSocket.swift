import Glibc

/// A socket from which datagrams go to one address of the family UNIX.
///
/// systemd receives notifications by one, and its journal entries by another.
final class DatagramSocket: Sendable {
    private let descriptor: Int32
    /// `sockaddr_un`, as long as the kernel is told.
    private let address: [UInt8]

    /// The place of the name in `sockaddr_un`, and its size.
    private static let nameOffset = 2
    private static let nameByteCountMax = 108

    /// Creates a socket; nil if the address is none, or there are no descriptors.
    ///
    /// - Parameter path: an absolute path, or '@' and the name of an abstract socket.
    init?(to path: String) {
        guard path.utf8.count > 1, path.utf8.count < DatagramSocket.nameByteCountMax else {
            return nil
        }
        var name = Array(path.utf8)
        switch name[0] {
        case UInt8(ascii: "@"): name[0] = 0
        case UInt8(ascii: "/"): name.append(0)
        default: return nil
        }
        address = withUnsafeBytes(of: sa_family_t(AF_UNIX)) { Array($0) } + name
        let kind = Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        descriptor = socket(AF_UNIX, kind, 0)
        if descriptor < 0 { return nil }
        // A receiver that hangs does not hold checkpoints up.
        var time = timeval(tv_sec: 1, tv_usec: 0)
        setsockopt(
            descriptor, SOL_SOCKET, SO_SNDTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    /// Sends one datagram; false if it was not taken, within a second at most.
    func send(_ bytes: [UInt8]) -> Bool {
        bytes.withUnsafeBytes { content in
            address.withUnsafeBytes { address in
                while true {
                    let count = sendto(
                        descriptor, content.baseAddress, content.count, Int32(MSG_NOSIGNAL),
                        address.baseAddress?.assumingMemoryBound(to: sockaddr.self),
                        socklen_t(address.count))
                    if count < 0 && errno == EINTR { continue }
                    return count == content.count
                }
            }
        }
    }
}
