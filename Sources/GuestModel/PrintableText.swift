/// Text from a file, a guest or another process, made safe for a terminal or a log.
public enum PrintableText {
    /// The text with every character escaped that is not plainly visible: control characters, such
    /// as the escape that begins a terminal's commands, line breaks, characters that change the
    /// direction of writing, and other invisible ones.
    ///
    /// `\n`, `\r` and `\t` are written as such, the others as `\u{1b}`. Text without any of them is
    /// returned unchanged. O(length).
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

    /// The text of a name that need not be UTF-8: invalid bytes are written as `\xff`.
    ///
    /// Control characters are kept; use `escape` for them. O(length).
    public static func text(of bytes: some Collection<UInt8>) -> String {
        if let text = String(validating: bytes, as: UTF8.self) { return text }
        var parser = Unicode.UTF8.ForwardParser()
        var source = bytes.makeIterator()
        var left = bytes[...]
        var result = ""
        while true {
            switch parser.parseScalar(from: &source) {
            case .valid(let scalar):
                result.unicodeScalars.append(Unicode.UTF8.decode(scalar))
                left = left.dropFirst(scalar.count)
            case .error(let length):
                for byte in left.prefix(length) {
                    result += "\\x" + (byte < 16 ? "0" : "") + String(byte, radix: 16)
                }
                left = left.dropFirst(length)
            case .emptyInput: return result
            }
        }
    }

    /// True if a character is escaped.
    public static func isEscaped(_ scalar: Unicode.Scalar) -> Bool {
        // Nearly all text.
        if scalar.value >= 0x20 && scalar.value < 0x7f { return false }
        switch scalar.properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator: return true
        default: return false
        }
    }
}
