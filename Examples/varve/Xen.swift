import ArgumentParser
import Glibc
import Varve

struct Xen: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "xen",
        abstract: "Checkpoints running domains of Xen, and restores them.",
        discussion: """
            Runs in dom0, as root. A domain is named by its ID or its name. It is \
            resumed in any case: a guard process does that if this one dies.
            """,
        subcommands: [
            XenList.self, XenCheckpoint.self, XenServe.self, XenRestoreCommand.self, XenRevert.self,
            XenDoctor.self, XenMonitorCommand.self, XenGuardCommand.self, XenDiskGuardCommand.self,
        ])

    mutating func run() throws {
        throw ValidationError("name a command; 'varve xen --help' lists them")
    }
}

struct XenList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "Shows the running domains.")

    @Flag(help: "Print each domain as a JSON object.")
    var json = false

    func run() throws {
        try reporting {
            let domains = try XenHost().domains()
            if json {
                for domain in domains { try Output.line(JSON.object(domain.fields).text) }
                return
            }
            let rows = domains.map { domain in
                [
                    "\(domain.domainID)", domain.name, domain.kind == .pv ? "PV" : "HVM/PVH",
                    Format.bytes(domain.pageCount * Page.byteCount), "\(domain.vcpuCount)",
                    domain.condition.rawValue,
                ]
            }
            let header = ["id", "name", "kind", "memory", "vcpus", "condition"]
            for line in Format.table(header, rows, right: [0, 3, 4]) { try Output.line(line) }
        }
    }
}

extension XenHost.Domain {
    /// The fields of its JSON object.
    var fields: [(String, JSON)] {
        [
            ("domain", .integer(Int(domainID))),
            ("name", .string(name)),
            ("uuid", .string(XenConfiguration.text(ofUUID: uuid))),
            ("kind", .string(kind == .pv ? "pv" : "hvm")),
            ("pages", .integer(pageCount)),
            ("vcpus", .integer(vcpuCount)),
            ("condition", .string(condition.rawValue)),
        ]
    }
}

