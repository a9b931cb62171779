import CheckpointFormat
import CheckpointIndex
public import CheckpointStore
import Glibc
public import GuestModel
public import PackStore
public import SystemPackage

extension Repository {
    /// Determines what a repair of a damaged repository would do.
    ///
    /// Takes the writer's lock, and holds it until the plan is released. If this process may not
    /// write, the plan is made without the lock and cannot be executed. Reads every byte of every
    /// pack and every page, and changes nothing. Needs memory for the indexes of all packs, about
    /// 50 bytes per distinct page, and the page maps of two checkpoints. Also works for a
    /// repository that can no longer be opened.
    ///
    /// Blocks; if it is cancelled, nothing is changed and the lock is free.
    ///
    /// - Parameters:
    ///   - path: the repository.
    ///   - waiting: how long to wait for another writer.
    ///   - cancellation: ends it with `cancelled`.
    ///   - progress: called in phase `reading` with bytes of packs, then in phase `verifying` with
    ///     checkpoints.
    public static func planRepair(
        at path: FilePath, waiting: LockWaiting = .none, cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) throws(RepositoryError) -> RepairPlan {
        try planRepair(
            at: path, files: PosixFiles(root: path), waiting: waiting, cancellation: cancellation,
            progress: progress)
    }

    /// The same over other files, or with other limits.
    package static func planRepair(
        at path: FilePath, files: any RepositoryFiles,
        packByteCountMax: Int = Repository.packByteCountMax, waiting: LockWaiting = .none,
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(RepositoryError) -> RepairPlan {
        let (id, problem) = try repairableIdentity(path, files)
        let control = WorkControl(
            "planning the repair was cancelled; nothing was changed", cancellation, progress)
        let lock = try RepairLock(path, files, waiting, cancellation)
        do {
            if lock.isHeld { try checkRepairable(path, files) }
            let opened = RepairFiles(files, id)
            let hints = try RepairHints(opened, path: path, writes: lock.isHeld)
            var survey = try RepairSurvey(opened, hints, control)
            let stock = try survey.takeStock(control)
            let verdicts = try survey.judge(stock)
            var preparation = RepairPreparation(
                path: path, files: files, repository: id, lock: lock,
                packByteCountMax: packByteCountMax)
            preparation.envelopeProblem = problem
            var planner = try RepairPlanner(survey, stock, verdicts, preparation)
            return try planner.make()
        } catch {
            throw IndexFailure.resolve(error, at: path, files)
        }
    }

    /// Fails if an object of the wrong kind is in the place of a file or directory that a repair
    /// creates, which would otherwise fail half-way.
    static func checkRepairable(
        _ path: FilePath, _ files: any RepositoryFiles
    ) throws(FileError) {
        try checkOwner(path, files)
        let root = try files.openDirectory("")
        let names = [
            StoreDirectory.damaged, StoreDirectory.index, StoreDirectory.leases,
            StoreDirectory.packs,
        ]
        for name in names {
            guard let status = try root.status(of: name), status.st_mode & S_IFMT != S_IFDIR else {
                continue
            }
            throw FileError.odd(path.appending(name).string, status, not: "directory")
        }
        if try root.status(of: StoreDirectory.index) != nil { try Index.checkFiles(files) }
    }

    /// The repository's identity: from the file `repository`, or else from its packs.
    ///
    /// - Returns: the ID, and what is wrong with the file; nil if it is intact.
    private static func repairableIdentity(
        _ path: FilePath, _ files: any RepositoryFiles
    ) throws(RepositoryError) -> (RepositoryID, problem: String?) {
        do throws(RepositoryError) {
            let id = try readEnvelope(path, files)
            guard let packs = RepairIdentity.contradicting(id, files) else { return (id, nil) }
            return (packs, RepairIdentity.sentence(id, packs))
        } catch {
            guard error.corruption != nil || [.missing, .foreign].contains(error.code) else {
                throw error
            }
            if let packs = RepairIdentity(files).majority {
                return (packs, "it cannot be read, but the packs contain its ID")
            }
            guard error.corruption != nil else { throw error }
            throw RepositoryError(
                .foreign,
                "nothing says which repository \(path) is: neither its file 'repository' nor the "
                    + "start of a pack can be read; restore one of them from a copy")
        }
    }
}
