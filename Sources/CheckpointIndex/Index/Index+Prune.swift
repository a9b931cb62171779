package import CheckpointFormat
package import GuestModel
package import LMDBTables

// Prune's queries and changes of the index.

/// A forgotten checkpoint that prune has not finished removing.
package enum PendingPrune: Hashable, Sendable {
    /// It still has its owned frames.
    case hasOwnedFrames
    /// Its manifest was about to be removed from the packs.
    case isLeaving(transaction: UInt64, mapAncestor: CheckpointID?)

    fileprivate init(indexed bytes: UnsafeRawBufferPointer) throws(LMDBError) {
        switch (bytes.first, bytes.count) {
        case (0, 1): self = .hasOwnedFrames
        case (1, 41):
            let ancestor = PageDigest(bytes: bytes.dropFirst(9))
            self = .isLeaving(
                transaction: UInt64(
                    littleEndian: bytes.loadUnaligned(fromByteOffset: 1, as: UInt64.self)),
                mapAncestor: ancestor == .none ? nil : CheckpointID(ancestor))
        default: throw .damagedValue("pending checkpoint")
        }
    }

    fileprivate var encoded: [UInt8] {
        var writer = ByteWriter(reserving: 41)
        switch self {
        case .hasOwnedFrames: writer.write(UInt8(0))
        case .isLeaving(let transaction, let ancestor):
            writer.write(UInt8(1))
            writer.write(transaction)
            writer.write(ancestor?.digest ?? .none)
        }
        return writer.bytes
    }
}

/// What prune found when it last examined a pack.
package struct PackUse: Hashable, Sendable {
    package let byteCount: Int
    package let unusedByteCount: Int

    package init(byteCount: Int, unusedByteCount: Int) {
        self.byteCount = byteCount
        self.unusedByteCount = unusedByteCount
    }
}

extension Index {
    /// The ID of the index's current state: it grows with each change.
    package func moment() throws -> UInt64 { try environment.read { $0.moment } }

    // MARK: - Checkpoints

    package func setPending(
        _ pending: PendingPrune, _ id: CheckpointID, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        let value = pending.encoded
        try Index.withKey(id) { (key) throws(LMDBError) in
            try value.withUnsafeBufferPointer { (bytes) throws(LMDBError) in
                try transaction.put(table(.pending), key, UnsafeRawBufferPointer(bytes))
            }
        }
    }

    /// Forgotten checkpoints that prune has not finished removing.
    package func pending() throws -> [CheckpointID: PendingPrune] {
        try environment.read { transaction in
            var found: [CheckpointID: PendingPrune] = [:]
            try transaction.scan(table(.pending), from: []) { (key, value) throws(LMDBError) in
                found[try CheckpointID(indexed: key)] = try PendingPrune(indexed: value)
                return true
            }
            return found
        }
    }

    /// The checkpoint that a transaction published.
    package func checkpoint(of number: UInt64) throws -> CheckpointID? {
        try environment.read { transaction in
            try Index.withKey(order: number) { (key) throws(LMDBError) in
                try transaction.get(table(.transactions), key, CheckpointID.init(indexed:))
            }
        }
    }

    func setTransaction(
        _ number: UInt64, _ id: CheckpointID, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try Index.withKey(order: number) { (key) throws(LMDBError) in
            try Index.withKey(id) { (value) throws(LMDBError) in
                try transaction.put(table(.transactions), key, value)
            }
        }
    }

    /// Removes the entries of forgotten checkpoints whose manifests are no longer in the packs.
    package func drop(_ leaving: [CheckpointID: PendingPrune]) throws {
        guard !leaving.isEmpty else { return }
        try environment.write { transaction in
            for (id, pending) in leaving {
                guard case .isLeaving(let number, let ancestor) = pending,
                    let entry = try entry(id, transaction), entry.isForgotten
                else { continue }
                try Index.withKey(id) { (key) throws(LMDBError) in
                    _ = try transaction.delete(table(.checkpoints), key)
                    _ = try transaction.delete(table(.pending), key)
                }
                try Index.withKey(order: number) { (key) throws(LMDBError) in
                    _ = try transaction.delete(table(.transactions), key)
                }
                if let ancestor { try removeLink(ancestor, id, in: .builders, transaction) }
                // The forget record may now be garbage.
                if entry.forgetPack > 0 { try addCandidate(entry.forgetPack, transaction) }
            }
        }
    }

