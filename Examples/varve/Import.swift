import ArgumentParser
import Varve

/// The format of a guest's memory.
enum ImportFormat: String, CaseIterable, ExpressibleByArgument {
    case raw
    case xl
    case libxl
    case libxc
    case xenopsd

    /// The stream's format; nil for a raw image.
    var stream: XenStreamFormat? { XenStreamFormat(rawValue: rawValue) }

    /// Detects the format from the input's first bytes; refuses what is known to be neither memory
    /// nor a stream.
    static func detect(_ source: InputSource) throws -> ImportFormat {
        let start = try source.peek(XenStreamFormat.byteCount)
        if let stream = start.withUnsafeBytes({ XenStreamFormat(detecting: $0) }),
            let format = ImportFormat(rawValue: stream.rawValue)
        {
            return format
        }
        let head = try source.peek(ImageContainer.byteCount)
        if let container = head.withUnsafeBytes({ ImageContainer(detecting: $0) }) {
            throw ToolError(
                "\(source.name) is \(container.name), not raw memory: \(container.remedy); "
                    + "--format raw imports its bytes unchanged")
        }
        return .raw
    }
}

struct Import: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "import",
        abstract: "Imports a guest's memory and disks: raw images, or a stream of Xen.",
        discussion: """
            With --volume, the raw images of a guest's disks, of the same instant as the memory: \
            the checkpoint has exactly the volumes that are named. Each is a file or a block \
            device that no one writes to meanwhile.

            varve import STORE memory.img --lineage web --volume xvda=root.img

            A raw memory image, a file of 'xl save', a libxl or libxc stream, or a suspend image \
            of xenopsd; the format is detected from its first bytes. Cores, dumps, disk images, \
            archives and compressed files are refused by name; --format raw imports any bytes. \
            Every page is compared with the lineage's newest checkpoint, and only what differs \
            is stored. The state in a stream other than memory is kept with the checkpoint.

            Only one stream is read. If something follows its end, that is reported.

            Each epoch of a checkpointed stream (Remus) is a checkpoint, published as the epoch \
            ends; an incomplete epoch at the end is dropped. After any failure, published \
            checkpoints stay, and nothing else does. ^C and SIGTERM end it at any time.

            A label that a checkpoint of the same lineage has moves to the new one. A label of \
            another lineage's checkpoint, or one that is the name of a lineage, is refused; so is \
            a new lineage with the name of a label.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "The image or stream; '-' is standard input. Optional with --volume.")
    var image: PathArgument?

    @Option(
        name: .customLong("volume"),
        help: ArgumentHelp(
            "A raw image of one volume: 'memory', or a disk by the name that the guest knows.",
            valueName: "name=image"))
    var volumes: [VolumeArgument] = []

    @Flag(help: "Import only the memory of a lineage that has disks, and record that.")
    var noDisks = false

    @Option(help: "The lineage to add to; a new name begins one.")
    var lineage: String

    @Option(help: "A label for the checkpoint, or the first one of a checkpointed stream.")
    var label: String?

    @Option(help: "The input's format, instead of detecting it.")
    var format: ImportFormat?

    @Flag(help: "Continue even if the lineage's newest checkpoint is of another guest.")
    var acceptGuestChange = false

    @OptionGroup var lock: LockOptions

    @Flag(help: "Print each checkpoint as a JSON object.")
    var json = false

    func run() throws {
        try reporting {
            try Interruption.arm()
            let source = try image.map { try InputSource($0) }
            try source?.refuseCharacterDevice()
            do {
                let format = try format ?? source.map { try ImportFormat.detect($0) } ?? .raw
                if format != .raw, !volumes.isEmpty {
                    throw ToolError(
                        "\(source?.name ?? "the input") is a stream of Xen; --volume is for raw "
                            + "images of one instant")
                }
                let repository = try lock.open(store)
                let progress = ProgressLine("imported", isJSON: json)
                defer { progress.finish() }
                let taken = TakenCheckpoints(repository, isJSON: json) {
                    try show($0, progress)
                }
                do {
                    if let stream = format.stream, let source {
                        try importStream(stream, source, repository, taken, progress)
                    } else if let source, volumes.isEmpty {
                        taken.add(try importRaw(source, repository, progress))
                    } else {
                        taken.add(try importVolumes(source, repository, progress))
                    }
                } catch {
                    throw taken.error(for: error)
                }
                let work = "\(counted(taken.count, "checkpoint")) stored"
                do {
                    try LockOptions.close(repository, after: work)
                } catch {
                    throw taken.error(for: error)
                }
                try taken.printout.check(work)
            } catch  where Interruption.isRequested {
                // Whatever error the library made of it.
                throw ToolError(
                    "interrupted; checkpoints that were published stay", Interruption.ending)
            }
        }
    }

    func validate() throws {
        if image == nil && volumes.isEmpty {
            throw ValidationError("name an image, a stream or --volume")
        }
        if noDisks && !volumes.isEmpty {
            throw ValidationError("--no-disks and --volume exclude each other")
        }
        if let format, format != .raw, !volumes.isEmpty {
            throw ValidationError("--volume requires raw images")
        }
    }

    private var options: CaptureOptions {
        var options = CaptureOptions()
        options.omitsDisks = noDisks
        options.acceptsGuestChange = acceptGuestChange
        return options
    }

    private func importRaw(
        _ source: InputSource, _ repository: Repository, _ progress: ProgressLine
    ) throws -> Checkpoint {
        if let byteCount = source.byteCount, byteCount % Page.byteCount != 0 {
            throw ToolError(
                "\(source.name) has \(counted(byteCount, "byte")), not a multiple of 4096; "
                    + "it is truncated, or neither a raw memory image nor a stream of Xen")
        }
        if let file = source.file {
            // The source owns the descriptor: closed too soon, it could be another file's.
            defer { withExtendedLifetime(source) {} }
            return try repository.importImage(
                file, lineage: try LineageName(lineage), label: try label.map { try Label($0) },
                options: options,
                cancellation: Interruption.cancellation, progress: progress.handler())
        }
        return try repository.importImage(
            lineage: try LineageName(lineage), label: try label.map { try Label($0) },
            options: options,
            cancellation: Interruption.cancellation, progress: progress.handler(),
            read: source.read)
    }

    private func importVolumes(
        _ memory: InputSource?, _ repository: Repository, _ progress: ProgressLine
    ) throws -> Checkpoint {
        let sources = try VolumeSources(
            memory, volumes, detects: format == nil, isJSON: json)
        defer { withExtendedLifetime(sources) {} }
        return try repository.importVolumes(
            memory: sources.memory, disks: sources.disks, lineage: try LineageName(lineage),
            label: try label.map { try Label($0) }, options: options,
            cancellation: Interruption.cancellation, progress: progress.handler())
    }

    private func importStream(
        _ format: XenStreamFormat, _ source: InputSource, _ repository: Repository,
        _ taken: TakenCheckpoints, _ progress: ProgressLine
    ) throws {
        let result = try repository.importXenStream(
            format, lineage: try LineageName(lineage), label: try label.map { try Label($0) },
            options: options,
            cancellation: Interruption.cancellation,
            progress: progress.handler(of: source.byteCount), published: taken.add,
            trailing: source.readSoon, source: source.read)
        progress.finish()
        StreamEnd.report(result, isJSON: json)
        if source.isLeftOpen {
            Failure.notice(
                "the stream has ended, but its sender keeps \(source.name) open; whatever may "
                    + "follow is not read", code: "streamEnd", isJSON: json)
        }
        if json, let object = StreamEnd.object(result) {
            taken.printout.print { try Output.line(object.text) }
        }
    }

    private func show(_ checkpoint: Checkpoint, _ progress: ProgressLine) throws {
        progress.finish()
        try Output.line(
            json
                ? JSON.object(checkpoint.fields).text
                : checkpoint.summaryLine + ", \(Format.decimal(progress.seconds, 2)) s")
    }
}

extension Checkpoint {
    /// `1a2b3c4d web: 10 of 100 pages changed, 1.5 KiB added`.
    var summaryLine: String {
        // Pages that were removed have changed, too.
        let changed =
            changedPageCount <= pageCount
            ? "\(changedPageCount) of \(counted(pageCount, "page")) changed"
            : "\(changedPageCount) changed, \(counted(pageCount, "page")) left"
        return "\(id.short) \(lineage): \(changed), \(Format.bytes(addedByteCount)) added"
    }
}
