import ArgumentParser
import SystemPackage
import Varve

struct Forget: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Makes checkpoints cease to exist; 'varve prune' frees their space.",
        discussion: """
            All named checkpoints are forgotten at once, or none. Every other one stays what it is.
            """)

    @Argument(help: "The repository.")
    var store: String

    @Argument(help: "The checkpoints.")
    var checkpoints: [String]

    @Flag(help: "Print one JSON object for each.")
    var json = false

    func run() throws {
        try reporting {
            let repository = try Repository.open(at: FilePath(store), .writing)
            let found = try checkpoints.map { try repository.checkpoint(named: $0) }
            try repository.forget(found.map(\.id))
            try repository.close()
            for checkpoint in found {
                try Output.line(
                    json
                        ? JSON.object(checkpoint.fields).text
                        : "forgot \(checkpoint.id.short) of '\(checkpoint.lineage)'")
            }
        }
    }
}
