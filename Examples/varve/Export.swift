import ArgumentParser
import Glibc
import SystemPackage
import Varve

/// The formats in which a checkpoint can be written.
enum FileFormat: String, CaseIterable, ExpressibleByArgument {
    case raw
    case xl
    case libxc
    case elf
}

struct Export: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "export",
        abstract: "Writes a checkpoint as a file: a volume, or a guest that Xen restores.",
        discussion: """
            raw    the memory from frame 0, or a disk: what is zero or does not exist is a hole
            xl     a file that 'xl restore' starts
            libxc  the bare libxc stream, version 3
            elf    the core format of 'xl dump-core'

            xl, libxc and elf need the state from a stream of Xen. Every page is checked against \
            its digest. The file gets its name when it is complete. Xen restores only what the \
            same or an earlier version saved: when writing to a pipe on a host whose Xen is too \
            old, a warning is printed.

            varve export STORE web - --format xl | xl restore /dev/stdin

            Only a regular file is ever replaced, and only with --force: where FILE is a symbolic \
            link, its target is replaced and the link stays. A pipe or device, or an open \
            descriptor such as /dev/stdout or /dev/fd/3, is written in place, with or without \
            --force.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "The checkpoint.")
    var checkpoint: String

    @Argument(
        help: ArgumentHelp(
            "The file, pipe or device to write; '-' is standard output.", valueName: "file"))
    var image: PathArgument

    @Option(help: "The volume to write: 'memory', or a disk's name.")
    var volume = "memory"

    @Option(help: "The format of the file.")
    var format = FileFormat.raw

    @Option(
        help: "For xl: a configuration to replace the guest's own, JSON or an xl.cfg.")
    var config: PathArgument?

    @Flag(help: "Replace an existing file, or the target of a symbolic link.")
    var force = false

    func validate() throws {
        if config != nil && format != .xl {
            throw ValidationError("--config requires --format xl")
        }
    }

    func run() throws {
        try reporting {
            let configuration = try config.map { try Export.read($0) }
            // Problems with the output are reported before anything is read.
            let place = try image.outputPlace()
            try check(place)
            let repository = try Reading.open(store)
            let found = try repository.checkpoint(named: checkpoint)
            let volume = try found.volume(named: volume)
            let progress = ProgressLine("written", unitByteCount: Page.byteCount)
            defer { progress.finish() }
            if format == .raw, place.takesAnyOrder {
                // Zero pages are holes.
                let pageCount = volume.pageCount - volume.zeroPageCount
                try restore(
                    found, volume, of: repository,
                    to: try ImageFile(
                        creating: place, replacing: force,
                        byteCount: pageCount * Page.byteCount, disk: volume.disk), progress)
                return
            }
            let formats: [FileFormat: ExportFormat] = [
                .raw: .raw, .xl: .xl(configuration: configuration), .libxc: .libxc, .elf: .elf,
            ]
            guard let form = formats[format] else { preconditionFailure("each has its form") }
            if place.isStream && (format == .xl || format == .libxc) {
                try noteNewerXen(than: repository.state(of: found))
            }
            let output = try OutputFile(
                place, replacing: force, byteCount: Int(volume.byteCount))
            try repository.export(
                found, volume: volume.name, as: form, progress: progress.handler()
            ) { bytes in
                try bytes.withUnsafeBytes { try output.write($0) }
            }
            try output.finish()
        }
    }

    /// Refuses an existing file unless `--force` is given, and any file of the repository, whatever
    /// its name.
    private func check(_ place: OutputPlace) throws {
        if case .file(let path, let exists) = place {
            if exists && !force {
                throw ToolError(
                    "\(image) exists and was left as it is; name another file, or use --force")
            }
            if StoreFiles.holds(folder: path.removingLastComponent(), store) {
                throw ToolError("\(image) is in the repository itself; name a file elsewhere")
            }
        }
        try StoreFiles.refuse(
            place, named: image.isStandard ? "standard output" : "\(image)", in: store)
    }

    /// Warns on standard error if the xl of this host would not restore the stream.
    ///
    /// The pipe may lead to a host that would, so this is not a failure. Without Xen there is no
    /// warning.
    private func noteNewerXen(than state: GuestState) throws {
        guard let host = try? XenHost() else { return }
        do throws(GuestError) {
            try host.checkVersion(of: state)
        } catch {
            Output.standardError("varve: \(error.message)")
        }
    }

    /// Writes a volume into an image with holes, in pack order.
    private func restore(
        _ found: Checkpoint, _ volume: Volume, of repository: Repository, to file: ImageFile,
        _ progress: ProgressLine
    ) throws {
        do {
            try repository.restore(
                found, volume: volume.name, into: file, progress: progress.handler())
            try file.finish()
        } catch {
            file.abandon()
            throw error
        }
    }

    /// Reads a guest's configuration from a file, and checks it.
    static func read(_ path: PathArgument) throws -> [UInt8] {
        let source = try InputSource(path)
        let bytes = try source.peek(XenConfigurationText.byteCountMax + 2)
        do {
            return try XenConfigurationText(bytes).bytes
        } catch {
            throw ToolError("\(source.name) cannot be used: \(error.message)")
        }
    }
}

extension OutputPlace {
    /// True if an image can be written there in the order of its packs, with holes.
    fileprivate var takesAnyOrder: Bool {
        switch self {
        case .file, .blockDevice: true
        case .pipe, .characterDevice, .descriptor: false
        }
    }

    /// True if it may be read while it is written.
    fileprivate var isStream: Bool {
        switch self {
        case .pipe, .descriptor: true
        case .file, .blockDevice, .characterDevice: false
        }
    }
}
