import Glibc
import Varve

/// A file that is written from front to back and gets its name when it is whole.
final class OutputFile {
    private let path: String
    private let temporary: String?
    private let isReplacing: Bool
    private let descriptor: Int32
    private var isFinished = false

    /// Opens the file.
    ///
    /// A pipe or device that has the name is written as it is; '-' is standard output.
    init(_ path: String, replacing: Bool) throws {
        self.path = path == "-" ? "standard output" : path
        isReplacing = replacing
        var status = stat()
        if path == "-" {
            temporary = nil
            descriptor = STDOUT_FILENO
        } else if stat(path, &status) == 0, status.st_mode & S_IFMT != S_IFREG {
            temporary = nil
            descriptor = open(path, O_WRONLY | O_CLOEXEC)
        } else {
            let name = "\(path).\(UInt32.random(in: .min ... .max)).part"
            temporary = name
            descriptor = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
        }
        guard descriptor >= 0 else {
            throw ToolError("\(path) cannot be written: \(Output.reason()); check the path")
        }
    }

    deinit {
        if !isFinished, let temporary { unlink(temporary) }
        if descriptor != STDOUT_FILENO { close(descriptor) }
    }

    /// Appends bytes.
    func write(_ bytes: UnsafeRawBufferPointer) throws {
        try Output.write(bytes, to: descriptor, named: path)
    }

    /// Makes the file durable and gives it its name.
    func finish() throws {
        if let temporary {
            guard fsync(descriptor) == 0 else {
                throw ToolError("\(path) cannot be synced: \(Output.reason())")
            }
            if isReplacing {
                guard rename(temporary, path) == 0 else {
                    throw ToolError("\(path) cannot be replaced: \(Output.reason())")
                }
            } else {
                // A name that somebody took meanwhile is not taken from them.
                guard link(temporary, path) == 0 else {
                    throw ToolError("\(path) cannot be made: \(Output.reason())")
                }
                unlink(temporary)
            }
        }
        isFinished = true
    }
}
