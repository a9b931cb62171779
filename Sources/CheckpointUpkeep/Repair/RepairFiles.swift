import CheckpointFormat
import PackStore
import Synchronization

/// Open files of a repository under repair.
///
/// Thread-safe; it keeps some files open.
final class RepairFiles: Sendable {
    private struct State {
        var open: [String: any RepositoryFile] = [:]
        var order: [String] = []
    }

    private static let openLimit = 64

    let files: any RepositoryFiles
    let repository: RepositoryID
    private let state = Mutex(State())

    init(_ files: any RepositoryFiles, _ repository: RepositoryID) {
        self.files = files
        self.repository = repository
    }

    /// Opens a file for reading, or returns an open one.
    func open(_ path: String) throws(FileError) -> any RepositoryFile {
        if let file = state.withLock({ $0.open[path] }) { return file }
        let file = try files.open(path, .read)
        state.withLock { state in
            guard state.open[path] == nil else { return }
            if state.order.count >= RepairFiles.openLimit {
                state.open[state.order.removeFirst()] = nil
            }
            state.open[path] = file
            state.order.append(path)
        }
        return file
    }

    /// Closes all files.
    func close() {
        state.withLock { $0 = State() }
    }
}
