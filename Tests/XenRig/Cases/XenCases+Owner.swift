import CheckpointEngine
import CheckpointStore
import Glibc
import GuestModel
import SystemPackage
import Varve
import XenGuest

// One owner of a domain, and one log: `XenCases owner`.

extension XenCases {
    /// A second owner is refused, here and in another process; a log that another tool turned off
    /// is detected.
    ///
    /// - Parameter command: tries to own the domain in another process, and must fail.
    static func owner(_ domain: UInt32, _ store: String, _ command: String) throws {
        let repository = try Repository.open(at: FilePath(store), .writing)
        let naive = try NaiveCopy(domain)
        let guest = WatchedGuest(try open(domain)) { if $0 == .copied { try naive.refresh() } }
        let session = try CaptureSession(of: guest, in: repository, lineage: "owner")
        func capture(comparedAll: Bool, _ what: String) throws {
            let checkpoint = try session.capture().checkpoint
            let wrong = try naive.differences(from: checkpoint, in: repository)
            guard wrong.isEmpty else {
                throw Failed("\(what): \(wrong.count) pages differ, first \(wrong.prefix(5))")
            }
            guard checkpoint.comparedAll == comparedAll else {
                throw Failed("\(what): compared all is \(checkpoint.comparedAll)")
            }
            usleep(200_000)
        }
        try capture(comparedAll: true, "the first checkpoint")
        do {
            _ = try open(domain)
            throw Failed("a second owner in this process was not refused")
        } catch let error as GuestError {
            guard error.code == .busy else { throw error }
            print("# in this process: \(error.message)")
        }
        let other = try ChildProcess(["sh", "-c", command], collectsOutput: true)
        let status = other.wait()
        let said = other.collectedLines.joined(separator: " ")
        guard status != 0, said.contains("already owns domain \(domain)") else {
            throw Failed("another process ended with \(status): \(said)")
        }
        print("# in another process: \(said)")
        try capture(comparedAll: false, "after the others were refused")
        try LibxenCalls().disableLog(domain)
        usleep(200_000)
        try capture(comparedAll: true, "after the log was turned off")
        try capture(comparedAll: false, "after that")
        session.close()
        try repository.close()
    }
}
