import ArgumentParser
import Glibc
import Varve

struct Serve: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "serve",
        abstract: "Serves checkpoints as block devices (NBD).",
        discussion: """
            An export is named CHECKPOINT/VOLUME: 'web~10/xvda', 'web/memory'. It has only what \
            differs from another checkpoint if '@since=OTHER' follows. If CHECKPOINT is given, \
            only that one is served, and 'xvda' alone is a name, too.

            The command becomes nbdkit, which runs until a signal ends it. When it prints its URI, \
            clients can connect. What they read is verified first. An open export holds its \
            checkpoint, so that a prune keeps its pages.

            A signal ends it with exit code 0. A socket remains, and the next server replaces it.

            NBD has no encryption of its own, and a client reads all that is served: a socket \
            is for its owner alone, and --port without --tls is for networks that you trust.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "The checkpoint to serve; without it, all of them.")
    var checkpoint: String?

    @Option(
        help: ArgumentHelp(
            "The Unix socket to create; without it, varve.sock in $XDG_RUNTIME_DIR or /run.",
            valueName: "path"))
    var socket: String?

    @Option(help: "Listen on this TCP port instead, of the loopback address only.")
    var port: UInt16?

    @Option(help: "With --port: listen on this address instead; '::' is all of them.")
    var address: String?

    @Option(
        help: ArgumentHelp(
            """
            With --port: require TLS, with ca-cert.pem, server-cert.pem and server-key.pem in this \
            directory.
            """,
            valueName: "directory"))
    var tls: String?

    @Option(help: "Serve this volume of CHECKPOINT alone.")
    var volume: String?

    @Flag(
        help: """
            With --volume: clients may write. What they write is in a temporary file, and gone \
            when the server ends.
            """)
    var writable = false

    @OptionGroup var nbdkit: NbdkitOptions

    func validate() throws {
        if port == nil, address != nil || tls != nil {
            throw ValidationError("--address and --tls require --port")
        }
        if port != nil, socket != nil {
            throw ValidationError("--socket and --port exclude each other")
        }
        if let socket, !ListeningSockets.canBe(socket) {
            throw ValidationError("--socket is a path of 1 to 107 bytes")
        }
        if address == "" { throw ValidationError("--address is empty") }
        if port == 0 { throw ValidationError("--port 0 is no port") }
        if volume != nil, checkpoint == nil {
            throw ValidationError("--volume requires CHECKPOINT")
        }
        // nbdkit's filters keep one overlay for all exports.
        if writable, volume == nil { throw ValidationError("--writable requires --volume") }
    }

    func run() throws {
        try reporting {
            var parameters = try self.parameters()
            try nbdkit.check()
            var options = ["--foreground"]
            if volume != nil { options.append("--filter=exportname") }
            options.append(writable ? "--filter=cow" : "--readonly")
            if let tls {
                let words = ["--tls=require", "--tls-certificates=\(tls)"]
                try checkTLS(words)
                options += words
            }
            let sockets: ListeningSockets
            if let port {
                // nbdkit 1.32 ends by an assertion (raw_send_socket) if a client breaks a
                // connection of which several requests are under way.
                options.append("--filter=noparallel")
                parameters.append("serialize=requests")
                sockets = try ListeningSockets(address: address ?? "localhost", port: port)
                let host = address.map { $0.contains(":") ? "[\($0)]" : $0 } ?? "localhost"
                try Output.line("\(tls == nil ? "nbd" : "nbds")://\(host):\(port)/")
            } else {
                let path = socket ?? Serve.defaultSocket
                sockets = try ListeningSockets(path: path)
                try Output.line("nbd+unix:///?socket=\(Serve.encoded(absolutePath(path)))")
            }
            try sockets.passOn()
            try execute(nbdkit.command(options, parameters))
        }
    }

    /// The parameters of the plugin and of the filters, after a look whether there is such a thing.
    private func parameters() throws -> [String] {
        let repository = try Reading.open(store)
        var parameters = ["store=\(absolutePath(store.description))"]
        guard let checkpoint else { return parameters }
        let found = try repository.checkpoint(named: checkpoint)
        // The name keeps its meaning.
        parameters.append("checkpoint=\(found.id)")
        guard let volume else { return parameters }
        let name = try found.volume(named: volume).name
        return parameters + NbdkitOptions.only(name)
    }

    private static var defaultSocket: String {
        let directory = getenv("XDG_RUNTIME_DIR").map { String(cString: $0) } ?? ""
        return "\(directory.isEmpty ? "/run" : directory)/varve.sock"
    }

    /// Throws if nbdkit cannot use the certificates: before a URI is printed.
    private func checkTLS(_ options: [String]) throws {
        let command = ["nbdkit", "--unix", "-"] + options + ["null", "--run", "true"]
        let process = try ChildProcess(command, collectsOutput: true)
        guard process.wait() != 0 else { return }
        throw ToolError(
            "nbdkit cannot use the certificates of --tls: "
                + "\(process.collectedLines.first ?? "it ended"); the directory needs ca-cert.pem, "
                + "server-cert.pem and server-key.pem (nbdkit-tls(1))")
    }

    /// A path in a URI (RFC 3986).
    private static func encoded(_ path: String) -> String {
        let plain = Set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/".utf8)
        return path.utf8.map { byte in
            if plain.contains(byte) { return String(Character(Unicode.Scalar(byte))) }
            let digits = String(byte, radix: 16, uppercase: true)
            return "%" + (byte < 16 ? "0" : "") + digits
        }.joined()
    }

    /// Becomes the program; returns only by an error.
    private func execute(_ command: [String]) throws -> Never {
        signal(SIGPIPE, SIG_DFL)
        let words = command.map { strdup($0) } + [nil]
        execvp(command[0], words)
        throw ToolError("\(command[0]) cannot be started: \(Output.reason())")
    }
}
