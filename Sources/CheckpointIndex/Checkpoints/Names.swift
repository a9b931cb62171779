import CheckpointFormat
import GuestModel
package import PackStore

/// What is checked of lineages and labels.
package enum Names {
    /// Fails unless `name` can name a lineage or a label.
    package static func check(_ name: String, kind: String) throws(RepositoryError) {
        guard NameForm.isName(name) else {
            throw RepositoryError(
                .invalidName,
                "'\(PrintableText.escape(name))' cannot be a \(kind); use 1 to 255 letters, digits "
                    + "and . _ - : @ +, not beginning with -\(hasMark(name) ? markHint : "")")
        }
    }

    private static let markHint = "; an accent is part of its letter (NFC), and no mark of its own"

    /// True if a character of it is a mark that combines with the one before.
    private static func hasMark(_ name: String) -> Bool {
        name.unicodeScalars.contains { $0.properties.canonicalCombiningClass != .notReordered }
    }

    /// Fails if a new name would look like an id.
    package static func checkNew(_ name: String, kind: String) throws(RepositoryError) {
        guard NameForm.isIDPrefix(name) else { return }
        throw RepositoryError(
            .invalidName,
            "'\(name)' cannot be a new \(kind), because it looks like the beginning of an id; "
                + "choose another, for example '\(kind)-\(name)'")
    }

    /// The name among some that is most like another one; nil if none is like it.
    ///
    /// Like it are names that up to three characters, and no more than a third of them, make
    /// different: changed, missing, added or in each other's place. O(names x length squared).
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

    /// Single-character edits between two texts (optimal string alignment).
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
