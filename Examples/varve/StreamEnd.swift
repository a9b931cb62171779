import Varve

/// The checkpoints that a command has taken in so far.
final class TakenCheckpoints {
    private(set) var count = 0
    let printout = Printout()
    private let repository: Repository
    private let isJSON: Bool
    private let show: (Checkpoint) throws -> Void

    /// - Parameter show: prints one.
    init(_ repository: Repository, isJSON: Bool, _ show: @escaping (Checkpoint) throws -> Void) {
        self.repository = repository
        self.isJSON = isJSON
        self.show = show
    }

    /// One was published.
    func add(_ checkpoint: Checkpoint) {
        count += 1
        printout.print { try show(checkpoint) }
        if count == 1 { NewLineage.say(checkpoint, in: repository, isJSON: isJSON) }
    }

    /// What ended the command; it says how many were published before.
    func error(for error: any Error) -> ToolError {
        var error = ToolError(error)
        error.storedCount = count
        return error
    }
}

/// What a checkpointed stream's end means.
enum StreamEnd {
    /// Says on standard error that a part epoch was dropped.
    static func report(_ result: XenImportResult, isJSON: Bool) {
        if let sentence = sentence(result) {
            Failure.notice(sentence, code: "streamEnd", isJSON: isJSON)
        }
    }

    /// The last object of a checkpointed stream; nil of a plain one.
    static func object(_ result: XenImportResult) -> JSON? {
        guard result.summary.isCheckpointed else { return nil }
        return .object([
            (
                "stream",
                .object([
                    ("epochs", .integer(result.summary.epochCount)),
                    ("checkpointsStored", .integer(result.checkpoints.count)),
                    ("partialEpochDropped", .bool(result.summary.hasPartialEpoch)),
                    ("error", JSON(result.cutShort?.message)),
                ])
            )
        ])
    }

    private static func sentence(_ result: XenImportResult) -> String? {
        guard result.summary.isCheckpointed else { return nil }
        let epochs = counted(result.summary.epochCount, "whole epoch")
        switch (result.cutShort, result.summary.hasPartialEpoch) {
        case (nil, false):
            return nil
        case (nil, true):
            return "the stream ends after \(epochs) with a part of one, which was dropped"
        case (.some, false):
            return "the stream stopped after \(epochs); all were taken in"
        case (.some(let error), true):
            return "\(error.message); \(epochs) were taken in, and the part after them was dropped"
        }
    }
}
