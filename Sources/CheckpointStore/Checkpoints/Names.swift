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
