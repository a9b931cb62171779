import ArgumentParser
import Varve

struct Init: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Makes a repository.",
        discussion: "STORE must not exist or be an empty directory.")

    @Argument(help: "The directory of the new repository.")
    var store: StoreArgument

    func run() throws {
        try reporting {
            let repository = try Repository.create(at: store.path)
            try repository.close()
            let what = "made repository \(repository.id) in \(store)"
            try Output.report(what) { try Output.line(what) }
        }
    }
}
