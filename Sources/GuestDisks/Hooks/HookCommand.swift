import GuestModel

/// A command of the administrator, and how it is asked.
struct HookCommand: Sendable {
    private let words: [String]

    /// Throws `invalidOption` if there are no words.
    init(_ words: [String]) throws(GuestError) {
        guard let first = words.first, !first.isEmpty else {
            throw GuestError(
                code: .invalidOption, message: "the command that cuts disks is empty; name one")
        }
        self.words = words
    }

    /// The disks that it cuts.
    func disks(within deadline: Duration) throws(GuestError) -> [GuestDisk] {
        try succeed(["disks"], within: deadline).disks() ?? []
    }

    /// What it prints; throws `callFailed` if it fails.
    ///
    /// - Parameter inherited: an open file that it inherits.
    func succeed(
        _ more: [String], within deadline: Duration, inherited: Int32? = nil
    ) throws(GuestError) -> HookAnswer {
        let end = try run(more, within: deadline, inherited: inherited)
        guard end.status == 0 else {
            throw GuestError(
                code: .callFailed,
                message: "\(asked(more)) failed with status \(end.status)"
                    + (end.complaint.isEmpty ? "" : ": \(end.complaint)"))
        }
        return HookAnswer(asked: asked(more), bytes: end.bytes)
    }

    func run(
        _ more: [String], within deadline: Duration, inherited: Int32? = nil
    ) throws(GuestError) -> (status: Int32, complaint: String, bytes: [UInt8]) {
        var bytes: [UInt8] = []
        let asked = asked(more)
        do throws(GuestError) {
            let end = try Program.run(words + more, within: deadline, inherited: inherited) {
                (piece) throws(GuestError) in
                guard bytes.count + piece.count <= HookAnswer.byteLimit else {
                    throw GuestError(
                        code: .callFailed,
                        message: "\(asked) printed more than 64 MiB, and was killed")
                }
                bytes += piece
            }
            return (end.status, end.complaint, bytes)
        } catch {
            guard error.code == .timedOut else { throw error }
            throw GuestError(
                code: .timedOut,
                message: "\(asked) did not end within \(deadline), and was killed; allow more "
                    + (more.first == "cut"
                        ? "(CaptureOptions.diskCutBudget)" : "(HookedDisks.Deadlines)"))
        }
    }

    private func asked(_ more: [String]) -> String {
        PrintableText.escape((words + more).joined(separator: " "))
    }
}
