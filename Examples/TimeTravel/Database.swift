import CSQLite
import SystemPackage

/// A failure of the demonstration, with its message.
struct DemoError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}

/// Where the database is.
enum DatabasePlace {
    /// In the image that `MemoryVFS` has.
    case memory
    /// In a file, which SQLite opens as any other.
    ///
    /// SQLite's locks on it are POSIX locks, which a process loses whenever it closes another
    /// descriptor of the file, as cuts and reverts do. So only one connection uses it.
    case file(FilePath)
}

/// A connection to the database.
///
/// One thread at a time.
final class Database {
    private let connection: OpaquePointer

    /// Opens the database; creates it if it is empty.
    init(_ place: DatabasePlace) throws {
        var opened: OpaquePointer?
        let flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX
        let code =
            switch place {
            case .memory: sqlite3_open_v2("bank.db", &opened, flags, MemoryVFS.name)
            case .file(let path): sqlite3_open_v2(path.string, &opened, flags, nil)
            }
        guard code == SQLITE_OK, let opened else {
            sqlite3_close(opened)
            throw DemoError("SQLite cannot open the database (code \(code))")
        }
        connection = opened
        // Between transactions, when checkpoints are taken, all is in the one file.
        try run(
            "PRAGMA page_size=4096; PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF; "
                + "PRAGMA temp_store=MEMORY")
    }

    deinit {
        sqlite3_close(connection)
    }

    /// Runs statements that return nothing.
    func run(_ sql: String) throws {
        guard sqlite3_exec(connection, sql, nil, nil, nil) == SQLITE_OK else { throw failure(sql) }
    }

    /// Runs a statement, and returns how many rows it changed.
    func change(_ sql: String) throws -> Int {
        try run(sql)
        return Int(sqlite3_changes(connection))
    }

    /// The first value of the first row, as text.
    func text(_ sql: String) throws -> String {
        var statement: OpaquePointer?
        guard sqlite3_prepare_v2(connection, sql, -1, &statement, nil) == SQLITE_OK else {
            throw failure(sql)
        }
        defer { sqlite3_finalize(statement) }
        guard sqlite3_step(statement) == SQLITE_ROW, let text = sqlite3_column_text(statement, 0)
        else { throw failure(sql) }
        return String(cString: text)
    }

    /// The first value of the first row, as a number.
    func integer(_ sql: String) throws -> Int {
        let text = try text(sql)
        guard let value = Int(text) else { throw DemoError("'\(text)' is not a number (\(sql))") }
        return value
    }

    private func failure(_ sql: String) -> DemoError {
        DemoError("SQLite says '\(String(cString: sqlite3_errmsg(connection)))' to: \(sql)")
    }
}
