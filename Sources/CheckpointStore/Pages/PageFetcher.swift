package import CheckpointFormat
package import GuestModel

// Reading pages back. Requests are sorted by place, so that a pack is read from front to back;
// blocks that lie near each other are read in one call. Each page is checked against its digest
// before it is handed on.

/// A page to be read: what for, what it must be, and where it is.
package struct PageRequest: Sendable {
    package let frame: PageFrameNumber
    package let digest: PageDigest
    package let location: PageLocation

    package init(frame: PageFrameNumber, digest: PageDigest, location: PageLocation) {
        self.frame = frame
        self.digest = digest
        self.location = location
    }

    fileprivate var order: (UInt32, UInt32, UInt8, UInt64) {
        (location.pack, location.blockOffset, location.slot, frame.rawValue)
    }
}

extension Repository {
    /// Finds where pages lie, sorted by place.
    package func locate(
        _ pages: [(frame: PageFrameNumber, digest: PageDigest)]
    ) throws(RepositoryError) -> [PageRequest] {
        let digests = pages.map(\.digest)
        var requests: [PageRequest] = []
        requests.reserveCapacity(pages.count)
        var missing: Int?
        try withIndex { index in
            try index.locations(of: digests.span) { position, location in
                if let location {
                    requests.append(
                        PageRequest(
                            frame: pages[position].frame, digest: digests[position],
                            location: location))
                } else if missing == nil {
                    missing = position
                }
            }
        }
        if let missing {
            throw RepositoryError(
                Corruption(
                    file: "index", offset: 0, object: "page",
                    reason: "no pack holds the page \(pages[missing].digest); if all packs are "
                        + "there, delete the folder 'index' to have it rebuilt",
                    frame: pages[missing].frame))
        }
        requests.sort { $0.order < $1.order }
        return requests
    }
}

