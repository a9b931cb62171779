import CheckpointFormat
import CheckpointIndex
import Glibc
import GuestModel
import LMDBTables
import PackStore
import SystemPackage

/// What the index and the head still know and damaged packs do not say any more.
struct RepairHints: Sendable {
    /// How far the index read the packs; nil if it cannot be read.
    private(set) var mark: ReadMark?
    /// What the head says.
    private(set) var head: StoreHead
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
    ///
    /// - Parameter writes: false where nothing may be written, not even LMDB's table of readers.
    init(_ files: RepairFiles, path: FilePath, writes: Bool = true) throws(FileError) {
        head = try StoreHead(files.files, files.repository)
        do throws(FileError) {
            guard try files.files.list(StoreDirectory.index).contains("data.mdb"),
                try !IndexMark.isForeign(files.files)
            else { return }
        } catch {
            if error.isMissing { return }
            throw error
        }
        do {
            let index = try Index.open(files.files, writes ? .reading : .readingWithoutLocks)
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
            throw FileError(call: error.call, path: StoreDirectory.index, errno: ENOMEM)
        } catch let error as FileError {
            // Another user's index is not followed; that is no damage to it.
            guard writes || error.isOdd else { return }
            self = RepairHints(head, problem: RepositoryError(error).message)
        } catch let error as LMDBError {
            self = RepairHints(head, problem: "\(error.call): \(error.reason)")
        } catch {
            self = RepairHints(head, problem: "\(error)")
        }
    }

    private init(_ head: StoreHead, problem: String) {
        self.head = head
        self.problem = problem
    }

    /// What lies before it was acknowledged; nil if nobody says so.
    var acknowledged: RecordLocation? {
        guard let mark, let confirmed = head.confirmed else { return mark ?? head.confirmed }
        return max(mark, confirmed)
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
