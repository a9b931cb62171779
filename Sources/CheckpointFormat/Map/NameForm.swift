/// The valid forms of lineages and labels.
package enum NameForm {
    /// Maximum length of a name in bytes.
    package static let byteCountMax = 255
    /// Minimum number of hexadecimal digits in an ID prefix: shorter ones are probably mistakes.
    package static let idDigitCountMin = 4
    /// Number of hexadecimal digits in a full ID.
    package static let idDigitCount = 64

    /// True if the text is a valid lineage or label.
    ///
    /// Letters, digits, `.`, `_`, `-`, `:`, `@`, `+` and non-ASCII letters; not empty, and not
    /// starting with `-`. So `~` and `/` remain available for `web~3` and for paths.
    package static func isName(_ text: String) -> Bool {
        guard !text.isEmpty, text.utf8.count <= byteCountMax, !text.hasPrefix("-") else {
            return false
        }
        return text.unicodeScalars.allSatisfy { scalar in
            switch scalar {
            case "a"..."z", "A"..."Z", "0"..."9", ".", "_", "-", ":", "@", "+": true
            case _ where scalar.isASCII: false
            default: scalar.properties.isAlphabetic || scalar.properties.numericType != nil
            }
        }
    }

    /// True if two names are the same.
    ///
    /// Compares bytes, like the packs and the index's keys. Swift's `==` treats canonically
    /// equivalent spellings as equal (A with ring above, and the angstrom sign): here they are
    /// different names.
    package static func areSame(_ first: String?, _ second: String?) -> Bool {
        switch (first, second) {
        case (let first?, let second?): first.utf8.elementsEqual(second.utf8)
        case (nil, nil): true
        default: false
        }
    }

    /// Hashes a name's bytes, consistent with `areSame`.
    package static func hash(_ name: String, into hasher: inout Hasher) {
        for byte in name.utf8 { hasher.combine(byte) }
    }

    /// True if a record may contain the text as a name.
    ///
    /// Like `isName`, but accepts any non-ASCII character that is displayed as it is: the set of
    /// letters changes with each version of Unicode, and a later version of this library may have
    /// written the name.
    package static func canBeStored(_ text: String) -> Bool {
        guard !text.isEmpty, text.utf8.count <= byteCountMax, !text.hasPrefix("-") else {
            return false
        }
        return text.unicodeScalars.allSatisfy { scalar in
            if scalar.isASCII { return isName("a\(scalar)") }
            switch scalar.properties.generalCategory {
            case .control, .format, .lineSeparator, .paragraphSeparator, .spaceSeparator,
                .surrogate, .privateUse:
                return false
            default: return true
            }
        }
    }

    /// True if the text can be a prefix of an ID, or a full one.
    package static func isIDPrefix(_ text: String) -> Bool {
        (idDigitCountMin...idDigitCount).contains(text.utf8.count)
            && text.utf8.allSatisfy { Character(Unicode.Scalar($0)).isHexDigit }
    }
}
