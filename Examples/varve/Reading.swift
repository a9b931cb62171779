import SystemPackage
import Varve

/// Opens repositories for commands that only read.
enum Reading {
    /// Opens a repository; reports if its index could not be used and that took long, or if its
    /// index is unusual.
    static func open(
        _ store: StoreArgument, isJSON: Bool = false
    ) throws -> Repository {
        try StoreFiles.refuseStandardOutput(in: store)
        let start = ContinuousClock.now
        let repository = try Repository.open(at: store.path, .reading)
        guard let temporary = repository.temporaryIndex else { return repository }
        let seconds = (ContinuousClock.now - start) / .seconds(1)
        if temporary.isOdd {
            Failure.notice(
                "the index of \(store) is left alone, and the packs are read instead: "
                    + temporary.reason, code: "temporaryIndex", isJSON: isJSON)
        } else if seconds > 2 {
            Failure.notice(
                "an index of \(store) was built for this command only, in "
                    + "\(Format.decimal(seconds, 1)) s, because its own cannot be used: "
                    + "\(temporary.reason); the next command that writes rebuilds it",
                code: "temporaryIndex", isJSON: isJSON)
        }
        return repository
    }
}
