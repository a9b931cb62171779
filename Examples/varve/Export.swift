import ArgumentParser
import Glibc
import SystemPackage
import Varve

struct Export: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Writes a checkpoint's memory as a raw image.",
        discussion: """
            Every page is checked against its digest. Zero pages become holes. The image gets its \
            name when it is whole. '-' writes to standard output, by way of a temporary file in \
            TMPDIR (or /tmp) that takes as much room as the image's pages that are not zero.
            """)

    @Argument(help: "The repository.")
    var store: String

    @Argument(help: "The checkpoint.")
    var checkpoint: String

    @Argument(help: "The image to write; '-' is standard output.")
    var image: String

    @Flag(help: "Replace a file that has the name.")
    var force = false

    func run() throws {
        try reporting {
            let repository = try Repository.open(at: FilePath(store), .reading)
            let found = try repository.checkpoint(named: checkpoint)
            if image == "-" {
                try exportToStandardOutput(found, of: repository)
            } else {
                var status = stat()
                let isTaken = stat(image, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
                if isTaken && !force {
                    throw ToolError(
                        "\(image) exists and was left as it is; name another file, or use --force")
                }
                try restore(
                    found, of: repository,
                    to: try ImageFile(creating: FilePath(image), replacing: force))
            }
        }
    }

    private func restore(
        _ found: Checkpoint, of repository: Repository, to file: ImageFile
    ) throws {
        let progress = Progress("written", unitByteCount: Page.byteCount)
        defer { progress.finish() }
        do {
            _ = try Restore.run(found, from: repository, into: file) {
                progress.update($0, of: $1)
            }
            try file.finish()
        } catch {
            file.abandon()
            throw error
        }
    }

    private func exportToStandardOutput(
        _ found: Checkpoint, of repository: Repository
    ) throws {
        let directory = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
        let path = "\(directory)/varve-export-\(getpid()).raw"
        try restore(found, of: repository, to: try ImageFile(creating: FilePath(path)))
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        unlink(path)
        guard descriptor >= 0 else {
            throw ToolError("the temporary file \(path) cannot be read: \(Output.reason())")
        }
        defer { close(descriptor) }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        defer { buffer.deallocate() }
        while true {
            let count = read(descriptor, buffer.baseAddress, buffer.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw ToolError("\(path) cannot be read: \(Output.reason())") }
            if count == 0 { return }
            try Output.write(
                UnsafeRawBufferPointer(rebasing: buffer[..<count]), to: STDOUT_FILENO)
        }
    }
}
