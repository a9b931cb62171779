import Glibc
import Synchronization
import Varve

/// Standard output and standard error.
enum Output {
    /// Occupies standard descriptors that the caller closed, so that no file of a repository is
    /// opened there and printed into.
    ///
    /// Each is opened in the wrong direction, so that using it is an error.
    static func occupyStandardDescriptors() {
        for descriptor in STDIN_FILENO...STDERR_FILENO
        where fcntl(descriptor, F_GETFD) < 0 && errno == EBADF {
            closed.bitwiseOr(1 << descriptor, ordering: .relaxed)
            // The lowest free number is the missing one.
            _ = open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY)
        }
    }

    /// Standard descriptors that the caller closed, as bits.
    private static let closed = Atomic<Int32>(0)

    /// True if the caller had closed a standard descriptor.
    static func wasClosed(_ descriptor: Int32) -> Bool {
        closed.load(ordering: .relaxed) & 1 << descriptor != 0
    }

    /// Prints a line, with characters escaped that are not plainly visible; throws for a closed
    /// pipe or a full disk.
    static func line(_ text: String) throws {
        try write(PrintableText.escape(text) + "\n", to: STDOUT_FILENO)
    }

    /// Prints a line on standard error, escaped in the same way; failures are ignored.
    static func standardError(_ text: String) {
        try? write(PrintableText.escape(text) + "\n", to: STDERR_FILENO)
    }

    /// Prints what a command has done.
    ///
    /// If that cannot be printed, the work is still done, which the exit code indicates: 4, or 3
    /// where damage was found.
    ///
    /// - Parameter work: a clause about what was done, without a full stop.
    static func report(
        _ work: String, isDamaged: Bool = false, _ body: () throws -> Void
    ) throws {
        do {
            try body()
        } catch {
            throw ToolError(
                "\(work), but \(ToolError(error).message)", isDamaged ? .corrupted : .unreported)
        }
    }

    /// Writes text unchanged.
    static func write(_ text: String, to descriptor: Int32) throws {
        try Array(text.utf8).withUnsafeBytes { try write($0, to: descriptor) }
    }

    /// Writes all bytes.
    static func write(
        _ bytes: UnsafeRawBufferPointer, to descriptor: Int32,
        named name: String = "standard output"
    ) throws {
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let (count, code) = writeOnce(rest, to: descriptor)
            if count < 0 {
                if code == EINTR { continue }
                if code == EBADF, wasClosed(descriptor) {
                    throw ToolError(
                        "\(name) cannot be written, because it is closed; redirect it to a file or "
                            + "/dev/null")
                }
                throw ToolError(
                    "\(name) cannot be written: \(String(cString: strerror(code)))",
                    code == EPIPE && descriptor == STDOUT_FILENO ? .unread : .failed)
            }
            done += count
        }
    }

    /// `write(2)`; beyond the file size limit it fails instead of ending the process.
    private static func writeOnce(
        _ bytes: UnsafeRawBufferPointer, to descriptor: Int32
    ) -> (count: Int, errno: Int32) {
        var (signals, before) = (sigset_t(), sigset_t())
        sigemptyset(&signals)
        sigaddset(&signals, SIGXFSZ)
        pthread_sigmask(SIG_BLOCK, &signals, &before)
        let count = Glibc.write(descriptor, bytes.baseAddress, bytes.count)
        let code = errno
        if count < 0, code == EFBIG {
            var now = timespec()
            sigtimedwait(&signals, nil, &now)
        }
        pthread_sigmask(SIG_SETMASK, &before, nil)
        return (count, code)
    }

    /// The system's message for the last failure.
    static func reason() -> String { String(cString: strerror(errno)) }
}

/// Values as people read them.
enum Format {
    /// `1.5 MiB`.
    static func bytes(_ count: Int) -> String {
        let units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
        var value = Double(count)
        var unit = 0
        while value >= 1024, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        return unit == 0 ? counted(count, "byte") : "\(decimal(value, 1)) \(units[unit])"
    }

    /// A number with this many decimals.
    static func decimal(_ value: Double, _ places: Int) -> String {
        let scale = pow(10, Double(places))
        let rounded = (value * scale).rounded()
        let whole = Int(rounded / scale)
        if places == 0 { return "\(whole)" }
        let rest = String(Int(abs(rounded)) % Int(scale))
        return "\(whole)." + String(repeating: "0", count: places - rest.count) + rest
    }

    /// `2026-05-10T12:00:00.123456789Z`.
    static func time(_ nanoseconds: Int64) -> String {
        var seconds = time_t(nanoseconds / 1_000_000_000)
        var rest = nanoseconds % 1_000_000_000
        if rest < 0 {
            seconds -= 1
            rest += 1_000_000_000
        }
        var fields = tm()
        gmtime_r(&seconds, &fields)
        func pad(_ value: some BinaryInteger, _ width: Int) -> String {
            let digits = String(value)
            return String(repeating: "0", count: max(0, width - digits.count)) + digits
        }
        let date = "\(pad(fields.tm_year + 1900, 4))-\(pad(fields.tm_mon + 1, 2))-"
        let day = "\(pad(fields.tm_mday, 2))T\(pad(fields.tm_hour, 2)):\(pad(fields.tm_min, 2)):"
        return date + day + "\(pad(fields.tm_sec, 2)).\(pad(rest, 9))Z"
    }

    /// Columns, each as wide as its widest cell; numbers are right-aligned.
    static func table(_ header: [String], _ rows: [[String]], right: Set<Int>) -> [String] {
        // Counting characters takes much longer than comparing bytes, and most cells are ASCII.
        func width(_ cell: String) -> Int {
            let bytes = cell.utf8.count
            return cell.utf8.allSatisfy { $0 < 0x80 } ? bytes : cell.count
        }
        let all = [header] + rows.map { $0.map(PrintableText.escape) }
        let widths = header.indices.map { column in
            all.reduce(0) { max($0, width($1[column])) }
        }
        return all.map { row in
            var line = ""
            // Trailing spaces are left out.
            var waiting = 0
            for (column, cell) in row.enumerated() {
                let space = widths[column] - width(cell)
                if right.contains(column) { waiting += space }
                if !cell.isEmpty {
                    line += String(repeating: " ", count: waiting) + cell
                    waiting = 0
                }
                waiting += 2 + (right.contains(column) ? 0 : space)
            }
            return line
        }
    }
}
