public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import PackStore

/// A raw image of memory or of a disk that can be read in any order, such as a file.
public protocol ImageSource: Sendable {
    /// The size of the image in bytes when it was opened: a positive multiple of 4096, or of the
    /// block size for a disk.
    var byteCount: Int { get }

    /// Fills a buffer from an offset in the image; throws if the image ends before the buffer is
    /// full.
    ///
    /// Called on several threads at once. It may block.
    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws

    /// Returns the next range, from an offset on, whose bytes may be nonzero; nil if the rest of
    /// the image is zero.
    ///
    /// What lies between such ranges is not read. By default everything is read. Called on one
    /// thread, with ascending offsets. The result may be wrong for bytes that are written
    /// meanwhile; `checkUnchanged` detects that.
    func nextData(from offset: Int) throws -> Range<Int>?

    /// Throws if the image was written to since it was opened, so that reads may have seen
    /// different images.
    ///
    /// Called once, after the last read and before the checkpoint exists.
    func checkUnchanged() throws
}

extension ImageSource {
    /// Returns the rest of the image: everything is read.
    public func nextData(from offset: Int) throws -> Range<Int>? { offset..<byteCount }
}

extension Repository {
    /// Imports a raw memory image that is read from beginning to end.
    ///
    /// Every page is compared with the lineage's newest checkpoint, and only pages that differ are
    /// stored. Needs memory for the page map and the pool. One thread reads; for an image that can
    /// be read in any order the other `importImage` is faster. Blocks on `read` and on the disk.
    /// When it throws, also because it was cancelled, nothing is published.
    ///
    /// - Parameters:
    ///   - lineage: the guest's history.
    ///   - label: a label for this checkpoint.
    ///   - options: sizes and limits.
    ///   - cancellation: ends the import with `cancelled`, at the latest when `read` returns.
    ///   - progress: called in phase `reading` with bytes; the total is not known.
    ///   - read: fills a buffer from the current position, and returns the number of bytes, 0 at
    ///     the end. What it throws is the `cause` of a `callerFailed`.
    /// - Returns: the checkpoint, which is durable.
    public func importImage(
        lineage: LineageName, label: Label? = nil, options: CaptureOptions = CaptureOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil,
        read: (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws(CheckpointError) -> Checkpoint {
        let control = StreamImport.control(cancellation, progress)
        return try importImage(lineage: lineage, label: label, options: options, control) {
            try ImageStaging.stageAll($0, control, read)
        }
    }

    /// Imports a raw memory image that can be read in any order.
    ///
    /// Every page is compared with the lineage's newest checkpoint, and only pages that differ are
    /// stored. Each worker reads what it compares, so all processors read, and the data is compared
    /// while it is in the caches. Holes are not read. Needs memory for the page map and the pool.
    /// Blocks. When it throws, also because it was cancelled, nothing is published.
    ///
    /// - Parameters:
    ///   - image: the image, which is read on several threads. What it throws is the `cause` of a
    ///     `callerFailed`.
    ///   - lineage: the guest's history.
    ///   - label: a label for this checkpoint.
    ///   - options: sizes and limits.
    ///   - cancellation: ends the import with `cancelled`.
    ///   - progress: called on this thread in phase `reading`, with the number of bytes that were
    ///     read or are being read.
    /// - Returns: the checkpoint, which is durable.
    public func importImage(
        _ image: some ImageSource, lineage: LineageName, label: Label? = nil,
        options: CaptureOptions = CaptureOptions(), cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> Checkpoint {
        try importVolumes(
            memory: image, disks: [], lineage: lineage, label: label, options: options,
            cancellation: cancellation, progress: progress)
    }

    /// Imports raw images of a guest's memory and disks as one checkpoint, as `importImage` does.
    ///
    /// They must be of one instant. The checkpoint has exactly these volumes: a disk of the
    /// lineage's newest checkpoint that is not given has been removed, and an import without disks
    /// into a lineage that has some is refused with `invalidOption` unless
    /// `CaptureOptions.omitsDisks` is set; so is one without memory into a lineage that has some,
    /// unless `CaptureOptions.acceptsGuestChange` is. A disk that is known by its name may have
    /// another size.
    /// Needs memory for the page maps of all volumes. Blocks. When it throws, also because it was
    /// cancelled, nothing is published.
    ///
    /// - Parameters:
    ///   - memory: the memory; nil: the checkpoint has disks only.
    ///   - disks: the disks, each with a name of its own. Holes are not read.
    ///   - lineage: the guest's history.
    ///   - label: a label for this checkpoint.
    ///   - options: sizes and limits.
    ///   - cancellation: ends the import with `cancelled`.
    ///   - progress: called in phase `reading`, on several threads at once, with bytes of all
    ///     images; holes of a disk are not counted.
    /// - Returns: the checkpoint, which is durable.
    public func importVolumes(
        memory: (any ImageSource)?, disks: [RawDiskImage], lineage: LineageName,
        label: Label? = nil, options: CaptureOptions = CaptureOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> Checkpoint {
        let control = StreamImport.control(cancellation, progress)
        let total = (memory?.byteCount ?? 0) + disks.reduce(0) { $0 + $1.source.byteCount }
        let source =
            disks.isEmpty
            ? nil : ImageDisks(disks, control, after: memory?.byteCount ?? 0, of: total)
        guard memory != nil || source != nil else {
            throw CheckpointError(.sizeMismatch, "there is no image to import; name at least one")
        }
        return try importImage(
            lineage: lineage, label: label, options: options, disks: source, control
        ) { (stream) throws in
            guard let memory else {
                return try ImageStaging.checkNoMemory(against: stream.parent, options)
            }
            try ImageStaging.check(byteCount: memory.byteCount)
            let pageCount = memory.byteCount / Page.byteCount
            try ImageStaging.check(pageCount: pageCount, against: stream.parent)
            var stretches = ImageStretches(pageCount: pageCount)
            while let stretch = try stretches.next(memory) {
                let range = PageRange(
                    first: PageFrameNumber(UInt64(stretch.pages.lowerBound)),
                    count: stretch.pages.count)
                if stretch.isHole {
                    try stream.submitZeros(range)
                } else {
                    try stream.submit(range) { pages, buffer in
                        try memory.read(buffer, at: Int(pages.first.rawValue) * Page.byteCount)
                    }
                }
                try control.report(
                    .reading, .bytes, stretch.pages.upperBound * Page.byteCount, of: total)
            }
            try stream.drain()
            try memory.checkUnchanged()
        }
    }

    private func importImage(
        lineage: LineageName, label: Label?, options: CaptureOptions,
        disks: ImageDisks? = nil, _ control: WorkControl,
        _ stage: (StreamImport) throws -> Void
    ) throws(CheckpointError) -> Checkpoint {
        do throws(RepositoryError) {
            try options.check()
        } catch {
            throw CheckpointError(error)
        }
        var options = options
        // No guest is paused meanwhile: a small pool keeps the data in the caches.
        options.poolByteCount = min(
            options.poolByteCount, 8 * max(1, options.workerCount) * StagingPool.slotByteCount)
        let stream = try StreamImport(
            into: self, lineage: lineage, options: options, hasDisks: disks != nil, control)
        defer { stream.close() }
        do {
            try stream.check(label: label)
            try History.check(stream.parent, of: self, options) { state in
                state.records.isEmpty
                    ? nil
                    : "its newest checkpoint has state other than memory, which a raw image lacks"
            }
            try stage(stream)
        } catch {
            throw stream.abandon(error)
        }
        return try stream.publish(label: label, disks: disks)
    }
}

private enum ImageStaging {
    /// Reads the image into batches.
    static func stageAll(
        _ stream: StreamImport, _ control: WorkControl,
        _ read: (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws {
        var pageCount = 0
        var isAtEnd = false
        while !isAtEnd {
            let count = try stream.submit { slot in
                var filled = 0
                while filled < slot.count {
                    let count = try read(UnsafeMutableRawBufferPointer(rebasing: slot[filled...]))
                    if count == 0 { break }
                    filled += count
                }
                isAtEnd = filled < slot.count
                try check(byteCount: pageCount * Page.byteCount + filled)
                guard filled > 0 else { return nil }
                return PageRange(
                    first: PageFrameNumber(UInt64(pageCount)), count: filled / Page.byteCount)
            }
            pageCount += count
            if let parent = stream.parent, parent.memory.pageCount > 0,
                pageCount > parent.memory.pageCount
            {
                try check(pageCount: pageCount, against: parent)
            }
            guard count > 0 else { continue }
            try control.report(.reading, .bytes, pageCount * Page.byteCount, of: nil)
        }
        try check(pageCount: pageCount, against: stream.parent)
    }

    static func check(byteCount: Int) throws(CheckpointError) {
        guard byteCount % Page.byteCount == 0 else {
            throw CheckpointError(
                .sizeMismatch,
                "the image has \(counted(byteCount, "byte")), which is not a multiple of "
                    + "\(Page.byteCount); it "
                    + "is truncated or not a raw memory image")
        }
    }

    /// A lineage with memory gets checkpoints without it only if that was said.
    static func checkNoMemory(
        against parent: Checkpoint?, _ options: CaptureOptions
    ) throws(CheckpointError) {
        guard let parent, parent.memory.pageCount > 0, !options.acceptsGuestChange else { return }
        throw CheckpointError(
            .invalidOption,
            "the newest checkpoint of lineage '\(parent.lineage)' has memory, and there is no "
                + "image of it; name it too, or say that the lineage goes on without "
                + "(--accept-guest-change, CaptureOptions.acceptsGuestChange)")
    }

    /// An image must have pages, and as many as its lineage's newest checkpoint, if that has
    /// memory.
    static func check(
        pageCount: Int, against parent: Checkpoint?
    ) throws(CheckpointError) {
        guard pageCount > 0 else {
            throw CheckpointError(.sizeMismatch, "the image is empty; there is nothing to import")
        }
        guard UInt64(pageCount) <= PageMap.frameEndMax else {
            throw CheckpointError(
                .sizeMismatch, "the image has \(pageCount) pages, and at most 2^32 can be imported")
        }
        guard let parent, ![0, pageCount].contains(parent.memory.pageCount) else { return }
        throw CheckpointError(
            .sizeMismatch,
            "the image is \(pageCount > parent.memory.pageCount ? "larger" : "smaller") than the "
                + "\(parent.memory.byteCount) bytes of memory of lineage '\(parent.lineage)'; name "
                + "another lineage for another guest")
    }
}
