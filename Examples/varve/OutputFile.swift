import Glibc
import Varve

/// A file that is written from front to back and gets its name when it is whole.
final class OutputFile {
    private let path: String
    private let descriptor: Int32
    /// nil for standard output, a pipe or a device.
    private let file: NewFile?

    /// Opens the file.
    ///
    /// A pipe or device that has the name is written as it is; '-' is standard output.
    init(_ path: String, replacing: Bool) throws {
        self.path = path == "-" ? "standard output" : path
        var status = stat()
        if path == "-" {
            file = nil
            descriptor = STDOUT_FILENO
        } else if stat(path, &status) == 0, status.st_mode & S_IFMT != S_IFREG {
            file = nil
            descriptor = open(path, O_WRONLY | O_CLOEXEC)
        } else {
            let file = try NewFile(path, replacing: replacing)
            self.file = file
            descriptor = file.descriptor
        }
        guard descriptor >= 0 else {
            throw ToolError("\(path) cannot be written: \(Output.reason()); check the path")
        }
    }

    deinit {
        if file == nil, descriptor != STDOUT_FILENO { close(descriptor) }
    }

    /// Appends bytes.
    func write(_ bytes: UnsafeRawBufferPointer) throws {
        try Output.write(bytes, to: descriptor, named: path)
    }

    /// Makes the file durable and gives it its name.
    func finish() throws { try file?.finish() }
}
