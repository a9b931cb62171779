import Glibc
import PackStore

// LMDB maps its file and follows page numbers and offsets in it without validation: one corrupted
// byte can end the process (SIGSEGV, SIGBUS) or make it write to wrong places. So before LMDB
// follows any of them, this class reads each page that LMDB can reach, and verifies the checksum of
// each value.
//
// The layout is that of LMDB 0.9 on a 64-bit machine (`MDB_page`, `MDB_node`, `MDB_db` and
// `MDB_meta` of mdb.c), with numbers in native byte order:
//
//   page      number u64, pad u16, flags u16, then
//             branch, leaf: lower u16, upper u16, and up to `lower` the offsets u16 of the nodes,
//                           in the order of keys; the nodes lie from `upper` on
//             overflow:     pages u32, and the data of one value, which goes on in the next pages
//             head:         magic u32, version u32, address u64, map size u64, two trees (free
//                           pages, tables), last page u64, transaction u64
//   node      lo u16, hi u16, flags u16, key's size u16, key, data
//             branch: lo, hi and flags are the page's number, and there is no data
//             leaf:   lo and hi are the data's size; flags: 1: the data is the number u64 of an
//                     overflow page, 2: the data is a tree
//   tree      pad u32, flags u16, depth u16, branch pages, leaf pages, overflow pages, entries,
//             root: u64 each; root 2^64-1: empty
//
// The keys of the first tree are txn IDs u64, and the data is the list of pages that the txn freed:
// their count, and their numbers in descending order. The second tree has one tree per name; those
// are the index's tables.

