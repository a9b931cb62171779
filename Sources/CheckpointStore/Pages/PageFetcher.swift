package import CheckpointFormat
import CheckpointIndex
package import GuestModel
package import PackStore
import Synchronization

// Reads pages back. Requests are sorted by location, so that a pack is read sequentially; blocks
// close to each other are read in one call. Each page is verified against its digest before it is
// delivered.

/// A page to be read: its frame, its digest and its location.
package struct PageRequest: Sendable {
    package let frame: PageFrameNumber
    package let digest: PageDigest
    package let location: PageLocation

    package init(frame: PageFrameNumber, digest: PageDigest, location: PageLocation) {
        self.frame = frame
        self.digest = digest
        self.location = location
    }
}

extension Repository {
    // Number of digests that one thread looks up; fewer are not worth a thread.
    private static let lookupCount = 8192

    /// Finds the locations of pages, sorted by location; uses all processors.
    ///
    /// - Parameter pages: pages with ascending frames.
    package func locate(
        _ pages: [(frame: PageFrameNumber, digest: PageDigest)]
    ) throws(RepositoryError) -> [PageRequest] {
        let threadCount = min(Threads.processorCount, 1 + pages.count / Repository.lookupCount)
        let parts = Mutex<[Int: Result<[PageRequest], RepositoryError>]>([:])
        Threads.concurrently(threadCount) { thread in
            let start = pages.count * thread / threadCount
            let end = pages.count * (thread + 1) / threadCount
            let part = Result { () throws(RepositoryError) in try self.lookUp(pages[start..<end]) }
            parts.withLock { $0[thread] = part }
        }
        let found = parts.withLock { $0 }
        var requests: [PageRequest] = []
        requests.reserveCapacity(pages.count)
        for thread in 0..<threadCount { requests += try found[thread]?.get() ?? [] }
        // Sorting small keys takes a third of the time of sorting the requests.
        var keys = requests.enumerated().map { (place: $1.location.place, index: $0) }
        keys.sort { ($0.place, $0.index) < ($1.place, $1.index) }
        return keys.map { requests[$0.index] }
    }

    /// Finds those of the given pages that are in the index, sorted by location.
    package func locateKnown(
        _ pages: [(frame: PageFrameNumber, digest: PageDigest)]
    ) throws(RepositoryError) -> [PageRequest] {
        let digests = pages.map(\.digest)
        var known: [(frame: PageFrameNumber, digest: PageDigest)] = []
        try withIndex { index in
            try index.locations(of: digests.span) { position, location in
                if location != nil { known.append(pages[position]) }
            }
        }
        return try locate(known)
    }

    /// The current location of one page.
    package func location(of digest: PageDigest) throws(RepositoryError) -> PageLocation? {
        var found: PageLocation?
        try withIndex { index in
            try index.locations(of: [digest].span) { _, location in found = location }
        }
        return found
    }

    private func lookUp(
        _ pages: ArraySlice<(frame: PageFrameNumber, digest: PageDigest)>
    ) throws(RepositoryError) -> [PageRequest] {
        let digests = pages.map(\.digest)
        var requests: [PageRequest] = []
        requests.reserveCapacity(pages.count)
        var missing: Int?
        try withIndex { index in
            try index.locations(of: digests.span) { position, location in
                let page = pages[pages.startIndex + position]
                if let location {
                    requests.append(
                        PageRequest(frame: page.frame, digest: page.digest, location: location))
                } else if missing == nil {
                    missing = pages.startIndex + position
                }
            }
        }
        if let missing { throw lost(pages[missing]) }
        return requests
    }
}

extension Repository {
    /// The error for a page that is not in the index.
    private func lost(_ page: (frame: PageFrameNumber, digest: PageDigest)) -> RepositoryError {
        guard let known = damage.first else {
            if temporaryIndex?.isFromPacks == true {
                return RepositoryError(
                    Corruption(
                        file: StoreDirectory.packs, offset: 0, object: "page",
                        reason: "no pack has the page \(page.digest)", frame: page.frame))
            }
            return RepositoryError(
                Corruption(
                    file: "index", offset: 0, object: "page",
                    reason: "no pack has the page \(page.digest); 'varve verify' finds out "
                        + "whether the index is at fault, and then has it rebuilt",
                    frame: page.frame))
        }
        return RepositoryError(
            Corruption(
                file: known.file, offset: known.offset, object: known.object,
                reason: "no readable pack has the page \(page.digest)",
                frame: page.frame))
    }
}

