import Dispatch
import Glibc
import Synchronization
import VarveCore

/// A database at work: accounts, and entries that a thread keeps adding, changing and deleting.
///
/// The bank keeps a ledger of all balances in memory. It agrees with the database as long as both
/// are of the same instant, so it shows at once if one was reverted without the other.
///
/// The gate serializes all access to the region and the database: the worker holds it for each
/// transaction, the engine for each pause, and a proof while it inspects the database.
final class Bank: @unchecked Sendable {
    // Unchecked: `database`, `ledger`, `counters` and `random` are used only with the gate held.

    /// What a checkpoint has in addition to the memory.
    struct Counters: Equatable {
        /// Rows of the entry table.
        var rows = 0
        /// Transactions so far.
        var transactions = 0
    }

    private let gate = DispatchSemaphore(value: 1)
    private let isWanted = Atomic(false)
    private let isParked = Atomic(false)
    private let isStopped = Atomic(false)
    private let failure = Mutex<String?>(nil)
    private let place: DatabasePlace
    private var database: Database?
    /// The balance of each account, in memory that is checkpointed.
    private let ledger: UnsafeMutableBufferPointer<Int64>
    private var random: SeededChoices
    private(set) var counters = Counters()

    /// The number of accounts.
    static let accountCount = 10_000
    /// Bytes of memory for the ledger: whole pages.
    static let ledgerByteCount = (accountCount * 8 + 4095) / 4096 * 4096

    /// - Parameter ledger: zeroed memory with room for the accounts.
    init(
        in place: DatabasePlace, ledger: UnsafeMutableRawBufferPointer, random: SeededChoices
    ) {
        self.place = place
        let balances = ledger.bindMemory(to: Int64.self)
        self.ledger = UnsafeMutableBufferPointer(rebasing: balances[..<Bank.accountCount])
        self.random = random
    }

    /// Creates the tables and the first rows.
    func prepare() throws {
        let accounts = Bank.accountCount
        ledger.update(repeating: 1000)
        let database = try Database(place)
        try database.run(
            """
            CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
            CREATE TABLE entry (
                id INTEGER PRIMARY KEY, account INTEGER NOT NULL REFERENCES account (id),
                amount INTEGER NOT NULL, note TEXT NOT NULL);
            CREATE INDEX entry_by_account ON entry (account, amount);
            WITH RECURSIVE number (n) AS
                (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < \(accounts))
            INSERT INTO account SELECT n, 1000 FROM number;
            """)
        self.database = database
    }

    // MARK: - The gate

    /// Waits until no transaction is running, and keeps the next one from beginning.
    func hold() {
        isWanted.store(true, ordering: .sequentiallyConsistent)
        gate.wait()
        isWanted.store(false, ordering: .sequentiallyConsistent)
    }

    /// Lets transactions continue.
    func release() {
        gate.signal()
    }

    /// Stops the worker before its next transaction.
    func park() { isParked.store(true, ordering: .sequentiallyConsistent) }

    /// Lets the worker continue.
    func unpark() { isParked.store(false, ordering: .sequentiallyConsistent) }

    // MARK: - The worker

    /// Runs transactions until `stop`.
    func work() {
        while !isStopped.load(ordering: .relaxed) {
            if isParked.load(ordering: .relaxed) || isWanted.load(ordering: .relaxed) {
                usleep(50)
                continue
            }
            gate.wait()
            do {
                try transact()
            } catch {
                failure.withLock { $0 = "\(error)" }
                isStopped.store(true, ordering: .relaxed)
            }
            gate.signal()
            // Think time, as with a client of a real bank: about 3,000 transactions a second.
            usleep(200)
        }
    }

    /// Ends the worker, and throws the error that stopped it, if any.
    func stop() throws {
        isStopped.store(true, ordering: .relaxed)
        if let failure = failure.withLock({ $0 }) { throw DemoError(failure) }
    }

    private func transact() throws {
        guard let database else { throw DemoError("the bank was not prepared") }
        let account = Int.random(in: 1...Bank.accountCount, using: &random)
        let amount = Int.random(in: -500...500, using: &random)
        let note = String(repeating: "x", count: Int.random(in: 10...200, using: &random))
        try database.run("BEGIN IMMEDIATE")
        var rows = counters.rows
        for step in 0..<8 {
            let other = (account + step * 37) % Bank.accountCount + 1
            rows += try database.change(
                "INSERT INTO entry (account, amount, note) VALUES "
                    + "(\(other), \(amount), '\(note) \(step)')")
        }
        _ = try database.change(
            "UPDATE account SET balance = balance + \(amount) WHERE id = \(account)")
        if counters.transactions % 4 == 0 {
            rows -= try database.change(
                "DELETE FROM entry WHERE account = \(account) AND amount < 0")
        }
        try database.run("COMMIT")
        ledger[account - 1] += Int64(amount)
        counters.rows = rows
        counters.transactions += 1
    }

    // MARK: - State

    /// The counters, as a checkpoint keeps them.
    ///
    /// Called with the gate held.
    func saveState() -> GuestState {
        let bytes = withUnsafeBytes(of: (Int64(counters.rows), Int64(counters.transactions))) {
            Array($0)
        }
        return GuestState(records: [GuestState.Record(kind: "bank.counters", bytes: bytes)])
    }

    /// Restores the counters, and opens the database again.
    ///
    /// Called with the gate held.
    ///
    /// SQLite caches pages, and trusts its cache while the file's change counter is unchanged. Two
    /// branches can have equal counters and different pages, so after a revert only a new
    /// connection is correct.
    func restoreState(_ state: GuestState) throws {
        counters = try Bank.counters(of: state)
        database = nil
        database = try Database(place)
    }

    /// Reads the counters of a checkpoint.
    static func counters(of state: GuestState) throws -> Counters {
        guard let bytes = state.bytes(ofKind: "bank.counters"), bytes.count == 16 else {
            throw DemoError("the checkpoint has no counters")
        }
        return bytes.withUnsafeBytes { raw in
            Counters(
                rows: Int(raw.load(as: Int64.self)),
                transactions: Int(raw.load(fromByteOffset: 8, as: Int64.self)))
        }
    }

    // MARK: - Proof

    /// What SQLite itself reports about the database.
    ///
    /// Called with the gate held.
    func inspect() throws -> (integrity: String, rows: Int, agrees: Bool) {
        guard let database else { throw DemoError("the bank was not prepared") }
        let integrity = try database.text("PRAGMA integrity_check")
        let rows = try database.integer("SELECT count(*) FROM entry")
        let stored = try database.integer("SELECT sum(id * balance) FROM account")
        let kept = ledger.indices.reduce(0) { $0 + ($1 + 1) * Int(ledger[$1]) }
        return (integrity, rows, stored == kept)
    }
}
