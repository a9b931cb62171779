import CheckpointFormat
import CheckpointIndex
import GuestModel
import PackStore

/// Which pages are available, and where the others should be.
struct RepairStock: Sendable {
    /// Pages that a whole page map locates correctly.
    var available: Set<PageDigest> = []
    /// Blocks with a page that differs from the map; they are left out of their packs.
    var wrong: Set<BlockPlace> = []
    /// The block that should contain a page but does not.
    var wrongPlaces: [PageDigest: BlockPlace] = [:]
    /// Pages in needed page maps that are not available.
    var missing: Set<PageDigest> = []
    /// The transaction and the ordinal with which a missing page was stored.
    var origins: [PageDigest: (transaction: UInt64, ordinal: UInt32)] = [:]
    /// True if the index has a wrong location for an available page, or none.
    var indexIsWrong = false
}

extension RepairSurvey {
    private static let batchCountMax = 1 << 14

    /// Decompresses and hashes every page that a whole page map locates.
    mutating func takeStock(_ control: WorkControl) throws -> RepairStock {
        var stock = RepairStock()
        var batch: [StoredPage] = []
        for position in members.indices {
            let manifest = members[position].checkpoint.manifest
            let isIndexed = isIndexed(members[position])
            for location in manifest.mapParts where records[location] != nil {
                let part: MapPart
                do {
                    part = try mapPart(at: location)
                } catch let error as FormatError {
                    noteWrong(location, error)
                    continue
                }
                batch += placed(part, of: manifest.transaction, isIndexed)
                if batch.count >= RepairSurvey.batchCountMax {
                    try control.check()
                    try check(batch, &stock)
                    batch.removeAll(keepingCapacity: true)
                }
            }
            try control.report(.verifying, .checkpoints, position + 1, of: members.count)
        }
        try check(batch, &stock)
        // The blocks are removed as a whole; good pages in them are searched for like all others.
        for (block, found) in zip(stock.wrong, try pages.digests(of: Array(stock.wrong))) {
            precondition(block.pageCount > 0, "a block has pages")
            for digest in found ?? [] { stock.available.remove(digest) }
        }
        try findMissing(&stock)
        return stock
    }

    /// The pages that a part says its transaction stored, and where they should be.
    private mutating func placed(
        _ part: MapPart, of transaction: UInt64, _ isIndexed: Bool
    ) -> [StoredPage] {
        var result: [StoredPage] = []
        part.forEachRun { run, digests in
            guard run.content == .storedHere else { return }
            var next = digests.startIndex
            frames[transaction, default: TransactionGroups()].forEachLocation(
                from: run.firstOrdinal, count: run.range.count
            ) { location in
                if let location {
                    result.append(
                        StoredPage(
                            digest: digests[next], place: PagePlace(location),
                            isIndexed: isIndexed))
                }
                next += 1
            }
        }
        return result
    }

    /// A page that a page map locates.
    private struct StoredPage {
        let digest: PageDigest
        let place: PagePlace
        /// True if the index must also have a location for it.
        let isIndexed: Bool
    }

    /// True if the index must have the pages of a checkpoint.
    private func isIndexed(_ member: Member) -> Bool {
        let location = member.checkpoint.location
        guard hints.index != nil, let mark = hints.mark, !member.isForgotten else { return false }
        return (location.pack, location.offset) < (mark.pack, mark.offset)
    }

    private func check(
        _ batch: [StoredPage], _ stock: inout RepairStock
    ) throws(RepositoryError) {
        let places = hints.locations(of: batch.filter(\.isIndexed).map(\.digest))
            .compactMapValues { place(at: $0) }
        let blocks = Set(batch.map(\.place.block) + places.values.map(\.block)).sorted {
            ($0.file, $0.offset) < ($1.file, $1.offset)
        }
        let digests = Dictionary(
            uniqueKeysWithValues: zip(blocks, try pages.digests(of: blocks)))
        func isAt(_ place: PagePlace, _ digest: PageDigest) -> Bool {
            guard let found = digests[place.block] ?? nil else { return false }
            return Int(place.slot) < found.count && found[Int(place.slot)] == digest
        }
        for page in batch {
            if isAt(page.place, page.digest) {
                stock.available.insert(page.digest)
                // If the index has another location, the page must be there too.
                if page.isIndexed, !(places[page.digest].map { isAt($0, page.digest) } ?? false) {
                    stock.indexIsWrong = true
                }
            } else {
                stock.wrong.insert(page.place.block)
                stock.wrongPlaces[page.digest] = page.place.block
            }
        }
    }

