import Glibc

// What a process holds in memory: `XenCases memory`.

extension XenCases {
    /// Runs a command, and prints how much memory its process held at its worst moment.
    ///
    /// `/proc/PID/smaps` tells it, mapping by mapping, every 50 ms. Pages of other domains that the
    /// process has mapped are no memory of its own, and Linux counts them in none of its figures
    /// (the mapping is VM_PFNMAP). `ru_maxrss` is beside it: the kernel's own high-water mark.
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

    /// Starts a program; what it says goes to standard error.
    static func spawn(_ command: [String]) throws -> pid_t {
        var words = command.map { strdup($0) } + [nil]
        defer { for word in words { free(word) } }
        // Its words are no figures of this program.
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

/// What a process holds, in KiB.
struct MemoryUse {
    /// In all.
    private(set) var total = 0
    /// The mapping of the staging pool: the only one of 256 MiB that is no file.
    private(set) var ring = 0
    /// Files that are mapped: the program itself, and the index.
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
        if !isFile, size >= 256 << 10 { ring += resident }
        if resident > 0 { mappings.append(("\(name) of \(size)", resident)) }
    }

    /// Total, ring, files, and the rest.
    var line: String { "\(total) \(ring) \(files) \(total - ring - files)" }

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