/// Reads pages; one for each thread.
package struct PageFetcher: ~Copyable {
    // A read spans at most this, and skips gaps of at most that: the heads between page frames.
    private static let readByteCountMax = 1 << 20
    private static let gapByteCountMax = 256

    private let reader: PackReader
    private let decompressor = Decompressor()
    private let stored: UnsafeMutableRawBufferPointer
    private let pages: UnsafeMutableRawBufferPointer
    /// Bytes read from packs so far.
    package private(set) var bytesRead = 0

    package init(reader: PackReader) {
        self.reader = reader
        stored = .allocate(
            byteCount: PageFetcher.readByteCountMax + PageFrameTable.pageLimit * Page.byteCount,
            alignment: 64)
        pages = .allocate(byteCount: PageFrameTable.pageLimit * Page.byteCount, alignment: 64)
    }

    deinit {
        stored.deallocate()
        pages.deallocate()
    }

    /// Reads pages that are sorted by place.
    ///
    /// - Parameters:
    ///   - damaged: called for each page that cannot be had; it may throw to stop.
    ///   - deliver: called with runs of frames and their verified contents, valid inside it only.
    package mutating func fetch(
        _ requests: ArraySlice<PageRequest>,
        damaged: (Corruption, PageRequest) throws -> Void,
        deliver: (PageRange, UnsafeRawBufferPointer) throws -> Void
    ) throws {
        var start = requests.startIndex
        while start < requests.endIndex {
            let first = requests[start].location
            var end = start
            var limit = UInt64(first.blockOffset)
            while end < requests.endIndex {
                let next = requests[end].location
                let nextEnd = UInt64(next.blockOffset) + UInt64(next.blockByteCount)
                guard next.pack == first.pack,
                    UInt64(next.blockOffset) <= limit + UInt64(PageFetcher.gapByteCountMax)
                        || end == start,
                    nextEnd - UInt64(first.blockOffset) <= UInt64(PageFetcher.readByteCountMax)
                        || end == start
                else { break }
                limit = max(limit, nextEnd)
                end += 1
            }
            try fetchNear(
                requests[start..<end], byteCount: Int(limit - UInt64(first.blockOffset)),
                damaged: damaged, deliver: deliver)
            start = end
        }
    }

    /// Reads blocks that one read spans.
    private mutating func fetchNear(
        _ requests: ArraySlice<PageRequest>, byteCount: Int,
        damaged: (Corruption, PageRequest) throws -> Void,
        deliver: (PageRange, UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let base = requests[requests.startIndex].location
        let buffer = UnsafeMutableRawBufferPointer(rebasing: stored[..<byteCount])
        var got = 0
        do {
            got = try reader.file(base.pack).read(into: buffer, at: UInt64(base.blockOffset))
        } catch let error as RepositoryError {
            guard let corruption = error.corruption else { throw error }
            for request in requests { try damaged(corruption, request) }
            return
        }
        bytesRead += got
        var start = requests.startIndex
        while start < requests.endIndex {
            let place = requests[start].location
            let block = requests[start...].prefix { $0.location.blockOffset == place.blockOffset }
            let offset = Int(place.blockOffset - base.blockOffset)
            try fetchBlock(
                block, offset: offset, isWhole: offset + Int(place.blockByteCount) <= got,
                damaged: damaged, deliver: deliver)
            start = block.endIndex
        }
    }

    private func fetchBlock(
        _ requests: ArraySlice<PageRequest>, offset: Int, isWhole: Bool,
        damaged: (Corruption, PageRequest) throws -> Void,
        deliver: (PageRange, UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let place = requests[requests.startIndex].location
        let count = Int(place.blockPageCount) * Page.byteCount
        let contents = UnsafeMutableRawBufferPointer(rebasing: pages[..<count])
        do {
            guard isWhole else {
                throw FormatError(offset: 0, reason: "the pack ends within it")
            }
            let bytes = stored[offset..<offset + Int(place.blockByteCount)]
            try PageBlock.decode(
                UnsafeRawBufferPointer(rebasing: bytes), decompressor: decompressor,
                into: contents)
        } catch let error as FormatError {
            for request in requests {
                try damaged(corruption(request, "page frame", error.reason), request)
            }
            return
        }
        try deliverPages(
            requests, of: UnsafeRawBufferPointer(contents), damaged: damaged, deliver: deliver)
    }

    private func corruption(
        _ request: PageRequest, _ object: String, _ reason: String
    ) -> Corruption {
        Corruption(
            file: PackName.path(request.location.pack),
            offset: UInt64(request.location.blockOffset), object: object, reason: reason,
            frame: request.frame)
    }

    /// Checks the digests of pages of one block and delivers them in runs.
    private func deliverPages(
        _ requests: ArraySlice<PageRequest>, of contents: UnsafeRawBufferPointer,
        damaged: (Corruption, PageRequest) throws -> Void,
        deliver: (PageRange, UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let digests = hash(requests, of: contents)
        var run: (range: PageRange, slot: Int)?
        func flush() throws {
            guard let (range, slot) = run else { return }
            run = nil
            let bytes = contents[slot * Page.byteCount..<slot * Page.byteCount + range.byteCount]
            try deliver(range, UnsafeRawBufferPointer(rebasing: bytes))
        }
        for (position, request) in requests.enumerated() {
            let slot = Int(request.location.slot)
            guard digests[position] == request.digest else {
                try flush()
                try damaged(
                    corruption(
                        request, "page",
                        "its digest is \(digests[position]) and should be \(request.digest)"),
                    request)
                continue
            }
            if let (range, first) = run, range.end == request.frame, first + range.count == slot {
                run = (PageRange(first: range.first, count: range.count + 1), first)
            } else {
                try flush()
                run = (PageRange(first: request.frame, count: 1), slot)
            }
        }
        try flush()
    }

    private func hash(
        _ requests: ArraySlice<PageRequest>, of contents: UnsafeRawBufferPointer
    ) -> [PageDigest] {
        let inputs = requests.map { request in
            contents.baseAddress.map { $0 + Int(request.location.slot) * Page.byteCount }
        }
        return [PageDigest](unsafeUninitializedCapacity: inputs.count) { digests, count in
            for index in 0..<inputs.count {
                (digests.baseAddress.unsafelyUnwrapped + index).initialize(to: .none)
            }
            inputs.withUnsafeBufferPointer {
                PageDigest.hash($0, byteCount: Page.byteCount, into: digests)
            }
            count = inputs.count
        }
    }
}
