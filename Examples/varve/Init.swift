import ArgumentParser
import Glibc
import Varve

struct Init: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "init",
        abstract: "Creates a repository.",
        discussion: """
            STORE must not exist or be an empty directory, which keeps its permissions. Files \
            in it are accessible only to their owner.
            """)

    @Argument(help: "The directory of the new repository.")
    var store: StoreArgument

    func run() throws {
        try reporting {
            let repository = try Repository.create(at: store.path)
            try repository.close()
            noteWritable()
            let what = "created repository \(repository.id) in \(store)"
            try Output.report(what) { try Output.line(what) }
        }
    }

    /// Warns that others may change the contents of the directory, which existed before.
    private func noteWritable() {
        var status = stat()
        guard stat(store.description, &status) == 0, status.st_mode & 0o022 != 0 else { return }
        let digits = String(status.st_mode & 0o7777, radix: 8)
        Failure.notice(
            "other users may write to \(store) (mode \(digits)), and so replace or remove what "
                + "is in it; if they should not: chmod 700 \(store)",
            code: "permissions", isJSON: false)
    }
}
