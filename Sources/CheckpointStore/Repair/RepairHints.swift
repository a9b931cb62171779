import CheckpointFormat
import Glibc
import GuestModel
import SystemPackage

/// What the index still knows and damaged packs do not say any more; nothing if it cannot be read.
struct RepairHints: Sendable {
    /// How far packs were read: what lies before it was acknowledged.
    private(set) var mark: ReadMark?
    /// The manifests that it knows.
    private(set) var manifests: [CatalogEntry] = []
    private(set) var pruned = PrunedRecord()
    private(set) var highestTransaction: UInt64 = 0
    /// Why it cannot be read though it is there.
    private(set) var problem: String?
    /// Released before the index is made anew.
    private(set) var index: Index?

    /// Asks the index of a repository, with the lock held.
    ///
    /// A disk that cannot be read is thrown, not taken for an index that is not there.
    init(_ files: RepairFiles, path: FilePath) throws(FileError) {
        do throws(FileError) {
            guard try files.files.list(IndexMark.directory).contains("data.mdb"),
                try !IndexMark.isForeign(files.files)
            else { return }
        } catch {
            if error.isMissing { return }
            throw error
        }
        do {
            let index = try Index.open(files.files, .reading)
            guard try index.isSound(repository: files.repository) else {
                problem = "it is not the index of this repository"
                return
            }
            mark = try index.readMark()
            manifests = try index.manifests()
            pruned = try index.pruned()
            highestTransaction = try index.highestTransaction()
            self.index = index
        } catch let error as LMDBError where error.code == ENOMEM {
            throw FileError(call: error.call, path: IndexMark.directory, errno: ENOMEM)
        } catch let error as FileError {
            self = RepairHints(problem: RepositoryError(error).message)
        } catch let error as LMDBError {
            self = RepairHints(problem: "\(error.call): \(error.reason)")
        } catch {
            self = RepairHints(problem: "\(error)")
        }
    }

    private init(problem: String) {
        self.problem = problem
    }

    /// Where pages lie that no whole page map says the place of.
    func locations(of digests: [PageDigest]) -> [PageDigest: PageLocation] {
        var found: [PageDigest: PageLocation] = [:]
        try? index?.locations(of: digests.span) { position, location in
            if let location { found[digests[position]] = location }
        }
        return found
    }
}