    /// Transfers the owned frames of checkpoints, as planned.
    ///
    /// - Returns: false if the index no longer matches the plan: the txn must not be committed
    ///   then.
    package func transferOwnership(
        _ steps: ArraySlice<OwnershipTransfer>, _ transaction: borrowing LMDBTxn
    ) throws -> Bool {
        let window = try recentWindow(transaction)
        // A successor of several of them is written once.
        var changed: [CheckpointID: OwnedFrames] = [:]
        for step in steps {
            guard
                let ownedFrames = try changed.removeValue(forKey: step.id)
                    ?? self.ownedFrames(step.id, transaction),
                ownedFrames.predecessor == step.predecessor,
                try linked(step.id, in: .successors, transaction) == step.successors
            else { return false }
            for successor in step.successors {
                guard var own = try changed[successor] ?? self.ownedFrames(successor, transaction)
                else { return false }
                own.frames.formUnion(ownedFrames.frames)
                own.predecessor = ownedFrames.predecessor
                changed[successor] = own
                try removeLink(step.id, successor, in: .successors, transaction)
                if let predecessor = ownedFrames.predecessor {
                    try link(predecessor, successor, in: .successors, transaction)
                }
            }
            if let predecessor = ownedFrames.predecessor {
                try removeLink(predecessor, step.id, in: .successors, transaction)
            }
            try Index.withKey(step.id) { (key) throws(LMDBError) in
                _ = try transaction.delete(table(.ownedFrames), key)
                _ = try transaction.delete(table(.pending), key)
            }
            for (digest, count) in step.gained {
                try reference(digest, count: count, transaction)
            }
            for digest in step.lost { try dereference(digest, in: window, transaction) }
        }
        for (id, ownedFrames) in changed { try setOwnedFrames(ownedFrames, of: id, transaction) }
        return true
    }

    // MARK: - Pages

    /// Calls `body` with every page and its location, in digest order.
    package func forEachPage(_ body: (PageDigest, PageLocation) -> Void) throws {
        try environment.read { transaction in
            var others = try pagesInRuns(transaction)[...]
            try transaction.scan(table(.pages), from: []) {
                (key, value) throws(LMDBError) in
                let digest = try CheckpointID(indexed: key).digest
                while let other = others.first, other.digest.precedes(digest) {
                    body(other.digest, other.location)
                    others.removeFirst()
                }
                body(digest, try PageLocation(indexed: value))
                return true
            }
            for other in others { body(other.digest, other.location) }
        }
    }

    /// Deletes pages without references that have not moved.
    ///
    /// - Parameter openPack: no pack from this one on is sealed; bytes that become garbage there
    ///   are counted.
    /// - Returns: false if a page at its old location has a reference.
    package func deletePages(
        _ pages: [PageDigest: PageLocation], openFrom openPack: UInt32 = .max
    ) throws -> Bool {
        var areDead = true
        var rest = Array(pages)[...]
        while !rest.isEmpty {
            try environment.write { transaction in
                let window = try recentWindow(transaction)
                var buried: [RecentPlace] = []
                var dropped: [PageLocation] = []
                for (digest, location) in rest.prefix(1 << 16) {
                    // A page that was stored again is kept.
                    let now = try self.location(digest, in: window, transaction)
                    guard now == location else { continue }
                    let isDead = try Index.withKey(digest) { (key) throws(LMDBError) in
                        guard try transaction.delete(table(.unreferenced), key) else {
                            return false
                        }
                        _ = try transaction.delete(table(.pages), key)
                        return true
                    }
                    guard isDead else {
                        areDead = false
                        continue
                    }
                    if location.pack >= openPack { dropped.append(location) }
                    if let place = try recentPlace(digest, in: window, transaction) {
                        buried.append(place)
                    }
                }
                try bury(buried, transaction)
                try noteDropped(dropped, from: openPack, transaction)
            }
            rest = rest.dropFirst(1 << 16)
        }
        return areDead
    }

