import ArgumentParser
import SystemPackage
import Varve

struct LabelCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "label", abstract: "Sets, changes or removes a checkpoint's label.",
        discussion: """
            The label then refers to this checkpoint: later ones of the lineage that have it lose \
            it. A labelled checkpoint is kept by all --keep rules of 'varve forget'. The \
            checkpoint's id and contents do not change.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "The checkpoint.")
    var checkpoint: String

    @Argument(help: "The label.")
    var label: String?

    @Flag(help: "Remove the checkpoint's label.")
    var remove = false

    @OptionGroup var lock: LockOptions

    @Flag(help: "Print the checkpoint as a JSON object.")
    var json = false

    func validate() throws {
        if (label == nil) != remove {
            throw ValidationError("give a label, or --remove")
        }
    }

    func run() throws {
        try reporting {
            let repository = try lock.open(store)
            let found = try repository.checkpoint(named: checkpoint)
            let changed = try repository.setLabel(
                try label.map { try Label($0) }, of: found.id)
            let what =
                (label.map { "label '\($0)' given to" } ?? "label removed from")
                + " checkpoint \(found.id.short)"
            try LockOptions.close(repository, after: what)
            try Output.report(what) {
                try Output.line(
                    json
                        ? JSON.object(changed.fields).text
                        : "\(changed.id.short) \(changed.lineage): "
                            + (label.map { "label \($0)" } ?? "no label"))
            }
        }
    }
}
