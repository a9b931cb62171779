public import CheckpointEngine
public import CheckpointStore
import GuestModel
public import XenStream

/// The result of importing a stream.
public struct XenImportResult: Sendable {
    /// The checkpoints, one for each whole epoch; a plain stream is one epoch.
    public let checkpoints: [Checkpoint]
    /// A summary of the stream.
    public let summary: XenStreamSummary
    /// Where a checkpointed stream ended without an end record; nil if it had one.
    ///
    /// Its sender died, or the guest failed over.
    public let cutShort: XenStreamError?
    /// What follows the stream and was not read; nil: nothing, as far as was examined.
    public let trailer: XenStreamTrailer?
}

/// Imports Xen's own streams: each whole epoch becomes a checkpoint.
public enum XenImport {
    /// Reads a stream to its end.
    ///
    /// Pages are compared with the lineage's newest checkpoint, and only what differs is stored. A
    /// checkpoint is durable when `published` is called; an incomplete epoch at the stream's end is
    /// dropped. Blocks as `source` does. Memory: the page map, the staging pool and the guest's
    /// state.
    ///
    /// Throws `XenStreamError`, `CaptureError`, or what `source` and `published` throw; checkpoints
    /// that `published` was called with stay.
    ///
    /// - Parameters:
    ///   - format: the stream's format.
    ///   - repository: opened for writing.
    ///   - lineage: the guest's history.
    ///   - label: a name for the first checkpoint.
    ///   - configuration: xl's JSON, for a bare stream, which has none.
    ///   - options: sizes and limits.
    ///   - published: called with each checkpoint, as its epoch ends.
    ///   - trailing: continues reading where `source` stopped, to find whether something follows
    ///     the stream. nil: only what was read along with the stream is examined.
    ///   - source: fills a buffer from the current position; returns the byte count, 0 at the end.
    public static func run(
        _ format: XenStreamFormat, into repository: Repository, lineage: String,
        label: String? = nil, configuration: [UInt8]? = nil,
        options: CaptureOptions = CaptureOptions(),
        published: (Checkpoint) throws -> Void = { _ in },
        trailing: ((UnsafeMutableRawBufferPointer) throws -> Int)? = nil,
        source: @escaping (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws -> XenImportResult {
        try withoutActuallyEscaping(published) { published in
            let target = try StreamImport(into: repository, lineage: lineage, options: options)
            try target.check(label: label)
            let newest = try repository.newest(ofLineage: lineage)
            let visitor = ImportVisitor(
                target, label: label, configuration: configuration, published: published
            ) { identity in
                try History.check(newest, of: repository, options, difference: identity.difference)
            }
            var reader = XenStreamReader(format: format, source: source)
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
}

/// Passes the contents of a stream to an import.
private final class ImportVisitor: XenStreamVisitor {
    private let target: StreamImport
    private var label: String?
    private let configuration: [UInt8]?
    private let published: (Checkpoint) throws -> Void
    private let check: (XenIdentity) throws -> Void
    private(set) var checkpoints: [Checkpoint] = []

    init(
        _ target: StreamImport, label: String?, configuration: [UInt8]?,
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
