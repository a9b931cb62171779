import Glibc
import Varve

/// Sockets on which the program that this process becomes accepts connections.
///
/// They listen before that program runs, so a client never comes too early (systemd's protocol of
/// socket activation, sd_listen_fds(3), which nbdkit understands).
struct ListeningSockets {
    private let descriptors: [Int32]

    /// True if a path has a length that a socket's can have (unix(7)).
    static func canBe(_ path: String) -> Bool {
        (1..<MemoryLayout.size(ofValue: sockaddr_un().sun_path)).contains(path.utf8.count)
    }

    /// Creates a Unix socket, for its owner alone.
    ///
    /// A socket on which no process listens any more is replaced.
    init(path: String) throws {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard ListeningSockets.canBe(path) else {
            throw ToolError("a socket's path has 1 to 107 bytes, and '\(path)' has \(bytes.count)")
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        func with(_ call: (UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Bool {
            withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    call($0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
                }
            }
        }
        // A file of another kind refuses connections, too.
        var status = stat()
        if lstat(path, &status) == 0 {
            guard status.st_mode & S_IFMT == S_IFSOCK else {
                throw ToolError(
                    "\(path) exists, and is no socket; it was left as it is: name another with "
                        + "--socket")
            }
            let probe = try ListeningSockets.open(AF_UNIX)
            let isServed = with { connect(probe, $0, $1) }
            let isStale = !isServed && errno == ECONNREFUSED
            close(probe)
            guard !isServed else {
                throw ToolError("another process serves \(path); name another with --socket")
            }
            if isStale { unlink(path) }
        }
        let descriptor = try ListeningSockets.open(AF_UNIX)
        let mask = umask(0o177)
        let isBound = with { bind(descriptor, $0, $1) }
        let code = errno
        umask(mask)
        errno = code
        guard isBound, listen(descriptor, SOMAXCONN) == 0 else {
            let reason = Output.reason()
            close(descriptor)
            throw ToolError(
                "the socket \(path) cannot be created: \(reason); name another with --socket")
        }
        descriptors = [descriptor]
    }

    /// Creates a TCP socket for each address of a name.
    init(address: String, port: UInt16) throws {
        var wanted = addrinfo()
        wanted.ai_flags = AI_PASSIVE | AI_NUMERICSERV
        wanted.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        let code = getaddrinfo(address, "\(port)", &wanted, &list)
        guard code == 0 else {
            throw ToolError("'\(address)' is no address: \(String(cString: gai_strerror(code)))")
        }
        defer { freeaddrinfo(list) }
        var (found, reason): ([Int32], String) = ([], "it has no address")
        for entry in sequence(first: list, next: { $0?.pointee.ai_next }) {
            guard let entry = entry?.pointee else { break }
            let descriptor = socket(entry.ai_family, entry.ai_socktype, entry.ai_protocol)
            // A host without IPv6 has no such address.
            guard descriptor >= 0 else { continue }
            var yes: Int32 = 1
            let size = socklen_t(MemoryLayout<Int32>.size)
            setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, size)
            if entry.ai_family == AF_INET6 {
                setsockopt(descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &yes, size)
            }
            if bind(descriptor, entry.ai_addr, entry.ai_addrlen) == 0,
                listen(descriptor, SOMAXCONN) == 0
            {
                found.append(descriptor)
                continue
            }
            let code = errno
            reason = Output.reason()
            close(descriptor)
            guard code == EADDRNOTAVAIL else {
                found = []
                break
            }
        }
        guard !found.isEmpty else {
            throw ToolError("port \(port) of \(address) cannot be served: \(reason)")
        }
        descriptors = found
    }

    private static func open(_ family: Int32) throws -> Int32 {
        let descriptor = socket(family, Int32(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else {
            throw ToolError("a socket cannot be created: \(Output.reason())")
        }
        return descriptor
    }

    /// Leaves the sockets to the program that this process becomes next.
    ///
    /// They get the numbers from 3 up: what this process has open there must not be used any more.
    func passOn() throws {
        let first: Int32 = 3
        let end = first + Int32(descriptors.count)
        let copies = descriptors.map { fcntl($0, F_DUPFD_CLOEXEC, end) }
        for (number, copy) in zip(first..., copies) {
            guard copy >= 0, dup2(copy, number) == number else {
                throw ToolError("the sockets cannot be passed on: \(Output.reason())")
            }
        }
        // What is not one of those numbers would be open in the program, too.
        for descriptor in descriptors where descriptor >= end { close(descriptor) }
        setenv("LISTEN_FDS", "\(descriptors.count)", 1)
        setenv("LISTEN_PID", "\(getpid())", 1)
    }
}
