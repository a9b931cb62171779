/// The forms that lineages and labels can have.
package enum Names {
    /// Bytes of a name at most.
    package static let byteCountMax = 255

    /// Fails unless `name` can name a lineage or a label.
    ///
    /// Letters, digits, `.`, `_`, `-`, `:`, `@`, `+` and letters beyond ASCII; not empty, and not
    /// starting with `-`. So `~` and `/` stay free for `web~3` and for paths.
    package static func check(_ name: String, kind: String) throws(RepositoryError) {
        let allowed = name.unicodeScalars.allSatisfy { scalar in
            scalar.properties.isAlphabetic || scalar.properties.numericType != nil
                || "._-:@+".unicodeScalars.contains(scalar)
        }
        guard allowed, !name.isEmpty, !name.hasPrefix("-"), name.utf8.count <= byteCountMax else {
            throw RepositoryError(
                .invalidName,
                "'\(name)' cannot be a \(kind); use 1 to 255 letters, digits and . _ - : @ +, not "
                    + "beginning with -")
        }
    }
}

extension Repository {
    /// Fails unless a checkpoint of a lineage may be taken, and have a label.
    ///
    /// A name means one thing: no label is a lineage's name, nor the other way round, and the
    /// checkpoints that share a label are of one lineage; the newest of them has it.
    package func checkNames(
        lineage: String, label: String?
    ) throws(RepositoryError) {
        try Names.check(lineage, kind: "lineage")
        if let label { try Names.check(label, kind: "label") }
        let exists = try newest(ofLineage: lineage) != nil
        if !exists, let id = try withCurrentIndex({ try $0.labelled(lineage) }) {
            throw RepositoryError(
                .invalidName,
                "'\(lineage)' is the label of checkpoint \(id.short), so no lineage can begin with "
                    + "this name; choose another")
        }
        guard let label else { return }
        let isLineage = try newest(ofLineage: label) != nil
        if isLineage || label == lineage {
            throw RepositoryError(
                .invalidName,
                "'\(label)' is the name of a lineage, so it cannot be a label; choose another")
        }
        guard let id = try withCurrentIndex({ try $0.labelled(label) }) else { return }
        let other = try checkpoint(id: id)
        guard other.lineage == lineage else {
            throw RepositoryError(
                .invalidName,
                "'\(label)' is the label of checkpoint \(id.short) of lineage '\(other.lineage)'; "
                    + "choose another")
        }
    }
}
