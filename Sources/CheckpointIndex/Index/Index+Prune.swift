package import CheckpointFormat
package import GuestModel
package import LMDBTables

// Prune's queries and changes of the index.

/// A forgotten checkpoint that prune has not finished removing.
package enum PendingPrune: Hashable, Sendable, EncodedValue {
    /// It still has its owned frames.
    case hasOwnedFrames
    /// Its manifest was about to be removed from the packs.
    case isLeaving(transaction: UInt64, mapAncestor: CheckpointID?)

    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
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

    package var encoded: [UInt8] {
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
    package func moment() throws(IndexError) -> UInt64 { try environment.read { $0.moment } }

    // MARK: - Checkpoints

    /// Forgotten checkpoints that prune has not finished removing.
    package func pending() throws(IndexError) -> [CheckpointID: PendingPrune] {
        try environment.read { (txn) throws(IndexError) in
            var found: [CheckpointID: PendingPrune] = [:]
            var entries = try tables.pending.entries(in: txn)
            while let (id, pending) = try entries.next() { found[id] = pending }
            return found
        }
    }

    /// The checkpoint that a transaction published.
    package func checkpoint(of number: UInt64) throws(IndexError) -> CheckpointID? {
        try environment.read { (txn) throws(IndexError) in
            try tables.transactions.value(for: TransactionNumber(number), in: txn)
        }
    }

    /// Removes the entries of forgotten checkpoints whose manifests are no longer in the packs.
    package func drop(_ leaving: [CheckpointID: PendingPrune]) throws(IndexError) {
        guard !leaving.isEmpty else { return }
        try environment.write { (txn) throws(IndexError) in
            for (id, pending) in leaving {
                guard case .isLeaving(let number, let ancestor) = pending,
                    let entry = try entry(id, txn), entry.isForgotten
                else { continue }
                try tables.checkpoints.remove(id, in: txn)
                try tables.pending.remove(id, in: txn)
                try tables.transactions.remove(TransactionNumber(number), in: txn)
                if let ancestor {
                    try tables.builders.remove(CheckpointPair(ancestor, id), in: txn)
                }
                // The forget record may now be garbage.
                if entry.forgetPack > 0 { try addCandidate(entry.forgetPack, txn) }
            }
        }
    }

    /// Transfers the owned frames of checkpoints, as planned.
    ///
    /// - Returns: false if the index no longer matches the plan: the txn must not be committed
    ///   then.
    package func transferOwnership(
        _ steps: ArraySlice<OwnershipTransfer>, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> Bool {
        let window = try recentWindow(txn)
        // A successor of several of them is written once.
        var changed: [CheckpointID: OwnedFrames] = [:]
        func current(
            _ id: CheckpointID, _ txn: borrowing LMDBTxn
        ) throws(IndexError) -> OwnedFrames? {
            if let own = changed.removeValue(forKey: id) { return own }
            return try tables.ownedFrames.value(for: id, in: txn)
        }
        for step in steps {
            guard let ownedFrames = try current(step.id, txn),
                ownedFrames.predecessor == step.predecessor,
                try tables.successors.seconds(of: step.id, in: txn) == step.successors
            else { return false }
            for successor in step.successors {
                guard var own = try current(successor, txn) else { return false }
                own.frames.formUnion(ownedFrames.frames)
                own.predecessor = ownedFrames.predecessor
                changed[successor] = own
                try tables.successors.remove(CheckpointPair(step.id, successor), in: txn)
                if let predecessor = ownedFrames.predecessor {
                    try tables.successors.insert(CheckpointPair(predecessor, successor), in: txn)
                }
            }
            if let predecessor = ownedFrames.predecessor {
                try tables.successors.remove(CheckpointPair(predecessor, step.id), in: txn)
            }
            try tables.ownedFrames.remove(step.id, in: txn)
            try tables.pending.remove(step.id, in: txn)
            for (digest, count) in step.gained {
                try reference(digest, count: count, txn)
            }
            for digest in step.lost { try dereference(digest, in: window, txn) }
        }
        for (id, ownedFrames) in changed { try setOwnedFrames(ownedFrames, of: id, txn) }
        return true
    }

    // MARK: - Pages

    /// Calls `body` with every page and its location, in digest order.
    package func forEachPage(_ body: (PageDigest, PageLocation) -> Void) throws(IndexError) {
        try environment.read { (txn) throws(IndexError) in
            var others = try pagesInRuns(txn)[...]
            var entries = try tables.pages.entries(in: txn)
            while let (digest, location) = try entries.next() {
                while let other = others.first, other.digest.precedes(digest) {
                    body(other.digest, other.location)
                    others.removeFirst()
                }
                body(digest, location)
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
    ) throws(IndexError) -> Bool {
        var areDead = true
        var rest = Array(pages)[...]
        while !rest.isEmpty {
            try environment.write { (txn) throws(IndexError) in
                let window = try recentWindow(txn)
                var buried: [RecentPlace] = []
                var dropped: [PageLocation] = []
                for (digest, location) in rest.prefix(1 << 16) {
                    // A page that was stored again is kept.
                    let now = try self.location(digest, in: window, txn)
                    guard now == location else { continue }
                    guard try tables.unreferenced.remove(digest, in: txn) else {
                        areDead = false
                        continue
                    }
                    try tables.pages.remove(digest, in: txn)
                    if location.pack >= openPack { dropped.append(location) }
                    if let place = try recentPlace(digest, in: window, txn) {
                        buried.append(place)
                    }
                }
                try bury(buried, txn)
                try noteDropped(dropped, from: openPack, txn)
            }
            rest = rest.dropFirst(1 << 16)
        }
        return areDead
    }

    // MARK: - Packs

    /// Records that a pack may contain garbage.
    package func addCandidate(
        _ pack: UInt32, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        try tables.candidates.put(IndexMoment(txn.moment), for: PackNumber(pack), in: txn)
    }

    package func addCandidate(_ packs: Set<UInt32>) throws(IndexError) {
        guard !packs.isEmpty else { return }
        try environment.write { (txn) throws(IndexError) in
            for pack in packs { try addCandidate(pack, txn) }
        }
    }

    /// Packs that may contain garbage, and since when.
    package func candidates() throws(IndexError) -> [UInt32: UInt64] {
        try environment.read { (txn) throws(IndexError) in
            var found: [UInt32: UInt64] = [:]
            var entries = try tables.candidates.entries(in: txn)
            while let (key, since) = try entries.next() { found[key.pack] = since.moment }
            return found
        }
    }

    /// What prune found when it last examined each pack.
    package func packUses() throws(IndexError) -> [UInt32: PackUse] {
        try environment.read { (txn) throws(IndexError) in
            var found: [UInt32: PackUse] = [:]
            var entries = try tables.packs.entries(in: txn)
            while let (key, use) = try entries.next() { found[key.pack] = use }
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
    ) throws(IndexError) {
        let candidates = try candidates()
        try environment.write { (txn) throws(IndexError) in
            for pack in settled {
                guard let since = candidates[pack], since <= moment else { continue }
                try tables.candidates.remove(PackNumber(pack), in: txn)
            }
            for (pack, use) in uses {
                if let use {
                    try tables.packs.put(use, for: PackNumber(pack), in: txn)
                } else {
                    try tables.packs.remove(PackNumber(pack), in: txn)
                }
            }
        }
    }
}
