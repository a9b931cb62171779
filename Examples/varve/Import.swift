import ArgumentParser
import Glibc
import SystemPackage
import Varve

struct Import: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Takes a raw memory image in as a checkpoint.",
        discussion: """
            Every page is compared with the lineage's newest checkpoint, and only what differs is \
            stored. Whatever goes wrong, the repository stays as it was.
            """)

    @Argument(help: "The repository.")
    var store: String

    @Argument(help: "The image, a multiple of 4096 bytes; '-' is standard input.")
    var image: String

    @Option(help: "The guest's history that it goes to; a new name begins one.")
    var lineage: String

    @Option(help: "A name for this checkpoint.")
    var label: String?

    @Flag(help: "Print the checkpoint as a JSON object.")
    var json = false

    func run() throws {
        try reporting {
            let source = try ImageSource(image)
            let repository = try Repository.open(at: FilePath(store), .writing)
            let progress = Progress("taken in", isJSON: json)
            defer { progress.finish() }
            let checkpoint = try ImageImport.run(
                into: repository, lineage: lineage, label: label,
                progress: { progress.update($0, of: source.byteCount) }, read: source.read)
            try repository.close()
            progress.finish()
            if json {
                try Output.line(JSON.object(checkpoint.fields).text)
            } else {
                try Output.line(
                    "\(checkpoint.id.short) \(lineage): \(checkpoint.changedPageCount) of "
                        + "\(checkpoint.pageCount) pages changed, "
                        + "\(Format.bytes(checkpoint.addedByteCount)) added, "
                        + "\(Format.decimal(progress.seconds, 2)) s")
            }
        }
    }
}

/// An image that is read from its beginning to its end.
private final class ImageSource {
    /// Its size, if it is known before it is read.
    let byteCount: Int?
    private let name: String
    private let descriptor: Int32
    private var position = 0

    init(_ path: String) throws {
        if path == "-" {
            name = "standard input"
            descriptor = STDIN_FILENO
            byteCount = nil
            return
        }
        name = path
        descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw ToolError("\(path) cannot be opened: \(Output.reason()); check the path")
        }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            throw ToolError("\(path) cannot be looked at: \(Output.reason())")
        }
        switch status.st_mode & S_IFMT {
        case S_IFREG:
            byteCount = Int(status.st_size)
            guard status.st_size % off_t(Page.byteCount) == 0 else {
                throw ToolError(
                    "\(path) has \(status.st_size) bytes, which is no multiple of 4096; it is cut "
                        + "short or no raw memory image")
            }
        case S_IFDIR: throw ToolError("\(path) is a directory; name a raw memory image")
        default: byteCount = nil
        }
    }

    deinit {
        if descriptor != STDIN_FILENO { close(descriptor) }
    }

    /// Fills a buffer; 0 at the end.
    ///
    /// An image that ends sooner than it should is an error.
    func read(_ buffer: UnsafeMutableRawBufferPointer) throws -> Int {
        while true {
            let count = Glibc.read(descriptor, buffer.baseAddress, buffer.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw ToolError("\(name) cannot be read: \(Output.reason())") }
            position += count
            if let byteCount, count == 0, position != byteCount {
                throw ToolError(
                    "\(name) changed from \(byteCount) to \(position) bytes while it was read; "
                        + "take it in again when nobody writes to it")
            }
            return count
        }
    }
}
