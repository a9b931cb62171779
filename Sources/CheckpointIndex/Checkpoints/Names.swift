import CheckpointFormat
import GuestModel
package import PackStore

/// Validation of lineages and labels.
package enum Names {
    /// Fails unless a lineage or label can have the name.
    static func check(_ name: String, kind: String) throws(RepositoryError) {
        guard NameForm.canBeStored(name) else { throw invalid(name, kind: kind) }
    }

    /// Ends the program: a literal of its source is malformed.
    static func refuseLiteral(_ name: String, kind: String) -> Never {
        // Not a precondition, whose sentence a release build leaves out.
        fatalError("a literal in the source: \(invalid(name, kind: kind).message)")
    }

    private static func invalid(_ name: String, kind: String) -> RepositoryError {
        RepositoryError(
            .invalidName,
            "'\(PrintableText.escape(name))' cannot be a \(kind); use 1 to 255 letters, digits "
                + "and . _ - : @ +, not beginning with -\(hasMark(name) ? markHint : "")")
    }

    private static let markHint = "; an accent must be part of its letter (NFC)"

    /// True if it contains a combining mark.
    private static func hasMark(_ name: String) -> Bool {
        name.unicodeScalars.contains { $0.properties.canonicalCombiningClass != .notReordered }
    }

    /// Fails if a new name has characters that are no letters, or could be mistaken for an ID.
    package static func checkNew(_ name: String, kind: String) throws(RepositoryError) {
        guard NameForm.isName(name) else { throw invalid(name, kind: kind) }
        guard NameForm.isIDPrefix(name) else { return }
        throw RepositoryError(
            .invalidName,
            "'\(name)' cannot be a new \(kind), because it looks like the beginning of an id; "
                + "choose another, for example '\(kind)-\(name)'")
    }

    /// The name most similar to another one; nil if none is similar.
    ///
    /// Names are similar if they differ in at most three characters, and in at most a third of
    /// them: changed, missing, added or transposed. O(names x length squared).
    package static func nearest(to name: String, among names: some Sequence<String>) -> String? {
        let wanted = Array(name.lowercased().unicodeScalars)
        let limit = min(3, max(1, wanted.count / 3))
        var best: (name: String, distance: Int)?
        for candidate in names where !NameForm.areSame(candidate, name) {
            let scalars = Array(candidate.lowercased().unicodeScalars)
            guard abs(scalars.count - wanted.count) <= limit else { continue }
            let distance = Names.distance(wanted, scalars)
            if distance <= limit, distance < best?.distance ?? .max { best = (candidate, distance) }
        }
        return best?.name
    }

    /// The number of single-character edits between two strings (optimal string alignment).
    private static func distance(_ first: [Unicode.Scalar], _ second: [Unicode.Scalar]) -> Int {
        var before: [Int] = []
        var last = Array(0...second.count)
        for row in first.indices {
            var current = [row + 1]
            for column in second.indices {
                var cost = min(last[column + 1], current[column]) + 1
                cost = min(cost, last[column] + (first[row] == second[column] ? 0 : 1))
                if row > 0, column > 0, first[row] == second[column - 1],
                    first[row - 1] == second[column]
                {
                    cost = min(cost, before[column - 1] + 1)
                }
                current.append(cost)
            }
            (before, last) = (last, current)
        }
        return last[second.count]
    }
}
