import ArgumentParser
import Glibc
import Varve

struct Receive: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "receive",
        abstract: "Acts as the receiver of 'xl remus' and 'xl migrate'.",
        discussion: """
            xl remus -s '' DOMAIN 'varve receive STORE --lineage NAME'
            xl migrate -s '' DOMAIN 'varve receive STORE --lineage NAME'

            xl runs it and communicates through standard input and output, locally or over ssh. \
            Each epoch of Remus is a checkpoint, durable as the epoch ends; '^C', the sender's \
            death and a failover leave every whole epoch published, and drop an incomplete one. \
            No guest is started here.

            A migration is one checkpoint. The sender is then told to resume its guest, and \
            reports that the migration failed: the guest is saved and keeps running. With --end \
            the sender is told that the migration succeeded, and destroys its guest.

            A line for each checkpoint is printed on standard error.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Option(help: "The lineage to add to; a new name begins one.")
    var lineage: String

    @Flag(help: "After a migration, let the sender destroy its guest instead of resuming it.")
    var end = false

    @Flag(help: "Continue even if the lineage's newest checkpoint is of another guest.")
    var acceptGuestChange = false

    @Flag(help: "Add to a lineage that has disks; they are omitted, which is recorded.")
    var noDisks = false

    @OptionGroup var lock: LockOptions

    @Flag(help: "Print each checkpoint as a JSON object.")
    var json = false

    func run() throws {
        try reporting {
            try Interruption.arm()
            // Problems with the repository are reported before the sender suspends its guest.
            let repository = try lock.open(store)
            try send(MigrationHandshake.banner)
            let source = try InputSource()
            let taken = TakenCheckpoints(repository, isJSON: json, show)
            do {
                var options = CaptureOptions()
                options.acceptsGuestChange = acceptGuestChange
                options.omitsDisks = noDisks
                let result = try repository.importXenStream(
                    .xl, lineage: try LineageName(lineage), options: options,
                    cancellation: Interruption.cancellation, published: taken.add,
                    source: source.read)
                StreamEnd.report(result, isJSON: json)
                if json, let object = StreamEnd.object(result) {
                    Output.standardError(object.text)
                }
                if !result.summary.isCheckpointed { try endMigration(source) }
            } catch let error where Interruption.isRequest(error) {
                Failure.notice(
                    "ended by request after \(counted(taken.count, "checkpoint"))",
                    code: "interrupted", isJSON: json)
            } catch {
                throw taken.error(for: error)
            }
            do {
                try LockOptions.close(
                    repository, after: "\(counted(taken.count, "checkpoint")) stored")
            } catch {
                throw taken.error(for: error)
            }
        }
    }

    private func show(_ checkpoint: Checkpoint) throws {
        Output.standardError(
            json ? JSON.object(checkpoint.fields).text : "varve: \(checkpoint.summaryLine)")
    }

    private func send(_ message: [UInt8]) throws {
        try message.withUnsafeBytes { try Output.write($0, to: STDOUT_FILENO) }
    }

    /// Called when the guest is stored; tells the sender who has the guest now.
    private func endMigration(_ source: InputSource) throws {
        try send(MigrationHandshake.ready)
        var answer: [UInt8] = []
        while answer.count < MigrationHandshake.permission.count {
            var piece = [UInt8](
                repeating: 0, count: MigrationHandshake.permission.count - answer.count)
            let count = try piece.withUnsafeMutableBytes { try source.read($0) }
            guard count > 0 else {
                throw ToolError(
                    "the sender ended before it handed over the guest; the checkpoint is stored, "
                        + "check the guest there")
            }
            answer += piece[..<count]
        }
        guard answer == MigrationHandshake.permission else {
            throw ToolError("the sender answered with something other than its permission")
        }
        try send(MigrationHandshake.report)
        try send([end ? 0 : 1])
        if !end { try send(MigrationHandshake.permission) }
    }
}
