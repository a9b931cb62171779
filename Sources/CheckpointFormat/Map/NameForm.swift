/// The forms that lineages and labels can have.
package enum NameForm {
    /// Bytes of a name at most.
    package static let byteCountMax = 255
    /// Hexadecimal digits of an id that name it: fewer are likely to be a slip.
    package static let idDigitCountMin = 4
    /// Hexadecimal digits of a whole id.
    package static let idDigitCount = 64

    /// True if it can name a lineage or a label.
    ///
    /// Letters, digits, `.`, `_`, `-`, `:`, `@`, `+` and letters beyond ASCII; not empty, and not
    /// starting with `-`. So `~` and `/` stay free for `web~3` and for paths.
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

    /// True if two names are one.
    ///
    /// Byte for byte, as in the packs and the keys of the index. Swift's `==` takes two spellings
    /// of one letter for the same (A with a ring, and the sign of the angstrom): two names here.
    package static func areSame(_ first: String?, _ second: String?) -> Bool {
        switch (first, second) {
        case (let first?, let second?): first.utf8.elementsEqual(second.utf8)
        case (nil, nil): true
        default: false
        }
    }

    /// True if a record can have it for a name.
    ///
    /// As `isName`, but it asks of letters beyond ASCII only that they are shown as they are: which
    /// ones are letters changes with each version of Unicode, and a later program may have written
    /// them.
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

    /// True if it can be the beginning of an id, or a whole one.
    package static func isIDPrefix(_ text: String) -> Bool {
        (idDigitCountMin...idDigitCount).contains(text.utf8.count)
            && text.utf8.allSatisfy { Character(Unicode.Scalar($0)).isHexDigit }
    }
}
