import CheckpointFormat
import CheckpointIndex
package import GuestModel
package import PackStore

// A reader in another process announces what it reads, so that prune leaves it alone:
//
//   reader:  create leases/N.new -> lock it -> write the IDs -> rename to leases/N
//            -> check whether any of them was forgotten
//   pruner:  read the catalog -> list the leases
//
// Whichever process does its second step later sees the first step of the other: either prune finds
// the lease, or the reader finds its checkpoint forgotten. The lock ends with the reader's process,
// so a lease whose lock is free belongs to a dead one, and is removed by the process that gets the
// lock. A file that is removed before its reader has locked it cannot be renamed: the reader
// creates another.

/// Protects checkpoints from prune in any process until it is released.
package final class CheckpointLease: Sendable {
    // nil where none can be written.
    private let lease: (files: any RepositoryFiles, path: String, file: any RepositoryFile)?

    /// Announces checkpoints to all pruners.
    fileprivate init(_ ids: [CheckpointID], _ files: any RepositoryFiles) {
        var bytes = ByteWriter(reserving: ids.count * PageDigest.byteCount)
        for id in ids { bytes.write(id.digest) }
        // If the disk is failing, reading what can be read matters more.
        lease = try? CheckpointLease.make(bytes.bytes, files)
    }

    private static func make(
        _ bytes: [UInt8], _ files: any RepositoryFiles
    ) throws(FileError) -> (files: any RepositoryFiles, path: String, file: any RepositoryFile) {
        try files.createDirectory(StoreDirectory.leases)
        while true {
            let name = String(UInt64.random(in: 0 ... .max), hexadecimalDigits: 16)
            let path = "\(StoreDirectory.leases)/\(name)"
            let file = try files.open(path + ".new", .lock)
            guard try file.tryLock() else { continue }
            do throws(FileError) {
                try file.write(bytes, at: 0)
                try files.rename(path + ".new", to: path)
                return (files, path, file)
            } catch  where error.isMissing {
                continue
            } catch {
                try? files.remove(path + ".new")
                throw error
            }
        }
    }

    deinit {
        // A file that remains is treated as a dead reader's.
        if let lease { try? lease.files.remove(lease.path) }
    }
}

extension Repository {
    /// Protects checkpoints from every prune while they are read, until the result is released.
    ///
    /// Where no lease can be written (a read-only medium, a full or failing disk) there is no
    /// protection: reading a page that was pruned in the meantime is an error, but never returns a
    /// wrong page. Fails if a checkpoint was forgotten.
    package func lease(_ ids: [CheckpointID]) throws(RepositoryError) -> CheckpointLease {
        let lease = CheckpointLease(ids, files)
        for id in ids {
            let entry = try withCurrentIndex { try $0.entry(id) }
            guard let entry, !entry.isForgotten else { throw forgotten(id) }
        }
        return lease
    }

    /// The checkpoints leased by readers in any process; removes the leases of dead readers.
    func leased() throws(RepositoryError) -> Set<CheckpointID> {
        var result: Set<CheckpointID> = []
        let names: [String]
        do throws(FileError) {
            names = try files.list(StoreDirectory.leases)
        } catch {
            if error.isMissing { return [] }
            throw RepositoryError(error)
        }
        for name in names {
            let path = "\(StoreDirectory.leases)/\(name)"
            do throws(FileError) {
                let file = try files.open(path, .read)
                if try file.tryLock() {
                    if isWritable { try files.remove(path) }
                } else if !name.hasSuffix(".new") {
                    let bytes = try file.readBytes(Int(try file.byteCount()), at: 0)
                    result.formUnion(CheckpointLease.decode(bytes))
                }
            } catch {
                // Its reader has ended.
                if !error.isMissing { throw RepositoryError(error) }
            }
        }
        return result
    }
}

extension CheckpointLease {
    fileprivate static func decode(_ bytes: [UInt8]) -> [CheckpointID] {
        stride(from: 0, to: bytes.count / PageDigest.byteCount * PageDigest.byteCount, by: 32).map {
            start in
            bytes[start..<start + PageDigest.byteCount].withUnsafeBytes {
                CheckpointID(PageDigest(bytes: $0))
            }
        }
    }
}
