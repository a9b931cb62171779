import ArgumentParser
import Glibc
import SystemPackage
import Varve

/// What a checkpoint is written as.
enum ExportFormat: String, CaseIterable, ExpressibleByArgument {
    case raw
    case xl
    case libxc
    case elf
}

struct Export: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Writes a checkpoint as a file: its memory, or a guest that Xen restores.",
        discussion: """
            raw    the memory from frame 0; zero pages and frames that do not exist are holes
            xl     a file that 'xl restore' starts
            libxc  the bare libxc stream, version 3
            elf    the core format of 'xl dump-core'

            xl, libxc and elf need the state that a stream of Xen brought along. Every page is \
            checked against its digest. The file gets its name when it is whole. Xen restores \
            what the same or an earlier version saved: to a pipe on a host whose Xen is too old, \
            that is said.

            varve export STORE web - --format xl | xl restore /dev/stdin
            """)

    @Argument(help: "The repository.")
    var store: String

    @Argument(help: "The checkpoint.")
    var checkpoint: String

    @Argument(help: "The file to write; '-' is standard output.")
    var image: String

    @Option(help: "The form of the file.")
    var format = ExportFormat.raw

    @Option(
        help: "For xl: the guest's configuration instead of its own, JSON or an xl.cfg.")
    var config: String?

    @Flag(help: "Replace a file that has the name.")
    var force = false

    func validate() throws {
        if config != nil && format != .xl {
            throw ValidationError("--config goes with --format xl alone")
        }
    }

    func run() throws {
        try reporting {
            let configuration = try config.map { try Export.read($0) }
            let repository = try Reading.open(store)
            let found = try repository.checkpoint(named: checkpoint)
            var status = stat()
            let exists = image != "-" && stat(image, &status) == 0
            let kind = status.st_mode & S_IFMT
            if exists && kind == S_IFREG && !force {
                throw ToolError(
                    "\(image) exists and was left as it is; name another file, or use --force")
            }
            let progress = Progress("written", unitByteCount: Page.byteCount)
            defer { progress.finish() }
            // A pipe takes no holes, and only one byte after the other.
            let isPipe = image == "-" || exists && kind == S_IFIFO
            if format == .raw && !isPipe {
                try restore(
                    found, of: repository,
                    to: try ImageFile(creating: FilePath(image), replacing: force), progress)
                return
            }
            let formats: [ExportFormat: XenExport.Format] = [
                .raw: .raw, .xl: .xl(configuration: configuration), .libxc: .libxc, .elf: .elf,
            ]
            guard let form = formats[format] else { preconditionFailure("each has its form") }
            if isPipe && (format == .xl || format == .libxc) {
                try noteNewerXen(than: repository.state(of: found))
            }
            let output = try OutputFile(image, replacing: force)
            try XenExport.run(
                found, from: repository, as: form, progress: { progress.update($0, of: $1) },
                sink: output.write)
            try output.finish()
        }
    }

    /// Says on standard error that the xl of this host would not restore the stream.
    ///
    /// The pipe may lead to a host that does, so this is no failure. Where no Xen runs, nothing is
    /// said.
    private func noteNewerXen(than state: GuestState) throws {
        guard let host = try? XenHost() else { return }
        do throws(GuestError) {
            try host.checkVersion(of: state)
        } catch {
            Output.standardError("varve: \(error.message)")
        }
    }

    /// Memory into an image with holes, in pack order.
    private func restore(
        _ found: Checkpoint, of repository: Repository, to file: ImageFile, _ progress: Progress
    ) throws {
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

    /// A guest's configuration from a file, checked.
    static func read(_ path: String) throws -> [UInt8] {
        let source = try InputSource(path)
        let bytes = try source.peek(XenConfigurationText.byteCountMax + 2)
        do {
            return try XenConfigurationText(bytes).bytes
        } catch {
            throw ToolError("\(source.name) cannot be used: \(error.message)")
        }
    }
}
