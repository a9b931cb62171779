import CheckpointFormat
import CheckpointIndex
import Glibc
import GuestModel
import LMDBTables
import PackStore
import SystemPackage

/// What the index and the head still know that damaged packs no longer show.
struct RepairHints: Sendable {
    /// How far the index has read the packs; nil if it is unreadable.
    private(set) var mark: ReadMark?
    /// The contents of the head.
    private(set) var head: StoreHead
    /// The manifests in the index.
    private(set) var manifests: [CatalogEntry] = []
    private(set) var pruned = PrunedRecord()
    private(set) var highestTransaction: UInt64 = 0
    /// Why an existing index is unreadable.
    private(set) var problem: String?
    /// Released before the index is rebuilt.
    private(set) var index: Index?

    /// Reads the index of a repository; the lock must be held.
    ///
    /// A disk error is thrown, not treated as a missing index.
    ///
    /// - Parameter writes: false if nothing may be written, not even LMDB's reader table.
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
        do throws(IndexError) {
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
        } catch {
            if case .call(let call, ENOMEM) = error {
                throw FileError(call: call, path: StoreDirectory.index, errno: ENOMEM)
            }
            // Another user's index is not read; that is not damage to it.
            if case .file(let error) = error, !writes, !error.isOdd { return }
            self = RepairHints(head, problem: "\(error)")
        }
    }

    private init(_ head: StoreHead, problem: String) {
        self.head = head
        self.problem = problem
    }

    /// Everything before it was acknowledged; nil if unknown.
    var acknowledged: RecordLocation? {
        guard let mark, let confirmed = head.confirmed else { return mark ?? head.confirmed }
        return max(mark, confirmed)
    }

    /// The locations of pages that no whole page map locates.
    func locations(of digests: [PageDigest]) -> [PageDigest: PageLocation] {
        var found: [PageDigest: PageLocation] = [:]
        try? index?.locations(of: digests.span) { position, location in
            if let location { found[digests[position]] = location }
        }
        return found
    }
}
