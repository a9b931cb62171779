import Glibc
import Varve

/// A file or pipe that is read from beginning to end, or a file in any order.
final class InputSource {
    /// The regular file, to be read in any order; nil if it is not one.
    let file: InputFile?
    let name: String
    /// The size, if it is known before reading.
    var byteCount: Int? { file?.byteCount }
    /// Bytes read so far.
    private(set) var position = 0
    /// True if `readSoon` gave up: nothing arrived, and the other end stayed open.
    private(set) var isLeftOpen = false
    /// True for a block device that is mounted, or part of another device.
    let isDeviceInUse: Bool
    private let descriptor: Int32
    /// Bytes that were peeked at and not read yet.
    private var head: [UInt8] = []

    /// Standard input; throws if the caller closed it.
    init() throws {
        name = "standard input"
        descriptor = STDIN_FILENO
        file = nil
        isDeviceInUse = false
        guard !Output.wasClosed(STDIN_FILENO) else {
            throw ToolError("standard input is closed; redirect a file or pipe to it, or name one")
        }
    }

    /// Opens a file or a pipe; '-' is standard input.
    convenience init(_ path: PathArgument) throws {
        if path.isStandard { try self.init() } else { try self.init(opening: path) }
    }

    private init(opening path: PathArgument) throws {
        name = path.description
        descriptor = path.open(O_RDONLY)
        guard descriptor >= 0 else {
            throw ToolError("\(path) cannot be opened: \(Output.reason()); check the path")
        }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            throw ToolError("\(path) cannot be examined: \(Output.reason())")
        }
        isDeviceInUse =
            status.st_mode & S_IFMT == S_IFBLK && InputSource.hasOwner(deviceAt: path)
        switch status.st_mode & S_IFMT {
        case S_IFREG: file = InputFile(descriptor, status, name: name)
        case S_IFDIR: throw ToolError("\(path) is a directory; name a file or '-'")
        default: file = nil
        }
    }

    deinit {
        if descriptor != STDIN_FILENO { close(descriptor) }
    }

    /// The input as a file that is read in any order: a regular file or a block device; nil if it
    /// is neither.
    func anyOrderFile() throws -> InputFile? {
        if let file { return file }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFBLK else {
            return nil
        }
        let end = lseek(descriptor, 0, SEEK_END)
        guard end >= 0, lseek(descriptor, 0, SEEK_SET) == 0 else {
            throw ToolError("\(name) cannot be examined: \(Output.reason())")
        }
        return InputFile(descriptor, device: end, name: name)
    }

    /// Whether the kernel refuses another owner of a block device: open(2), O_EXCL.
    private static func hasOwner(deviceAt path: PathArgument) -> Bool {
        let descriptor = path.open(O_RDONLY | O_EXCL)
        guard descriptor >= 0 else { return errno == EBUSY }
        close(descriptor)
        return false
    }

    /// Throws for a terminal, /dev/zero and the like: they contain no memory, and never end.
    func refuseCharacterDevice() throws {
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFCHR else { return }
        throw ToolError(
            "\(name) is a character device, which never ends; name a file, or use a pipe")
    }

    /// Returns the first bytes, as many as there are, without consuming them.
    func peek(_ count: Int) throws -> [UInt8] {
        while head.count < count {
            var piece = [UInt8](repeating: 0, count: count - head.count)
            let read = try piece.withUnsafeMutableBytes { try readDescriptor($0) }
            if read == 0 { break }
            head += piece[..<read]
        }
        return head
    }

    /// Fills a buffer, perhaps only partly; returns 0 at the end of the input.
    ///
    /// Throws if a file ends before its size.
    func read(_ buffer: UnsafeMutableRawBufferPointer) throws -> Int {
        let count: Int
        if head.isEmpty {
            count = try readDescriptor(buffer)
        } else {
            count = min(head.count, buffer.count)
            buffer.copyBytes(from: head[..<count])
            head.removeFirst(count)
        }
        position += count
        if let file, count == 0 { try file.checkUnchanged(byteCount: position) }
        return count
    }

    /// Like `read`, for what may follow the end of a stream: returns 0 also if nothing arrives for
    /// a second while the other end of a pipe stays open.
    func readSoon(_ buffer: UnsafeMutableRawBufferPointer) throws -> Int {
        var request = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        if file == nil, head.isEmpty, poll(&request, 1, 1000) == 0 {
            isLeftOpen = true
            return 0
        }
        return try read(buffer)
    }

    private func readDescriptor(_ buffer: UnsafeMutableRawBufferPointer) throws -> Int {
        while true {
            try Interruption.wait(for: descriptor)
            let count = Glibc.read(descriptor, buffer.baseAddress, buffer.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw ToolError("\(name) cannot be read: \(Output.reason())") }
            return count
        }
    }
}

