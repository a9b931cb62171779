public import GuestModel

extension ThinDisks {
    /// The entries of the state directory, whether a living process owns them or not.
    ///
    /// Only the journal is read; device-mapper is not asked.
    public func leftovers() throws(GuestError) -> [DiskLeftover] {
        try Leftovers.list(journal, [.thin, .metadata, .thinExchange]) { record in
            if record.kind == .thinExchange {
                return (ThinReplacement.all(record) ?? []).map {
                    "new contents \($0.newID) of \($0.part.originName), ID \($0.oldID) in the pool "
                        + $0.part.poolName
                }
            }
            if record.kind == .metadata {
                return record.lines("pool").map {
                    "metadata snapshot of the pool \($0.first ?? "")"
                }
            }
            return (ThinPart.parts(record) ?? []).map {
                "snapshot \($0.ids.map { "\($0)" }.joined(separator: " or ")) of \($0.originName) "
                    + "in the pool \($0.poolName)"
            }
        }
    }

    /// Removes what no living process owns, and returns it: volumes that were left suspended are
    /// resumed, snapshots deleted, metadata snapshots given back.
    ///
    /// Take the cut that is still needed with `standingCut` first, or create the session that does:
    /// this also drops cuts that were made. An entry whose pool is not active stays, and the error
    /// names it.
    @discardableResult
    public func dropLeftovers() throws(GuestError) -> [DiskLeftover] {
        try Leftovers.drop(journal, [.thin, .metadata, .thinExchange]) {
            (entry) throws(GuestError) in
            switch entry.record.kind {
            case .metadata: try dropMetadata(entry)
            case .thinExchange: try dropExchange(entry)
            default: try dropCut(entry)
            }
        }
    }

    func pool(
        _ name: String, _ uuid: String, _ entry: JournalEntry
    ) throws(GuestError) -> ThinPool {
        guard let pool = try ThinPool(named: name, uuid: uuid, calls) else {
            throw GuestError(
                code: .unavailable,
                message: "\(entry.name) has left something in the pool \(name), which is not "
                    + "active; activate it, or remove the entry if the pool is gone for good")
        }
        return pool
    }

    private func dropMetadata(_ entry: JournalEntry) throws(GuestError) -> [String] {
        guard let words = entry.record.lines("pool").first, words.count == 2,
            let name = words.first, let uuid = words.last
        else { throw damaged(entry) }
        let pool = try pool(name, uuid, entry)
        guard try pool.status(calls).hasMetadataSnapshot else { return [] }
        try calls.message(pool.device.number, "release_metadata_snap")
        return ["metadata snapshot of the pool \(name)"]
    }

    private func dropCut(_ entry: JournalEntry) throws(GuestError) -> [String] {
        guard let parts = ThinPart.parts(entry.record) else { throw damaged(entry) }
        var dropped: [String] = []
        // Guests first: one of them may be waiting.
        for part in parts where !entry.record.isMade {
            guard let device = try calls.device(part.origin), device.name == part.originName else {
                continue
            }
            if try DiskGuard.resume(part.origin, calls) != nil {
                dropped.append("\(part.originName) was suspended")
            }
        }
        for part in parts {
            try calls.remove(named: part.device)
            let pool = try pool(part.poolName, part.poolUUID, entry)
            for id in part.ids {
                try ThinCut.delete(id, pool.device.number, calls)
            }
            dropped.append("snapshot of \(part.originName) in the pool \(part.poolName)")
        }
        return dropped
    }

    func damaged(_ entry: JournalEntry) -> GuestError {
        GuestError(
            code: .unavailable,
            message: "the entry \(entry.name) of \(journal.directory.printable) is damaged; look "
                + "for what bears its name, and remove it")
    }
}
