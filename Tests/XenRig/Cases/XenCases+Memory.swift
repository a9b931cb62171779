import Glibc

// The memory of a process: `XenCases memory`.

extension XenCases {
    /// Runs a command, and prints the peak memory of its process.
    ///
    /// It is read from `/proc/PID/smaps`, mapping by mapping, every 50 ms. Pages of other domains
    /// that the process has mapped are not its own memory, and Linux counts them in none of its
    /// figures (the mapping is VM_PFNMAP). `ru_maxrss` is printed too: the kernel's own high-water
    /// mark.
    static func memory(_ command: [String]) throws {
        let child = try spawn(command)
        var peak = MemoryUse()
        var status: Int32 = 0
        var usage = rusage()
        while true {
            let ended = wait4(child, &status, WNOHANG, &usage)
            guard ended >= 0 else { throw Failed("wait4 failed: \(errno)") }
            if ended == child { break }
            if let now = MemoryUse(of: child), now.total > peak.total { peak = now }
            usleep(50_000)
        }
        guard status == 0 else { throw Failed("\(command[0]) ended with \(status)") }
        guard peak.total > 0 else { throw Failed("the memory of \(command[0]) was never read") }
        print(peak.line)
        print("# ru_maxrss \(usage.ru_maxrss) KiB")
        for (name, size) in peak.mappings.prefix(12) { print("# \(size) KiB \(name)") }
    }

    /// Starts a program, with its output redirected to standard error.
    static func spawn(_ command: [String]) throws -> pid_t {
        var words = command.map { strdup($0) } + [nil]
        defer { for word in words { free(word) } }
        // Its output must not mix with this program's figures.
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO)
        var child: pid_t = 0
        let code = posix_spawnp(&child, command[0], &actions, nil, &words, environ)
        guard code == 0 else { throw Failed("\(command[0]) cannot be started: error \(code)") }
        return child
    }
}

/// The memory of a process, in KiB.
struct MemoryUse {
    /// The total.
    private(set) var total = 0
    /// The mapping of the staging pool: the only one of 256 MiB that is not a file.
    private(set) var pool = 0
    /// Mapped files: the program itself, and the index.
    private(set) var files = 0
    /// The largest ones.
    private(set) var mappings: [(name: String, size: Int)] = []

    init() {}

    /// nil if the process has ended.
    init?(of process: pid_t) {
        guard let lines = MemoryUse.lines(of: "/proc/\(process)/smaps") else { return nil }
        var name = ""
        var size = 0
        for line in lines {
            let words = line.split(separator: " ", omittingEmptySubsequences: true)
            guard let key = words.first else { continue }
            if !key.hasSuffix(":") {
                name = words.count > 5 ? String(words[5]) : "(no file) \(key)"
            } else if words.count > 1, let value = Int(words[1]) {
                if key == "Size:" { size = value }
                if key == "Rss:" { add(value, name, size) }
            }
        }
        mappings.sort { $0.size > $1.size }
    }

    private mutating func add(_ resident: Int, _ name: String, _ size: Int) {
        total += resident
        let isFile = name.hasPrefix("/")
        if isFile { files += resident }
        if !isFile, size >= 256 << 10 { pool += resident }
        if resident > 0 { mappings.append(("\(name) of \(size)", resident)) }
    }

    /// Total, staging pool, files, and the rest.
    var line: String { "\(total) \(pool) \(files) \(total - pool - files)" }

    private static func lines(of path: String) -> [Substring]? {
        guard let file = fopen(path, "r") else { return nil }
        defer { fclose(file) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = fread(&buffer, 1, buffer.count, file)
            if count == 0 { break }
            bytes.append(contentsOf: buffer[..<count])
        }
        guard !bytes.isEmpty else { return nil }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n")
    }
}
