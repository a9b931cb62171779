import Glibc
import SystemPackage
import VarveCore

/// The database's file, and how it is cut and reverted.
final class DatabaseFiles {
    let path: FilePath
    let group: ReflinkDisks
    // Removed with this.
    private let place: StorePlace

    /// A new file in a directory; nil where files cannot be cloned, which is reported.
    init?(in directory: String?) throws {
        place = try StorePlace(temporaryIn: directory)
        path = place.path.appending("bank.db")
        let file = try FileDescriptor.open(
            path, .writeOnly, options: [.create, .exclusiveCreate],
            permissions: [.ownerReadWrite])
        // SQLite takes it for an empty database; whether it can be cloned shows only with a block.
        try file.closeAfter { _ = try file.writeAll([UInt8](repeating: 0, count: 4096)) }
        group = try ReflinkDisks(
            files: [ReflinkDisks.File(name: "bank", path: path, sectorByteCount: 4096)],
            stateDirectory: place.path.appending("cuts"))
        do throws(GuestError) {
            try group.prepareCut().release()
        } catch {
            guard error.code == .unsupported else { throw error }
            Report.line("the database is in memory, not in a file: \(error.message)")
            return nil
        }
        guard truncate(path.string, 0) == 0 else {
            throw DemoError("the file \(path) cannot be emptied")
        }
    }
}

/// The bank, once it exists: its ledger is in the memory that it guards.
final class BankGate: @unchecked Sendable {
    // Unchecked: set once, before the first checkpoint.
    var bank: Bank?
}