    // MARK: - Packs

    /// Records that a pack may contain garbage.
    package func addCandidate(
        _ pack: UInt32, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try Index.withKey(pack: pack) { (key) throws(LMDBError) in
            try Index.withKey(order: transaction.moment) { (value) throws(LMDBError) in
                try transaction.put(table(.candidates), key, value)
            }
        }
    }

    package func addCandidate(_ packs: Set<UInt32>) throws {
        guard !packs.isEmpty else { return }
        try environment.write { transaction in
            for pack in packs { try addCandidate(pack, transaction) }
        }
    }

    /// Packs that may contain garbage, and since when.
    package func candidates() throws -> [UInt32: UInt64] {
        try environment.read { transaction in
            var found: [UInt32: UInt64] = [:]
            try transaction.scan(table(.candidates), from: []) { (key, value) throws(LMDBError) in
                guard key.count == 4, value.count == 8 else { throw .damagedValue("candidate") }
                let moment = value.loadUnaligned(as: UInt64.self)
                found[try Index.pack(key)] = UInt64(bigEndian: moment)
                return true
            }
            return found
        }
    }

    /// What prune found when it last examined each pack.
    package func packUses() throws -> [UInt32: PackUse] {
        try environment.read { transaction in
            var found: [UInt32: PackUse] = [:]
            try transaction.scan(table(.packs), from: []) { (key, value) throws(LMDBError) in
                guard value.count == 8 else { throw .damagedValue("pack") }
                let bytes = value.loadUnaligned(as: UInt32.self)
                let unused = value.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
                let use = PackUse(
                    byteCount: Int(UInt32(littleEndian: bytes)),
                    unusedByteCount: Int(UInt32(littleEndian: unused)))
                guard use.unusedByteCount <= use.byteCount else { throw .damagedValue("pack") }
                found[try Index.pack(key)] = use
                return true
            }
            return found
        }
    }

    /// Records what prune found in packs; nil for one that is gone.
    ///
    /// - Parameters:
    ///   - settled: the packs that it examined.
    ///   - moment: candidate entries of these packs up to it are removed.
    package func setPackUses(
        _ uses: [UInt32: PackUse?], settled: Set<UInt32>, upTo moment: UInt64
    ) throws {
        let candidates = try candidates()
        try environment.write { transaction in
            for pack in settled {
                guard let since = candidates[pack], since <= moment else { continue }
                try Index.withKey(pack: pack) { (key) throws(LMDBError) in
                    _ = try transaction.delete(table(.candidates), key)
                }
            }
            for (pack, use) in uses {
                try Index.withKey(pack: pack) { (key) throws(LMDBError) in
                    guard let use else {
                        _ = try transaction.delete(table(.packs), key)
                        return
                    }
                    var value = ByteWriter(reserving: 8)
                    value.write(UInt32(use.byteCount))
                    value.write(UInt32(use.unusedByteCount))
                    try value.bytes.withUnsafeBufferPointer { (bytes) throws(LMDBError) in
                        try transaction.put(table(.packs), key, UnsafeRawBufferPointer(bytes))
                    }
                }
            }
        }
    }

    static func pack(_ key: UnsafeRawBufferPointer) throws(LMDBError) -> UInt32 {
        guard key.count == 4 else { throw .damagedValue("pack number") }
        return UInt32(bigEndian: key.loadUnaligned(as: UInt32.self))
    }

    static func withKey(
        pack: UInt32, _ body: (UnsafeRawBufferPointer) throws(LMDBError) -> Void
    ) throws(LMDBError) {
        var bytes = pack.bigEndian
        let result = withUnsafeBytes(of: &bytes) { key in
            Result { () throws(LMDBError) in try body(key) }
        }
        try result.get()
    }
}