/// Checks an LMDB file of the index, using only `pread`.
package final class LMDBFileCheck {
    /// The result of checking a snapshot of the file.
    package enum Outcome {
        case sound
        /// The snapshot is no longer in the file, because a writer continued.
        case passed
    }

    /// A tree of the file.
    private struct Tree {
        static let byteCount = 48
        static let noRoot = UInt64.max

        let flags: UInt16
        let pad: UInt32
        let depth: Int
        let branchCount: UInt64
        let leafCount: UInt64
        let overflowCount: UInt64
        let entryCount: UInt64
        let root: UInt64

        init(_ bytes: UnsafeRawBufferPointer) {
            pad = bytes.number(at: 0)
            flags = bytes.number(at: 4)
            depth = Int(bytes.number(at: 6) as UInt16)
            branchCount = bytes.number(at: 8)
            leafCount = bytes.number(at: 16)
            overflowCount = bytes.number(at: 24)
            entryCount = bytes.number(at: 32)
            root = bytes.number(at: 40)
        }

        var isEmpty: Bool {
            depth == 0 && branchCount == 0 && leafCount == 0 && overflowCount == 0
                && entryCount == 0
        }
    }

    private enum Kind {
        case free
        case main
        case table
    }

    /// What was counted in one tree.
    private struct Tally {
        let kind: Kind
        let depth: Int
        var branchCount: UInt64 = 0
        var leafCount: UInt64 = 0
        var overflowCount: UInt64 = 0
        var entryCount: UInt64 = 0
    }

    private static let headByteCount = 152
    private static let pageHeadByteCount = 16
    private static let nodeHeadByteCount = 8
    private static let keyByteCountMax = 511
    /// Maximum depth that LMDB's cursors support.
    private static let depthMax = 32
    private static let branchFlag: UInt16 = 1
    private static let leafFlag: UInt16 = 2
    private static let overflowFlag: UInt16 = 4
    private static let metaFlag: UInt16 = 8
    /// For the tree of free pages, whose keys are numbers.
    private static let integerKeyFlag: UInt16 = 8
    private static let bigDataFlag: UInt16 = 1
    private static let treeFlag: UInt16 = 2

    private let descriptor: Int32
    private let pageByteCount: Int
    private let checksValues: Bool
    /// Number of pages in the file that LMDB may use.
    private var pageCount: UInt64 = 0
    private var moment: UInt64 = 0
    /// One bit for each page that was visited, used or free.
    private var met: [UInt64] = []
    /// One page buffer per level.
    private var buffers: [UnsafeMutableRawBufferPointer] = []
    /// The parts of the current page that its nodes occupy, two bytes per bit.
    private var taken: [UInt64]
    private var tables: [Tree] = []

    /// - Parameters:
    ///   - descriptor: the file.
    ///   - pageByteCount: LMDB's page size in bytes.
    ///   - checksValues: false, for fuzzing, to skip the checksums of values.
    package init(descriptor: Int32, pageByteCount: Int, checksValues: Bool = true) {
        self.checksValues = checksValues
        self.descriptor = descriptor
        self.pageByteCount = pageByteCount
        taken = [UInt64](repeating: 0, count: (pageByteCount / 2 + 63) / 64)
    }

    deinit {
        for buffer in buffers { buffer.deallocate() }
    }

    /// Checks the file as seen by a txn.
    ///
    /// Costs one read of the whole file, and one bit of memory per page. Throws what is wrong.
    ///
    /// - Parameter moment: the ID of the txn, which keeps a writer from reusing its pages.
    package func check(moment: UInt64) throws(IndexError) -> Outcome {
        self.moment = moment
        var heads: [(free: Tree, main: Tree, last: UInt64, number: UInt64)] = []
        for slot in 0..<2 as Range<UInt64> {
            let head = try page(slot, level: 0)
            let number: UInt64 = head.number(at: 144)
            // Txns write the two alternately; a new file has number 0 in both.
            guard head.number(at: 10) as UInt16 == LMDBFileCheck.metaFlag,
                number == 0 || number % 2 == slot, number < UInt64(Int64.max)
            else { throw fault(slot, "the head") }
            let trees = UnsafeRawBufferPointer(rebasing: head[40...])
            heads.append(
                (
                    Tree(trees), Tree(UnsafeRawBufferPointer(rebasing: trees[Tree.byteCount...])),
                    head.number(at: 136), number
                ))
        }
        let head = heads[Int(moment % 2)]
        guard head.number == moment else {
            if heads.contains(where: { $0.number > moment }) { return .passed }
            throw fault(moment % 2, "the number of the transaction")
        }
        var status = stat()
        guard system_fstat(descriptor, &status) == 0 else {
            throw IndexError.call("fstat", code: errno)
        }
        // The meta page may count pages beyond the end of the file; none of them may be used.
        let inFile = UInt64(Int(status.st_size) / pageByteCount)
        guard head.last < inFile, head.last >= 1 else { throw fault(moment % 2, "the last page") }
        pageCount = head.last + 1
        met = [UInt64](repeating: 0, count: Int((pageCount + 63) / 64))
        tables = []
        _ = meet(0)
        _ = meet(1)
        guard Int(head.free.pad) == pageByteCount, head.free.flags == LMDBFileCheck.integerKeyFlag,
            head.main.flags == 0, head.main.pad == 0
        else { throw fault(moment % 2, "the flags of a tree") }
        try check(head.main, .main)
        for table in tables {
            guard table.flags == 0, table.pad == 0 else {
                throw fault(head.main.root, "the flags of a table")
            }
            try check(table, .table)
        }
        // Last, because a free page must not have been visited.
        try check(head.free, .free)
        return .sound
    }

    private func check(_ tree: Tree, _ kind: Kind) throws(IndexError) {
        if tree.root == Tree.noRoot {
            guard tree.isEmpty else { throw fault(tree.root, "the counts of an empty tree") }
            return
        }
        guard (1...LMDBFileCheck.depthMax).contains(tree.depth) else {
            throw fault(tree.root, "the depth of a tree")
        }
        var tally = Tally(kind: kind, depth: tree.depth)
        try walk(tree.root, level: 0, from: nil, to: nil, &tally)
        guard tally.branchCount == tree.branchCount, tally.leafCount == tree.leafCount,
            tally.overflowCount == tree.overflowCount, tally.entryCount == tree.entryCount
        else { throw fault(tree.root, "the counts of a tree") }
    }

    // MARK: - Pages of a tree

    /// Checks a page and its descendants.
    ///
    /// - Parameters:
    ///   - lower: the smallest key allowed below the page; nil: no bound.
    ///   - upper: all keys below the page must be less than this; nil: no bound.
    private func walk(
        _ number: UInt64, level: Int, from lower: UnsafeRawBufferPointer?,
        to upper: UnsafeRawBufferPointer?, _ tally: inout Tally
    ) throws(IndexError) {
        guard number > 1, number < pageCount else { throw fault(number, "a page's number") }
        guard meet(number) else { throw fault(number, "a page that is used twice") }
        let page = try page(number, level: level)
        let isLeaf = level + 1 == tally.depth
        guard page.number(at: 0) as UInt64 == number,
            page.number(at: 10) as UInt16
                == (isLeaf ? LMDBFileCheck.leafFlag : LMDBFileCheck.branchFlag)
        else { throw fault(number, "the page's head") }
        let nodes = try nodes(of: page, number, isLeaf: isLeaf, tally.kind)
        if isLeaf { tally.leafCount += 1 } else { tally.branchCount += 1 }
        var before = lower
        for position in 0..<nodes.count {
            let key = nodes.key(position)
            // The first key of a branch stands for all keys less than the second.
            if isLeaf || position > 0 {
                let isBound = isLeaf ? position == 0 : position == 1
                try checkOrder(key, after: before, isBound: isBound, tally, number)
                if let upper, !isBefore(key, upper, tally.kind) {
                    throw fault(number, "the order of keys")
                }
                before = key
            }
            if isLeaf {
                tally.entryCount += 1
                try checkValue(nodes, position, number, level: level, &tally)
            } else {
                let next = position + 1 < nodes.count ? nodes.key(position + 1) : upper
                try walk(
                    nodes.child(position), level: level + 1,
                    from: position == 0 ? lower : key, to: next, &tally)
            }
        }
    }

    /// - Parameter isBound: true if `last` comes from the parent page: the key may be equal to it.
    private func checkOrder(
        _ key: UnsafeRawBufferPointer, after last: UnsafeRawBufferPointer?, isBound: Bool,
        _ tally: Tally, _ number: UInt64
    ) throws(IndexError) {
        guard let last else { return }
        let isRight = isBound ? !isBefore(key, last, tally.kind) : isBefore(last, key, tally.kind)
        guard isRight else { throw fault(number, "the order of keys") }
    }

    private func isBefore(
        _ left: UnsafeRawBufferPointer, _ right: UnsafeRawBufferPointer, _ kind: Kind
    ) -> Bool {
        if kind == .free {
            return (left.number(at: 0) as UInt64) < (right.number(at: 0) as UInt64)
        }
        guard let first = left.baseAddress, let second = right.baseAddress else {
            return left.count < right.count
        }
        let order = memcmp(first, second, min(left.count, right.count))
        return order == 0 ? left.count < right.count : order < 0
    }

    /// The nodes of one page, whose sizes were validated.
    private struct Nodes {
        let page: UnsafeRawBufferPointer
        let count: Int

        func offset(_ position: Int) -> Int {
            Int(page.number(at: LMDBFileCheck.pageHeadByteCount + 2 * position) as UInt16)
        }

        func flags(_ position: Int) -> UInt16 { page.number(at: offset(position) + 4) }

        func key(_ position: Int) -> UnsafeRawBufferPointer {
            let start = offset(position) + LMDBFileCheck.nodeHeadByteCount
            let count = Int(page.number(at: offset(position) + 6) as UInt16)
            return UnsafeRawBufferPointer(rebasing: page[start..<start + count])
        }

        /// Size of a leaf node's data in bytes, wherever it is stored.
        func dataByteCount(_ position: Int) -> Int {
            Int(page.number(at: offset(position)) as UInt16)
                | Int(page.number(at: offset(position) + 2) as UInt16) << 16
        }

        /// The part of a leaf node's data that is stored in the node.
        func data(_ position: Int) -> UnsafeRawBufferPointer {
            let start =
                offset(position) + LMDBFileCheck.nodeHeadByteCount
                + Int(page.number(at: offset(position) + 6) as UInt16)
            let isElsewhere = flags(position) & LMDBFileCheck.bigDataFlag != 0
            let count = isElsewhere ? 8 : dataByteCount(position)
            return UnsafeRawBufferPointer(rebasing: page[start..<start + count])
        }

        func child(_ position: Int) -> UInt64 {
            UInt64(dataByteCount(position)) | UInt64(flags(position)) << 32
        }
    }

    /// Checks that the nodes of a page are within it, do not overlap, and have keys valid in LMDB.
    private func nodes(
        of page: UnsafeRawBufferPointer, _ number: UInt64, isLeaf: Bool, _ kind: Kind
    ) throws(IndexError) -> Nodes {
        let lower = Int(page.number(at: 12) as UInt16)
        let upper = Int(page.number(at: 14) as UInt16)
        let count = (lower - LMDBFileCheck.pageHeadByteCount) / 2
        // A branch has at least two children; that of free pages may have one.
        guard lower % 2 == 0, lower <= upper, upper <= pageByteCount,
            count >= (isLeaf || kind == .free ? 1 : 2)
        else { throw fault(number, "the page's bounds") }
        for index in taken.indices { taken[index] = 0 }
        let nodes = Nodes(page: page, count: count)
        // Two nodes of maximum size fit in a page.
        let nodeByteCountMax = ((pageByteCount - LMDBFileCheck.pageHeadByteCount) / 2 & ~1) - 2
        for position in 0..<count {
            let offset = nodes.offset(position)
            guard offset >= upper, offset % 2 == 0,
                offset + LMDBFileCheck.nodeHeadByteCount <= pageByteCount
            else { throw fault(number, "the place of a node") }
            let keyByteCount = Int(page.number(at: offset + 6) as UInt16)
            var byteCount = LMDBFileCheck.nodeHeadByteCount + keyByteCount
            if isLeaf {
                let whole = byteCount + nodes.dataByteCount(position)
                let isElsewhere = nodes.flags(position) & LMDBFileCheck.bigDataFlag != 0
                guard isElsewhere == (whole > nodeByteCountMax) else {
                    throw fault(number, "the size of a value")
                }
                byteCount = isElsewhere ? byteCount + 8 : whole
            }
            let keyCounts =
                isLeaf || position > 0
                ? kind == .free ? 8...8 : 1...LMDBFileCheck.keyByteCountMax
                : 0...LMDBFileCheck.keyByteCountMax
            guard keyCounts.contains(keyByteCount), offset + byteCount <= pageByteCount,
                take(offset..<offset + byteCount)
            else { throw fault(number, "the size of a node") }
        }
        return nodes
    }

    /// Marks a part of the page as occupied; false if any of it already was.
    private func take(_ bytes: Range<Int>) -> Bool {
        var place = bytes.lowerBound / 2
        let end = (bytes.upperBound + 1) / 2
        while place < end {
            let count = min(64 - place % 64, end - place)
            let mask = (count == 64 ? UInt64.max : (1 << count) - 1) << (place % 64)
            if taken[place / 64] & mask != 0 { return false }
            taken[place / 64] |= mask
            place += count
        }
        return true
    }

    // MARK: - Values

    private func checkValue(
        _ nodes: Nodes, _ position: Int, _ number: UInt64, level: Int, _ tally: inout Tally
    ) throws(IndexError) {
        let flags = nodes.flags(position)
        let byteCount = nodes.dataByteCount(position)
        let isElsewhere = flags == LMDBFileCheck.bigDataFlag
        guard isElsewhere || flags == (tally.kind == .main ? LMDBFileCheck.treeFlag : 0) else {
            throw fault(number, "the flags of a value")
        }
        if tally.kind == .main {
            guard byteCount == Tree.byteCount else { throw fault(number, "the size of a tree") }
            return tables.append(Tree(nodes.data(position)))
        }
        guard isElsewhere else {
            return try checkValue(nodes.data(position), nodes.key(position), number, tally.kind)
        }
        let first: UInt64 = nodes.data(position).number(at: 0)
        try meetOverflow(first, byteCount, &tally)
        // A value may be as large as a table's writer made it, and is within the file.
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 8)
        defer { buffer.deallocate() }
        let start = Int(first) * pageByteCount + LMDBFileCheck.pageHeadByteCount
        guard system_pread(descriptor, buffer, start) == byteCount else {
            throw fault(first, "the end of the file")
        }
        try checkValue(UnsafeRawBufferPointer(buffer), nodes.key(position), first, tally.kind)
    }

    /// Marks the pages of a value that is stored on pages of its own.
    private func meetOverflow(
        _ first: UInt64, _ byteCount: Int, _ tally: inout Tally
    ) throws(IndexError) {
        guard first > 1, first < pageCount else { throw fault(first, "a page's number") }
        // The level below the pages of the tree.
        let page = try page(first, level: tally.depth)
        let count = UInt64(page.number(at: 12) as UInt32)
        let needed = (LMDBFileCheck.pageHeadByteCount - 1 + byteCount) / pageByteCount + 1
        guard page.number(at: 0) as UInt64 == first,
            page.number(at: 10) as UInt16 == LMDBFileCheck.overflowFlag,
            count >= UInt64(needed), count <= pageCount - first
        else { throw fault(first, "the head of a value's pages") }
        for number in first..<first + count where !meet(number) {
            throw fault(number, "a page that is used twice")
        }
        tally.overflowCount += count
    }

    private func checkValue(
        _ value: UnsafeRawBufferPointer, _ key: UnsafeRawBufferPointer, _ number: UInt64,
        _ kind: Kind
    ) throws(IndexError) {
        guard kind == .free else {
            guard checksValues else { return }
            do throws(IndexError) {
                _ = try SealedValue.open(value, of: key)
            } catch {
                guard case .damagedValue(let what) = error else { throw error }
                throw fault(number, what)
            }
            return
        }
        let freed: UInt64 = key.number(at: 0)
        guard freed > 0, freed <= moment, value.count >= 8, value.count % 8 == 0 else {
            throw fault(number, "a list of free pages")
        }
        let count: UInt64 = value.number(at: 0)
        guard count < UInt64(value.count / 8) else {
            throw fault(number, "the size of a list of free pages")
        }
        var last = pageCount
        for position in 0..<Int(count) {
            let page: UInt64 = value.number(at: 8 + 8 * position)
            guard page > 1, page < last, meet(page) else {
                throw fault(number, "an invalid free page")
            }
            last = page
        }
    }

    // MARK: - The file

    /// Marks a page as visited; false if it already was.
    private func meet(_ number: UInt64) -> Bool {
        let (word, bit) = (Int(number / 64), UInt64(1) << (number % 64))
        if met[word] & bit != 0 { return false }
        met[word] |= bit
        return true
    }

    /// Reads a page into the buffer of a level.
    private func page(_ number: UInt64, level: Int) throws(IndexError) -> UnsafeRawBufferPointer {
        while buffers.count <= level {
            buffers.append(.allocate(byteCount: pageByteCount, alignment: 8))
        }
        let count = system_pread(descriptor, buffers[level], Int(number) * pageByteCount)
        guard count >= 0 else { throw IndexError.call("pread", code: errno) }
        guard count == pageByteCount else { throw fault(number, "the end of the file") }
        return UnsafeRawBufferPointer(buffers[level])
    }

    private func fault(_ page: UInt64, _ what: String) -> IndexError {
        .damagedValue("page \(page), \(what)")
    }
}

extension UnsafeRawBufferPointer {
    /// A number in native byte order.
    fileprivate func number<T: FixedWidthInteger>(at offset: Int) -> T {
        loadUnaligned(fromByteOffset: offset, as: T.self)
    }
}