extension PageLocation {
    /// The block's position as one number, ordered by pack and offset.
    package var place: UInt64 { UInt64(pack) << 32 | UInt64(blockOffset) }

    /// True if both pages are in the same block, which then contains both slots.
    fileprivate func isInBlock(of other: PageLocation) -> Bool {
        pack == other.pack && blockOffset == other.blockOffset
            && blockByteCount == other.blockByteCount && blockPageCount == other.blockPageCount
    }
}

/// Reads pages; each thread has its own.
///
/// Blocks are decompressed in batches of up to 128 pages, which are hashed together: one page alone
/// takes six times as long to hash as one of sixteen. A block whose pages are wanted for
/// consecutive frames is decompressed directly into their destination, if there is one.
package struct PageFetcher: ~Copyable {
    // A read has at most the first size and skips gaps of at most the second: page group headers.
    private static let readByteCountMax = 1 << 20
    private static let gapByteCountMax = 256
    private static let batchPageCount = 2 * PageGroupTable.pageLimit

    /// A requested page of the batch.
    private struct Unpacked {
        let request: PageRequest
        let bytes: UnsafeMutableRawPointer
        /// True if it is at its destination.
        let isPlaced: Bool
    }

    /// Receives pages: the frames, their verified contents, valid only during the call, and whether
    /// these are at the destination returned by `place`.
    package typealias Delivery = (PageRange, UnsafeRawBufferPointer, _ isPlaced: Bool) throws ->
        Void

    /// Returns the destination of the pages of consecutive frames; nil: none.
    package typealias Placing = (PageRange) -> UnsafeMutableRawBufferPointer?

    private let repository: Repository
    private let decompressor: Decompressor
    /// `stored`, then `pages`.
    private let memory: UnsafeMutableRawBufferPointer
    private let stored: UnsafeMutableRawBufferPointer
    /// Buffer for pages of the batch without a destination.
    private let pages: UnsafeMutableRawBufferPointer
    private var batch: [Unpacked] = []
    /// Number of pages used in `pages`.
    private var bufferedCount = 0
    private var inputs: [UnsafeRawPointer?] = []
    private var digests: [PageDigest]
    /// Offsets in the pack file of the blocks of the requests being read.
    private var offsets: [UInt64] = []
    /// Pages that prune has moved since they were looked up.
    private var moved: [PageRequest] = []
    /// Number of bytes read from packs so far.
    package private(set) var bytesRead = 0

    private static let storedByteCount =
        readByteCountMax + PageGroupTable.pageLimit * Page.byteCount

    /// Fails if there is no memory.
    package init(_ repository: Repository) throws(RepositoryError) {
        let decompressor = try Decompressor.allocate()
        let storedByteCount = PageFetcher.storedByteCount
        let memory = try PageMemory.reserve(
            byteCount: storedByteCount + PageFetcher.batchPageCount * Page.byteCount)
        self.repository = repository
        self.decompressor = decompressor
        self.memory = memory
        stored = UnsafeMutableRawBufferPointer(rebasing: memory[..<storedByteCount])
        pages = UnsafeMutableRawBufferPointer(rebasing: memory[storedByteCount...])
        digests = Array(repeating: .none, count: PageFetcher.batchPageCount)
    }

    deinit { PageMemory.deallocate(memory) }

    /// Reads pages that are sorted by location.
    ///
    /// - Parameters:
    ///   - requests: the pages.
    ///   - place: returns their destinations. Pages decompressed there are verified in place;
    ///     damaged ones are cleared, and if this throws, so are those not verified by then.
    ///   - damaged: called for each unavailable page; it may throw to stop.
    ///   - deliver: called with runs of frames.
    package mutating func fetch(
        _ requests: ArraySlice<PageRequest>, place: Placing = { _ in nil },
        damaged: (Corruption, PageRequest) throws -> Void, deliver: Delivery
    ) throws {
        do {
            try fetchOnce(requests, place: place, damaged: damaged, deliver: deliver)
            // Each page moves at most once while it is looked for: from a copy that prune removes
            // to the one that is now in the index.
            var rounds = 0
            while !moved.isEmpty {
                rounds += 1
                guard rounds < 1000 else {
                    throw RepositoryError(
                        .busy,
                        "pages are moved faster than they can be read, by another process that "
                            + "prunes again and again; try again when that has ended")
                }
                let again = moved
                moved.removeAll()
                try fetchOnce(again[...], place: place, damaged: damaged, deliver: deliver)
            }
            try flush(damaged: damaged, deliver: deliver)
        } catch {
            for page in batch { PageFetcher.clear(page) }
            throw error
        }
    }

    /// Clears an unverified page at its destination.
    private static func clear(_ page: Unpacked) {
        guard page.isPlaced else { return }
        page.bytes.initializeMemory(as: UInt8.self, repeating: 0, count: Page.byteCount)
    }

    private mutating func fetchOnce(
        _ requests: ArraySlice<PageRequest>, place: Placing,
        damaged: (Corruption, PageRequest) throws -> Void, deliver: Delivery
    ) throws {
        var start = requests.startIndex
        while start < requests.endIndex {
            let first = requests[start]
            do {
                let file = try repository.reader.file(first.location.pack)
                let near = near(requests[start...], in: file)
                if near.isEmpty {
                    let gone = corruption(first, "page group", "prune removed it")
                    try miss(first, gone, damaged: damaged)
                } else {
                    try read(
                        near, from: file, place: place, damaged: damaged, deliver: deliver)
                }
                start += max(near.count, 1)
            } catch let error as RepositoryError {
                guard let corruption = error.corruption, corruption.isOfWholePack
                else { throw error }
                try miss(first, corruption, damaged: damaged)
                start += 1
            }
        }
    }

    /// Looks up again a page that is not at its location.
    private mutating func miss(
        _ request: PageRequest, _ corruption: Corruption,
        damaged: (Corruption, PageRequest) throws -> Void
    ) throws {
        if let location = try repository.location(of: request.digest),
            location != request.location
        {
            moved.append(
                PageRequest(frame: request.frame, digest: request.digest, location: location))
        } else {
            try damaged(corruption, request)
        }
    }

    /// The first requests whose blocks fit in one read, with their offsets in `offsets`; none if
    /// the first block is not in the pack.
    private mutating func near(
        _ requests: ArraySlice<PageRequest>, in file: PackFile
    ) -> ArraySlice<PageRequest> {
        offsets.removeAll(keepingCapacity: true)
        var limit: UInt64 = 0
        for request in requests {
            let place = request.location
            guard place.pack == file.pack,
                let offset = file.offset(
                    ofBlock: place.blockOffset, byteCount: place.blockByteCount)
            else { break }
            let end = offset + UInt64(place.blockByteCount)
            if let first = offsets.first {
                // Ascending addresses mean ascending offsets in an intact pack.
                guard offset >= first, offset <= limit + UInt64(PageFetcher.gapByteCountMax),
                    end - first <= UInt64(PageFetcher.readByteCountMax)
                else { break }
            }
            limit = max(limit, end)
            offsets.append(offset)
        }
        return requests.prefix(offsets.count)
    }

    /// Reads blocks with one call, and decompresses them.
    private mutating func read(
        _ requests: ArraySlice<PageRequest>, from file: PackFile, place: Placing,
        damaged: (Corruption, PageRequest) throws -> Void, deliver: Delivery
    ) throws {
        let base = offsets[0]
        let end = zip(requests, offsets).reduce(base) {
            max($0, $1.1 + UInt64($1.0.location.blockByteCount))
        }
        let buffer = UnsafeMutableRawBufferPointer(rebasing: stored[..<Int(end - base)])
        let count = try file.file.read(into: buffer, at: base)
        bytesRead += count
        var start = requests.startIndex
        while start < requests.endIndex {
            let location = requests[start].location
            var next = start + 1
            while next < requests.endIndex,
                requests[next].location.isInBlock(of: location)
            { next += 1 }
            let offset = offsets[start - requests.startIndex]
            let bytes = UnsafeRawBufferPointer(rebasing: buffer[..<count])
            let limit = PageFetcher.batchPageCount
            if bufferedCount + Int(location.blockPageCount) > limit || batch.count >= limit {
                try flush(damaged: damaged, deliver: deliver)
            }
            let block = requests[start..<next]
            do throws(FormatError) {
                try unpack(block, from: bytes, at: Int(offset - base), to: wanted(block, place))
            } catch {
                for request in block {
                    try damaged(corruption(request, "page group", error.reason), request)
                }
            }
            start = next
        }
    }

    /// The destination of all pages of a block, if they are wanted for consecutive frames.
    private func wanted(
        _ requests: ArraySlice<PageRequest>, _ place: Placing
    ) -> UnsafeMutableRawBufferPointer? {
        let first = requests[requests.startIndex]
        guard requests.count == Int(first.location.blockPageCount) else { return nil }
        for (index, request) in requests.enumerated()
        where Int(request.location.slot) != index
            || request.frame.rawValue != first.frame.rawValue + UInt64(index)
        { return nil }
        return place(PageRange(first: first.frame, count: requests.count))
    }

    /// Decompresses one block: to its destination, or into the batch's own pages.
    private mutating func unpack(
        _ requests: ArraySlice<PageRequest>, from bytes: UnsafeRawBufferPointer, at offset: Int,
        to place: UnsafeMutableRawBufferPointer?
    ) throws(FormatError) {
        let location = requests[requests.startIndex].location
        guard offset + Int(location.blockByteCount) <= bytes.count else {
            throw FormatError(offset: 0, reason: "the pack ends within it")
        }
        let pageCount = Int(location.blockPageCount)
        let start = bufferedCount * Page.byteCount
        let block =
            place
            ?? UnsafeMutableRawBufferPointer(
                rebasing: pages[start..<start + pageCount * Page.byteCount])
        do throws(FormatError) {
            try PageBlock.decode(
                UnsafeRawBufferPointer(
                    rebasing: bytes[offset..<offset + Int(location.blockByteCount)]),
                decompressor: decompressor, into: block)
        } catch {
            place?.initializeMemory(as: UInt8.self, repeating: 0)
            throw error
        }
        if place == nil { bufferedCount += pageCount }
        guard let first = block.baseAddress else { return }
        for request in requests {
            batch.append(
                Unpacked(
                    request: request,
                    bytes: first + Int(request.location.slot) * Page.byteCount,
                    isPlaced: place != nil))
        }
    }

    private func corruption(
        _ request: PageRequest, _ object: String, _ reason: String
    ) -> Corruption {
        Corruption(
            file: PackName.path(request.location.pack), offset: offset(of: request),
            object: object, reason: reason, frame: request.frame)
    }

    /// The offset of a request's block in the current file, for messages.
    private func offset(of request: PageRequest) -> UInt64 {
        let place = request.location
        let file = try? repository.reader.file(place.pack)
        return file?.offset(ofBlock: place.blockOffset, byteCount: place.blockByteCount)
            ?? UInt64(place.blockOffset)
    }

    /// Verifies the digests of the batch and delivers its pages in runs.
    private mutating func flush(
        damaged: (Corruption, PageRequest) throws -> Void, deliver: Delivery
    ) throws {
        hash()
        var run: (range: PageRange, first: Unpacked)?
        func deliverRun() throws {
            guard let (range, first) = run else { return }
            run = nil
            try deliver(
                range, UnsafeRawBufferPointer(start: first.bytes, count: range.byteCount),
                first.isPlaced)
        }
        for (index, page) in batch.enumerated() {
            guard digests[index] == page.request.digest else {
                PageFetcher.clear(page)
                try deliverRun()
                let reason =
                    "its digest is \(digests[index]) instead of \(page.request.digest)"
                try damaged(corruption(page.request, "page", reason), page.request)
                continue
            }
            if let (range, first) = run, range.end == page.request.frame,
                first.bytes + range.byteCount == page.bytes, first.isPlaced == page.isPlaced
            {
                run = (PageRange(first: range.first, count: range.count + 1), first)
            } else {
                try deliverRun()
                run = (PageRange(first: page.request.frame, count: 1), page)
            }
        }
        try deliverRun()
        batch.removeAll(keepingCapacity: true)
        bufferedCount = 0
    }

    /// Hashes the pages of the batch; one page may be wanted for many frames.
    private mutating func hash() {
        inputs.removeAll(keepingCapacity: true)
        for page in batch { inputs.append(UnsafeRawPointer(page.bytes)) }
        while digests.count < inputs.count { digests.append(.none) }
        digests.withUnsafeMutableBufferPointer { digests in
            inputs.withUnsafeBufferPointer {
                PageDigest.hash($0, byteCount: Page.byteCount, into: digests)
            }
        }
    }
}