    /// Finds the pages in needed page maps that are not in stock.
    private func findMissing(_ stock: inout RepairStock) throws {
        for member in members where member.isNeeded {
            let manifest = member.checkpoint.manifest
            for location in manifest.mapParts where records[location] != nil {
                try mapPart(at: location).forEachRun { run, digests in
                    for (index, digest) in digests.enumerated()
                    where !stock.available.contains(digest) {
                        stock.missing.insert(digest)
                        guard run.content == .storedHere else { continue }
                        stock.origins[digest] = (
                            manifest.transaction, run.firstOrdinal + UInt32(index)
                        )
                    }
                }
            }
        }
    }

    // MARK: - Saving

    /// Searches for pages in all blocks that no whole page map locates.
    func search(
        for wanted: Set<PageDigest>, _ stock: RepairStock
    ) throws(RepositoryError) -> [PageDigest: PagePlace] {
        guard !wanted.isEmpty else { return [:] }
        var found: [PageDigest: PagePlace] = [:]
        let known = self.known
        let likely = candidates(wanted, stock, known)
        try search(Array(likely), for: wanted, &found)
        guard found.count < wanted.count else { return found }
        // A page group may state a wrong transaction.
        var others: Set<BlockPlace> = []
        for file in packs.values {
            for entry in salvages[file].entries where known.contains(entry.transaction) {
                others.formUnion(RepairSurvey.blocks(of: entry, in: file))
            }
        }
        try search(Array(others.subtracting(likely)), for: wanted, &found)
        return found
    }

    private func search(
        _ blocks: [BlockPlace], for wanted: Set<PageDigest>,
        _ found: inout [PageDigest: PagePlace]
    ) throws(RepositoryError) {
        var rest = blocks[...]
        while !rest.isEmpty, found.count < wanted.count {
            let blocks = Array(rest.prefix(RepairSurvey.batchCountMax / 16))
            for (block, digests) in zip(blocks, try pages.digests(of: blocks)) {
                for (slot, digest) in (digests ?? []).enumerated()
                where wanted.contains(digest) && found[digest] == nil {
                    found[digest] = PagePlace(block: block, slot: UInt8(slot))
                }
            }
            rest = rest.dropFirst(blocks.count)
        }
    }

    /// Transactions whose pages all have locations: these were searched already.
    private var known: Set<UInt64> {
        var known: Set<UInt64> = []
        for member in members {
            let manifest = member.checkpoint.manifest
            if manifest.mapParts.allSatisfy({ records[$0] != nil }) {
                known.insert(manifest.transaction)
            }
        }
        return known
    }

    private func candidates(
        _ wanted: Set<PageDigest>, _ stock: RepairStock, _ known: Set<UInt64>
    ) -> Set<BlockPlace> {
        var blocks = stock.wrong
        for file in packs.values {
            let entries = salvages[file].entries.filter { !known.contains($0.transaction) }
            let others = salvages[file].damages.compactMap(\.entry) + salvages[file].abandoned
            for entry in entries + others {
                blocks.formUnion(RepairSurvey.blocks(of: entry, in: file))
            }
        }
        for location in hints.locations(of: Array(wanted)).values {
            if let place = place(at: location) { blocks.insert(place.block) }
        }
        return blocks
    }

    /// The blocks of a page group; none for another record.
    static func blocks(of entry: PackIndex.Entry, in file: Int) -> [BlockPlace] {
        guard let frame = entry.frame else { return [] }
        var offset =
            UInt64(entry.offset) + UInt64(RecordHeader.byteCount + frame.headByteCount)
        return frame.blocks.map { block in
            defer { offset += UInt64(block.byteCount) }
            return BlockPlace(
                file: file, offset: offset, byteCount: block.byteCount, pageCount: block.pageCount)
        }
    }

    /// The place of a page according to the index; nil if its offset in the file is unknown.
    private func place(at location: PageLocation) -> PagePlace? {
        guard let file = packs[location.pack], location.slot < location.blockPageCount else {
            return nil
        }
        var offset = UInt64(location.blockOffset)
        if salvages[file].isRewritten {
            guard let found = salvages[file].offset(ofBlock: offset) else { return nil }
            offset = found
        }
        let block = BlockPlace(
            file: file, offset: offset, byteCount: location.blockByteCount,
            pageCount: location.blockPageCount)
        return PagePlace(block: block, slot: location.slot)
    }
}

extension PagePlace {
    /// The place of a page of the survey's page groups, whose pack numbers are indexes of files.
    fileprivate init(_ location: PageLocation) {
        self.init(
            block: BlockPlace(
                file: Int(location.pack), offset: UInt64(location.blockOffset),
                byteCount: location.blockByteCount, pageCount: location.blockPageCount),
            slot: location.slot)
    }
}
