import GuestModel

/// Lists and drops the entries of some kinds in a journal.
enum Leftovers {
    static func list(
        _ journal: Journal, _ kinds: Set<JournalRecord.Kind>,
        _ parts: (JournalRecord) -> [String]
    ) throws(GuestError) -> [DiskLeftover] {
        var found: [DiskLeftover] = []
        for name in try journal.names().sorted() {
            guard let record = try journal.read(name) else {
                // Its kind is unknown, so each kind lists it.
                found.append(
                    DiskLeftover(
                        name: name, isOwned: false, isWhole: false,
                        parts: ["its entry is damaged; remove what bears this name by hand"]))
                continue
            }
            guard kinds.contains(record.kind) else { continue }
            let isOwned = try journal.take(name) == nil
            found.append(
                DiskLeftover(
                    name: name, isOwned: isOwned, isWhole: record.isMade, parts: parts(record)))
        }
        return found
    }

    /// Calls `drop` for each entry that no living process owns, and removes the entry.
    ///
    /// Goes on after a failure, and throws the first.
    static func drop(
        _ journal: Journal, _ kinds: Set<JournalRecord.Kind>,
        _ drop: (JournalEntry) throws(GuestError) -> [String]
    ) throws(GuestError) -> [DiskLeftover] {
        try journal.removeTornEntries()
        var dropped: [DiskLeftover] = []
        var failure: GuestError?
        for name in try journal.names().sorted() {
            do throws(GuestError) {
                guard let record = try journal.read(name), kinds.contains(record.kind),
                    let entry = try journal.take(name)
                else { continue }
                let parts = try drop(entry)
                try entry.remove()
                dropped.append(
                    DiskLeftover(
                        name: name, isOwned: false, isWhole: record.isMade, parts: parts))
            } catch {
                failure = failure ?? error
            }
        }
        if let failure { throw failure }
        return dropped
    }
}