struct XenRestoreCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "restore",
        abstract: "Starts a checkpoint as a new domain.",
        discussion: """
            Stock 'xl restore' builds the domain, fed by a pipe. While the original runs, the new \
            one needs another name; it gets a uuid of its own. The checkpoint must have been taken \
            by suspend.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "The checkpoint.")
    var checkpoint: String

    @Option(help: "A name for the new domain, instead of the original's.")
    var name: String?

    @Flag(help: "Leave it paused; 'xl unpause' starts it.")
    var paused = false

    @Option(help: "A configuration to replace the checkpoint's own, JSON or an xl.cfg.")
    var config: PathArgument?

    @Option(help: "Where to write the checkpoint's disks: a directory, or a thin pool.")
    var disks: PathArgument?

    @Flag(help: "In a thin pool: use snapshots of the cut, if it stands, instead of writing disks.")
    var snapshots = false

    @Option(help: "The directory that was given to 'checkpoint' as --disk-state.")
    var diskState: PathArgument?

    @Flag(help: "Use the configuration's disks as they are now; only if they hold the same.")
    var forceDisks = false

    @Flag(help: "Start a checkpoint that was taken without its guest's disks.")
    var withoutDisks = false

    @Flag(help: "Print the domain as a JSON object.")
    var json = false

    func run() throws {
        try reporting {
            let repository = try Reading.open(store, isJSON: json)
            var options = XenStartOptions()
            options.name = name
            options.isPaused = paused
            options.configuration = try config.map { try Export.read($0) }
            let found = try repository.checkpoint(named: checkpoint)
            options.disks = try target(try repository.state(of: found))
            options.acceptsOmittedDisks = withoutDisks
            let progress = ProgressLine("restored", unitByteCount: Page.byteCount, isJSON: json)
            defer { progress.finish() }
            let domain = try repository.startDomain(
                from: found, options: options, progress: progress.handler())
            progress.finish()
            let what = "domain \(domain.domainID) \(domain.name) is \(domain.condition.rawValue)"
            try Output.report(what) {
                try Output.line(
                    json
                        ? JSON.object(domain.fields).text
                        : what + ", \(Format.decimal(progress.seconds, 2)) s")
            }
        }
    }

    func validate() throws {
        if forceDisks && disks != nil {
            throw ValidationError("--disks and --force-disks exclude each other")
        }
        if snapshots && disks == nil { throw ValidationError("--snapshots requires --disks POOL") }
    }

    private func target(_ state: GuestState) throws -> XenRestoreDisks? {
        if forceDisks { return .unchecked }
        guard let disks else { return nil }
        var status = stat()
        guard stat(disks.path.string, &status) == 0 else {
            throw ToolError("\(disks) cannot be examined: \(Output.reason()); check the path")
        }
        switch status.st_mode & S_IFMT {
        case S_IFDIR:
            if snapshots { throw ToolError("\(disks) is a directory, which has no snapshots") }
            return .files(in: disks.path)
        case S_IFBLK:
            let pool = ThinVolumes(in: disks.path)
            guard snapshots else { return .thinVolumes(in: pool) }
            guard let origin = XenOrigin(state) else {
                throw ToolError("--snapshots requires a checkpoint of a running domain")
            }
            var options = XenDiskOptions.tool
            if let diskState { options.stateDirectory = diskState.path }
            return .snapshots(
                of: try ThinDisks(
                    volumes: [], stateDirectory: options.directory(ofDomain: origin.uuid),
                    guardCommand: []), in: pool)
        default:
            throw ToolError("\(disks) is neither a directory nor a thin pool")
        }
    }
}

struct XenRevert: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "revert",
        abstract: "Reverts a running domain to one of its checkpoints.",
        discussion: """
            In place: the domain keeps its ID, its devices and its console, and only pages that \
            differ are written. Its disks go back with it; it connects them and its network \
            interfaces again. What the domain did since is lost, unless it is in a checkpoint. A \
            domain that cannot be reverted in place, such as a PV domain, is replaced: destroyed, \
            and started from the checkpoint, with the same name and UUID.
            """)

    @Argument(help: "The domain's ID or name.")
    var domain: String

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "The checkpoint.")
    var checkpoint: String

    @Flag(help: "Destroy the domain, and start it from the checkpoint.")
    var replace = false

    @Flag(help: "Fail rather than replace the domain.")
    var inPlace = false

    @Option(help: "The directory that notes what reverts of disks leave behind after a crash.")
    var diskState: PathArgument?

    @Flag(help: "Complete a revert that has left the domain standing still.")
    var finish = false

    // The domain's guard has begun this, and repeats it: another guard would cost time in which the
    // domain stands still.
    @Flag(help: .hidden)
    var guarded = false

    @OptionGroup var lock: LockOptions

    @Flag(help: "Print the result as a JSON object.")
    var json = false

    func validate() throws {
        if replace && inPlace {
            throw ValidationError("--replace and --in-place exclude each other")
        }
    }

    func run() throws {
        try reporting {
            let repository = try lock.open(store)
            let found = try repository.checkpoint(named: checkpoint)
            var options = XenCheckpointer.Options()
            options.domain = .tool
            options.domain.pauseMode =
                XenOrigin(try repository.state(of: found))?.pauseMode ?? .suspend
            options.domain.finishesRevert = finish
            if guarded { options.domain.guardCommand = nil }
            // The revert checks whether the checkpoint belongs to this domain.
            options.capture.acceptsGuestChange = true
            options.disks = .tool
            options.disks.thin.notice = { [json] in
                Failure.notice($0, code: "disks", isJSON: json)
            }
            if let diskState { options.disks.stateDirectory = diskState.path }
            if guarded { options.disks.guardCommand = [] }
            let checkpointer = try XenCheckpointer(
                of: try XenHost().domain(named: domain), in: repository, lineage: found.lineage,
                options: options)
            if let note = checkpointer.guardNote { Output.standardError("varve: \(note)") }
            var method = XenRevertOptions()
            method.finishCommand = finishCommand(found)
            if replace { method.method = .replace }
            if inPlace { method.method = .inPlace }
            let result = try standing(checkpointer, found) {
                try checkpointer.revert(to: found, options: method)
            }
            checkpointer.close()
            try LockOptions.close(
                repository, after: "domain \(result.domainID) is back at \(found.id.short)")
            try show(result, found)
        }
    }

    /// Adds the command that completes it to a failure that leaves the domain standing still.
    private func standing<T>(
        _ checkpointer: XenCheckpointer, _ checkpoint: Checkpoint, _ body: () throws -> T
    ) throws -> T {
        do {
            return try body()
        } catch  where checkpointer.standsStill {
            let failure = ToolError(error)
            let words =
                ["varve"] + finishCommand(checkpoint).dropFirst().prefix { $0 != "--guarded" }
            throw ToolError(
                "\(failure.message); '\(words.joined(separator: " "))"
                    + (diskState.map { " --disk-state \($0)" } ?? "") + "' completes it",
                failure.kind)
        }
    }

    /// This command once more, for the guard.
    private func finishCommand(_ checkpoint: Checkpoint) -> [String] {
        [
            "/proc/self/exe", "xen", "revert", domain, store.path.string, "\(checkpoint.id)",
            "--finish", "--guarded", "--wait", "10",
        ] + (diskState.map { ["--disk-state", $0.path.string] } ?? [])
    }

    private func show(_ result: XenRevertResult, _ checkpoint: Checkpoint) throws {
        let what = "domain \(result.domainID) is back at \(checkpoint.id.short)"
        var fields: [(String, JSON)] = [
            ("domain", .integer(Int(result.domainID))),
            ("checkpoint", .string("\(checkpoint.id)")),
            ("replaced", .bool(result.inPlace == nil)),
        ]
        var text = what
        if let reason = result.replacedBecause {
            fields.append(("replacedBecause", .string(reason)))
            Output.standardError("varve: the domain was replaced: \(reason)")
        }
        if let done = result.inPlace {
            fields += [
                ("pagesWritten", .integer(done.writtenPageCount)),
                ("pagesCompared", .integer(done.comparedPageCount)),
                ("blocksWritten", .integer(done.writtenBlockCount)),
                ("pauseMicroseconds", .integer(done.pause.microseconds)),
                ("suspendMicroseconds", .integer(done.pauseTimes.request.microseconds)),
                (
                    "steps",
                    .object(done.steps.map { ($0.name, .integer($0.duration.microseconds)) })
                ),
            ]
            text +=
                ": \(counted(done.writtenPageCount, "page")) written, downtime "
                + Format.milliseconds(done.pause)
            if !done.unconnectedDevices.isEmpty {
                let names = done.unconnectedDevices
                fields.append(("unconnected", .array(names.map { .string($0) })))
                Output.standardError(
                    "varve: the guest has not connected \(names.joined(separator: ", ")) yet")
            }
        } else {
            text += ", as a new domain"
        }
        try Output.report(what) { try Output.line(json ? JSON.object(fields).text : text) }
    }
}

struct XenDoctor: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract: "Shows what this host and its domains support, and what is missing.")

    @Argument(help: "A domain's ID or name; by default all domains.")
    var domain: String?

    @OptionGroup var command: DiskCommandOption

    @Option(help: "The directory that was given to 'checkpoint' as --disk-state.")
    var diskState: PathArgument?

    @Flag(help: "Print each finding as a JSON object.")
    var json = false

    func run() throws {
        try reporting {
            let host = try XenHost()
            try show("host", try host.findings())
            let domains = try domain.map { [try host.domain(named: $0)] } ?? host.domains()
            var options = XenDiskOptions.tool
            options.command = command.words
            if let diskState { options.stateDirectory = diskState.path }
            for domain in domains {
                try show(
                    domain.name.isEmpty ? "\(domain.domainID)" : domain.name,
                    try host.findings(of: domain)
                        + host.diskFindings(of: domain, options: options))
            }
        }
    }

    private func show(_ place: String, _ findings: [XenHost.Finding]) throws {
        for finding in findings {
            if json {
                try Output.line(
                    JSON.object([
                        ("place", .string(place)), ("subject", .string(finding.subject)),
                        ("grade", .string(finding.grade.rawValue)), ("text", .string(finding.text)),
                    ]).text)
            } else {
                try Output.line(
                    "\(place): \(finding.subject): \(finding.grade.rawValue): \(finding.text)")
            }
        }
    }
}

/// For internal use: the process that outlives a checkpointer.
struct XenGuardCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guard", abstract: "Resumes a domain whose checkpointer dies.",
        shouldDisplay: false)

    @Argument(help: "The domain's ID.")
    var domain: UInt32

    func run() throws {
        try reporting {
            if let text = try XenGuard.run(domain: domain) {
                Output.standardError("varve: \(text)")
            }
        }
    }
}

struct XenDiskGuardCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "disk-guard",
        abstract: "Resumes disks whose checkpointer has died; started by 'checkpoint'.",
        shouldDisplay: false)

    func run() throws {
        try reporting {
            if let text = try DiskGuard.run() { Output.standardError("varve: \(text)") }
        }
    }
}

/// `--disk-command`.
struct DiskCommandOption: ParsableArguments {
    @Option(
        help: "A command that cuts disks, and its arguments, separated by spaces; see Disks.",
        transform: { text in
            let words = text.split(separator: " ").map(String.init)
            guard !words.isEmpty else { throw ValidationError("--disk-command names a program") }
            return words
        })
    var diskCommand: [String]?

    var words: [String] { diskCommand ?? [] }
}

extension XenDiskOptions {
    /// The options, with this program as the guard.
    static var tool: XenDiskOptions {
        var options = XenDiskOptions()
        options.guardCommand = ["/proc/self/exe", "xen", "disk-guard"]
        options.thin.notice = { Output.standardError("varve: \($0)") }
        return options
    }
}

extension XenDomain.Options {
    /// The options, with this program as the guard and the monitor.
    static var tool: XenDomain.Options {
        var options = XenDomain.Options()
        options.guardCommand = ["/proc/self/exe", "xen", "guard"]
        options.monitorCommand = ["/proc/self/exe", "xen", "monitor", "--background"]
        return options
    }
}

extension Duration {
    /// Whole microseconds.
    var microseconds: Int {
        Int(components.seconds) * 1_000_000 + Int(components.attoseconds / 1_000_000_000_000)
    }
}

extension Format {
    /// `1.25 ms`.
    static func milliseconds(_ duration: Duration) -> String {
        "\(decimal(Double(duration.microseconds) / 1000, 2)) ms"
    }
}
