import ArgumentParser
import Glibc
import Varve

struct XenServe: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "serve",
        abstract: "Takes checkpoints of a domain all the time, as a service.",
        discussion: """
            Reads /etc/varve/NAME.conf. It waits until the domain runs, takes checkpoints at the \
            interval, and when the domain reboots or ends it waits for the next one of that name \
            and goes on with the lineage. A capture that fails is reported and tried again. \
            SIGTERM and '^C' end it after the checkpoint in progress.

            systemd runs it as varve-checkpoint@NAME.service. Exit codes: 0 ended by a signal; 1 \
            failed, and starting it again may help; 2 wrong configuration, or a repository or \
            domain that cannot be used as it says; 3 the repository is damaged.
            """)

    @Argument(help: "The service's name, and that of its domain unless the file has another.")
    var name: String

    @Option(help: .hidden)
    var config: PathArgument?

    @Flag(
        help: ArgumentHelp(
            "Have systemd start the domain's monitor, as varve-monitor@ID.service.",
            visibility: .hidden))
    var monitorAsUnit = false

    func validate() throws {
        guard !name.isEmpty, !name.hasPrefix("."), !name.contains("/") else {
            throw ValidationError("'\(name)' is not the name of a service")
        }
    }

    func run() throws {
        let journal = ServiceJournal()
        do {
            try serve(journal)
        } catch {
            let failure =
                if case .unmendable(let failure) = ServiceFault(error) { failure } else {
                    ToolError(error)
                }
            journal.log(.error, failure.message)
            Glibc.exit(failure.kind.exitCode)
        }
    }

    private func serve(_ journal: ServiceJournal) throws {
        try Interruption.arm()
        let file = config?.path.string ?? ServiceConfiguration.path(ofService: name)
        let configuration = try ServiceConfiguration.read(file, name: name)
        let notifier = ServiceNotifier()
        notifier.say("opens the repository \(configuration.store)")
        let repository: Repository
        do throws(RepositoryError) {
            repository = try Repository.open(
                at: FilePath(configuration.store), .writing,
                waiting: LockWaiting(atMost: configuration.wait),
                cancellation: Interruption.cancellation)
        } catch {
            guard error.code == .cancelled else { throw error }
            return
        }
        let metrics = ServiceMetrics(
            ofDomain: configuration.domain, path: configuration.metrics, journal: journal)
        if let newest = try repository.newest(ofLineage: try LineageName(configuration.lineage)) {
            metrics.resumed(atNanoseconds: newest.timeNanoseconds)
        }
        // A capture waits for the guest twice, and the disks have their own budget.
        let times = CheckpointService.Times(
            interval: configuration.interval,
            patience: configuration.suspendTimeout * 2 + configuration.settle + .seconds(60))
        let service = CheckpointService(
            configuration,
            of: XenDomainSource(
                configuration, in: repository, journal: journal, monitorCommand: monitorCommand),
            times: times, journal: journal, notifier: notifier, metrics: metrics,
            stop: Interruption.cancellation)
        notifier.ready("waits for domain \(configuration.domain)")
        var failure: (any Error)?
        do {
            try service.run()
        } catch {
            failure = error
        }
        try repository.close()
        if let failure { throw failure }
    }

    private var monitorCommand: [String] {
        ["/proc/self/exe", "xen", "monitor", monitorAsUnit ? "--start-unit" : "--background"]
    }
}
