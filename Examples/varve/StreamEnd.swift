import Varve

/// The checkpoints that a command has stored so far.
final class TakenCheckpoints {
    private(set) var count = 0
    let printout = Printout()
    private let repository: Repository
    private let isJSON: Bool
    private let show: (Checkpoint) throws -> Void

    /// - Parameter show: prints one checkpoint.
    init(_ repository: Repository, isJSON: Bool, _ show: @escaping (Checkpoint) throws -> Void) {
        self.repository = repository
        self.isJSON = isJSON
        self.show = show
    }

    /// Called when one was published.
    func add(_ checkpoint: Checkpoint) {
        count += 1
        printout.print { try show(checkpoint) }
        if count == 1 { NewLineage.say(checkpoint, in: repository, isJSON: isJSON) }
    }

    /// The error that ended the command, with the number of checkpoints published before.
    func error(for error: any Error) -> ToolError {
        var error = ToolError(error)
        error.storedCount = count
        return error
    }
}

/// Messages about a stream in addition to its checkpoints.
enum StreamEnd {
    /// Reports on standard error what was dropped, skipped or not read.
    static func report(_ result: XenImportResult, isJSON: Bool) {
        for sentence in sentences(result) {
            Failure.notice(sentence, code: "streamEnd", isJSON: isJSON)
        }
    }

    /// The last object of a checkpointed stream; nil for a plain one without anything to report.
    static func object(_ result: XenImportResult) -> JSON? {
        guard result.summary.isCheckpointed || !sentences(result).isEmpty else { return nil }
        let trailer = result.trailer.map { trailer in
            JSON.object([
                ("offset", .integer(Int(trailer.offset))),
                ("format", JSON(trailer.format?.rawValue)),
            ])
        }
        return .object([
            (
                "stream",
                .object([
                    ("epochs", .integer(result.summary.epochCount)),
                    ("checkpointsStored", .integer(result.checkpoints.count)),
                    ("partialEpochDropped", .bool(result.summary.hasPartialEpoch)),
                    ("error", JSON(result.cutShort?.message)),
                    (
                        "reservedFieldsIgnored",
                        .integer(result.summary.ignoredReservedFields.count)
                    ),
                    ("recordsSkipped", .integer(result.summary.skippedRecords.count)),
                    ("trailer", trailer ?? .null),
                ])
            )
        ])
    }

    private static func sentences(_ result: XenImportResult) -> [String] {
        var sentences: [String] = []
        if let sentence = end(result) { sentences.append(sentence) }
        let reserved = result.summary.ignoredReservedFields
        if let place = place(reserved) {
            sentences.append(
                "\(counted(reserved.count, "reserved field")) not zero, ignored as Xen's "
                    + "specification requires: the first \(place)")
        }
        let skipped = result.summary.skippedRecords
        if let place = place(skipped) {
            sentences.append(
                "skipped \(counted(skipped.count, "unknown optional record")): the first "
                    + place)
        }
        if let trailer = result.trailer {
            let what = trailer.format.map { "a second stream (\($0.rawValue))" } ?? "other bytes"
            sentences.append(
                "the stream ends at offset \(trailer.offset), and \(what) after it "
                    + "\(trailer.format == nil ? "were" : "was") not read; import each stream by "
                    + "itself")
        }
        return sentences
    }

    private static func place(_ omission: XenStreamOmission) -> String? {
        guard let record = omission.firstRecord, let offset = omission.firstOffset else {
            return nil
        }
        return "in \(record) at offset \(offset)"
    }

    private static func end(_ result: XenImportResult) -> String? {
        guard result.summary.isCheckpointed else { return nil }
        let epochs = counted(result.summary.epochCount, "whole epoch")
        switch (result.cutShort, result.summary.hasPartialEpoch) {
        case (nil, false):
            return nil
        case (nil, true):
            return "the stream ends after \(epochs) with a part of one, which was dropped"
        case (.some, false):
            return "the stream stopped after \(epochs); all were imported"
        case (.some(let error), true):
            return "\(error.message); \(epochs) were imported, and the part after them was dropped"
        }
    }
}
