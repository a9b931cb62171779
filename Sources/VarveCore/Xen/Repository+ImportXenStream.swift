public import CheckpointEngine
public import CheckpointIndex
public import CheckpointStore
public import GuestModel
public import XenStream

/// The result of importing a stream.
public struct XenImportResult: Sendable {
    /// The checkpoints, one for each complete epoch; a plain stream is one epoch.
    public let checkpoints: [Checkpoint]
    /// A summary of the stream.
    public let summary: XenStreamSummary
    /// Where a checkpointed stream ended without an end record; nil if it had one.
    ///
    /// A stream ends so if its sender died, or if the guest failed over.
    public let cutShort: XenStreamError?
    /// What follows the stream and was not imported; nil if nothing was found.
    public let trailer: XenStreamTrailer?
}

extension Repository {
    /// Imports a stream of Xen to its end; each complete epoch becomes a checkpoint.
    ///
    /// Pages are compared with the lineage's newest checkpoint, and only pages that differ are
    /// stored. A checkpoint is durable when `published` is called with it. An incomplete epoch at
    /// the stream's end is dropped. Blocks on `source` and on the disk. Needs memory for the page
    /// map, the staging pool and the guest's state.
    ///
    /// When it throws, also because it was cancelled, the checkpoints with which `published` was
    /// called stay, and nothing else of the stream does. Throws `invalidStream` if the stream is
    /// damaged, or if it is cut short before its first epoch is complete.
    ///
    /// A stream contains no disks. If its guest has some, set `CaptureOptions.omitsDisks`, so that
    /// the checkpoints say so; nothing checks that.
    ///
    /// - Parameters:
    ///   - format: the format of the stream.
    ///   - lineage: the guest's history.
    ///   - label: a label for the first checkpoint.
    ///   - configuration: xl's JSON, for a libxc stream, which has none.
    ///   - options: sizes and limits.
    ///   - cancellation: ends the import with `cancelled`, at the latest when `source` returns.
    ///   - progress: called in phase `reading` with bytes of the stream; the total is not known.
    ///   - published: called on this thread with each checkpoint, when its epoch has ended. What it
    ///     throws ends the import and is the error's `cause`.
    ///   - trailing: continues to read where `source` stopped, to find out whether something
    ///     follows the stream. If it is nil, only bytes that were read with the stream are
    ///     examined.
    ///   - source: fills a buffer from the current position, and returns the number of bytes, 0 at
    ///     the end. What it throws is the error's `cause`.
    /// - Returns: the checkpoints, and what is to be known about the stream.
    public func importXenStream(
        _ format: XenStreamFormat, lineage: LineageName, label: Label? = nil,
        configuration: [UInt8]? = nil, options: CaptureOptions = CaptureOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil,
        published: (Checkpoint) throws -> Void = { _ in },
        trailing: ((UnsafeMutableRawBufferPointer) throws -> Int)? = nil,
        source: @escaping (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws(CheckpointError) -> XenImportResult {
        let control = StreamImport.control(cancellation, progress)
        var position = 0
        let reporting = { (buffer: UnsafeMutableRawBufferPointer) throws in
            try control.report(.reading, .bytes, position, of: nil)
            let count = try source(buffer)
            position += count
            return count
        }
        do {
            return try withoutActuallyEscaping(published) { published in
                let target = try StreamImport(
                    into: self, lineage: lineage, options: options, control)
                defer { target.close() }
                try target.check(label: label)
                let newest = try newest(ofLineage: lineage)
                let visitor = ImportVisitor(
                    target, label: label, configuration: configuration, published: published
                ) { identity in
                    try History.check(
                        newest, of: self, options, difference: identity.difference)
                }
                return try read(
                    XenStreamReader(format: format, source: reporting), visitor, trailing)
            }
        } catch {
            throw CheckpointError(wrappingStream: error)
        }
    }

    private func read(
        _ reader: consuming XenStreamReader, _ visitor: ImportVisitor,
        _ trailing: ((UnsafeMutableRawBufferPointer) throws -> Int)?
    ) throws -> XenImportResult {
        var cutShort: XenStreamError?
        var trailer: XenStreamTrailer?
        do {
            try reader.run(visitor)
            trailer = try reader.trailer(from: trailing)
        } catch let error as XenStreamError
            where error.code == .truncated && reader.summary.epochCount > 0
        {
            cutShort = error
        }
        return XenImportResult(
            checkpoints: visitor.checkpoints, summary: reader.summary, cutShort: cutShort,
            trailer: trailer)
    }
}

/// Passes the contents of a stream to an import.
private final class ImportVisitor: XenStreamVisitor {
    private let target: StreamImport
    private var label: Label?
    private let configuration: [UInt8]?
    private let published: (Checkpoint) throws -> Void
    private let check: (XenIdentity) throws -> Void
    private(set) var checkpoints: [Checkpoint] = []

    init(
        _ target: StreamImport, label: Label?, configuration: [UInt8]?,
        published: @escaping (Checkpoint) throws -> Void,
        check: @escaping (XenIdentity) throws -> Void
    ) {
        self.target = target
        self.label = label
        self.configuration = configuration
        self.published = published
        self.check = check
    }

    func pages(_ frames: Span<PageFrameNumber>, _ contents: RawSpan) throws {
        try target.write(frames, contents)
    }

    func frame(_ frame: PageFrameNumber, isPopulated: Bool) throws {
        // The content of a page that is only allocated is irrelevant: it is stored as zero.
        if isPopulated { try target.writeZero(frame) } else { target.remove(frame) }
    }

    func endEpoch(_ state: GuestState) throws {
        var state = state
        if let configuration {
            state.records.insert(
                GuestState.Record(kind: XenStateKind.configuration, bytes: configuration + [0]),
                at: 0)
        }
        // The state of a guest comes with its first epoch; nothing has been published before.
        if checkpoints.isEmpty, let identity = XenIdentity(state) { try check(identity) }
        let checkpoint = try target.publish(label: label, state: state)
        label = nil
        checkpoints.append(checkpoint)
        try published(checkpoint)
    }
}