/// A regular file or block device that is read in any order, by several threads; it stays open as
/// long as its `InputSource`.
struct InputFile: ImageSource {
    let byteCount: Int
    private let descriptor: Int32
    private let name: String
    /// The time of its last change, in seconds and nanoseconds.
    private let changeTime: [Int]
    /// True if it occupies less disk space than its size.
    private let mayHaveHoles: Bool

    init(_ descriptor: Int32, _ status: stat, name: String) {
        self.descriptor = descriptor
        self.name = name
        byteCount = Int(status.st_size)
        mayHaveHoles = Int(status.st_blocks) * 512 < Int(status.st_size)
        changeTime = InputFile.changeTime(status)
    }

    /// A block device of which the size was found.
    init(_ descriptor: Int32, device byteCount: Int, name: String) {
        self.descriptor = descriptor
        self.name = name
        self.byteCount = byteCount
        mayHaveHoles = false
        // Writes to a device do not change its file.
        changeTime = []
    }

    private static func changeTime(_ status: stat) -> [Int] {
        [status.st_mtim.tv_sec, status.st_mtim.tv_nsec]
    }

    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws {
        var done = 0
        while done < buffer.count {
            let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
            let count = pread(descriptor, rest.baseAddress, rest.count, offset + done)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw ToolError("\(name) cannot be read: \(Output.reason())") }
            guard count > 0 else { return try checkUnchanged(byteCount: offset + done) }
            done += count
        }
    }

    /// `lseek(2)`, SEEK_DATA and SEEK_HOLE; a file system without them reports everything as data.
    func nextData(from offset: Int) throws -> Range<Int>? {
        guard mayHaveHoles else { return offset..<byteCount }
        let start = lseek(descriptor, offset, InputFile.seekData)
        // No data up to its end, or it was truncated meanwhile.
        if start < 0 && errno == ENXIO { return nil }
        guard start >= offset else { return offset..<byteCount }
        let end = lseek(descriptor, start, InputFile.seekHole)
        return start..<(end > start ? end : max(byteCount, start + 1))
    }

    // Linux's numbers; the headers hide them under _GNU_SOURCE.
    private static let seekData: Int32 = 3
    private static let seekHole: Int32 = 4

    func checkUnchanged() throws { try checkUnchanged(byteCount: nil) }

    /// Throws if it has changed since it was opened.
    ///
    /// - Parameter end: the offset where reading ended; nil: unknown.
    func checkUnchanged(byteCount end: Int?) throws {
        // A device has no time of its last change.
        if changeTime.isEmpty, end == nil { return }
        let again = "while it was read; import it again when nothing writes to it"
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            throw ToolError("\(name) cannot be examined: \(Output.reason())")
        }
        let now = end ?? Int(status.st_size)
        guard now == byteCount else {
            throw ToolError(
                "\(name) changed from \(byteCount) to \(counted(now, "byte")) \(again)")
        }
        guard changeTime.isEmpty || changeTime == InputFile.changeTime(status) else {
            throw ToolError("\(name) was written to \(again)")
        }
    }
}
