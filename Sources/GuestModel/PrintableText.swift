/// Text from a file, a guest or another process, as a terminal or a log can take it.
public enum PrintableText {
    /// The text with everything escaped that is not simply shown: control characters, such as the
    /// escape that begins a terminal's commands, line breaks, characters that change the direction
    /// of writing, and other invisible ones.
    ///
    /// `\n`, `\r` and `\t` are written so, the others as `\u{1b}`. Text that has none of them comes
    /// back as it is. O(length).
    public static func escape(_ text: String) -> String {
        guard text.unicodeScalars.contains(where: isEscaped) else { return text }
        var result = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\n": result += "\\n"
            case "\r": result += "\\r"
            case "\t": result += "\\t"
            case _ where isEscaped(scalar):
                result += "\\u{\(String(scalar.value, radix: 16))}"
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }

    /// True if a character is not simply shown.
    public static func isEscaped(_ scalar: Unicode.Scalar) -> Bool {
        // Most text by far.
        if scalar.value >= 0x20 && scalar.value < 0x7f { return false }
        switch scalar.properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator: return true
        default: return false
        }
    }
}
