/// A guest's configuration from outside, checked before it is put into a stream.
///
/// Two forms are known: JSON as `xl save` writes it, an object with `c_info` at its top, and an
/// xl.cfg, according to the scanner and grammar of Xen's tools/libs/util. Whether the values are
/// valid for a guest is left to xl.
/// guest is xl's to say.
package struct XenConfigurationText: Hashable, Sendable {
    /// The text, without a NUL.
    package let bytes: [UInt8]
    /// True for JSON, false for an xl.cfg.
    package let isJSON: Bool

    /// Larger ones are rejected: 1 MiB.
    package static let byteCountMax = 1 << 20

    /// Checks a text; one NUL at its end is dropped.
    ///
    /// Throws `XenStreamError.Code.malformed` if it is neither form. O(length).
    package init(_ bytes: [UInt8]) throws(XenStreamError) {
        let text = bytes.last == 0 ? Array(bytes.dropLast()) : bytes
        func refusal(_ reason: String) -> XenStreamError {
            XenStreamError(
                .malformed,
                "it is not a guest's configuration, neither an xl.cfg nor JSON of xl: \(reason)")
        }
        guard text.count <= XenConfigurationText.byteCountMax else {
            throw refusal("it is larger than 1 MiB")
        }
        guard let first = text.first(where: { !" \n\t\r".utf8.contains($0) }) else {
            throw refusal("it is empty")
        }
        guard !text.contains(0), String(validating: text, as: UTF8.self) != nil else {
            throw refusal("it is not text")
        }
        isJSON = first == UInt8(ascii: "{") || first == UInt8(ascii: "[")
        if isJSON {
            var scanner = JSONScanner(text)
            guard scanner.isWhole() else {
                throw refusal("line \(scanner.line) is not valid JSON")
            }
            guard XenConfiguration(text).hasObject(at: ["c_info"]) else {
                throw refusal("the JSON is not an object with c_info at its top")
            }
        } else {
            var scanner = ConfigurationScanner(text)
            guard scanner.isWhole() else {
                throw refusal("line \(scanner.line) is not an assignment of an xl.cfg")
            }
            guard scanner.assignmentCount > 0 else { throw refusal("it has no assignments") }
        }
        self.bytes = text
    }
}

/// Text that is scanned byte by byte, from front to back.
private struct ByteScanner {
    private let bytes: [UInt8]
    private(set) var position = 0
    /// The line that the next byte is on, from 1.
    private(set) var line = 1

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// The next byte; nil at the end.
    var next: UInt8? { position < bytes.count ? bytes[position] : nil }

    mutating func advance() {
        if next == UInt8(ascii: "\n") { line += 1 }
        position += 1
    }

    /// Consumes a byte if it is the next.
    mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard next == UInt8(ascii: character) else { return false }
        advance()
        return true
    }

    /// Consumes a word if it is the next.
    mutating func takeWord(_ word: StaticString) -> Bool {
        let isNext = word.withUTF8Buffer { bytes[position...].starts(with: $0) }
        if isNext { position += word.utf8CodeUnitCount }
        return isNext
    }

    /// Consumes bytes as long as they are of a kind; returns the count.
    mutating func skip(_ isOfKind: (UInt8) -> Bool) -> Int {
        let start = position
        while let byte = next, isOfKind(byte) { advance() }
        return position - start
    }
}

private func isDigit(_ byte: UInt8) -> Bool { (0x30...0x39).contains(byte) }
private func isLower(_ byte: UInt8) -> Bool { (0x61...0x7a).contains(byte) }

/// Checks JSON (RFC 8259).
private struct JSONScanner {
    /// Deeper than any configuration.
    private static let depthMax = 64

    private var scanner: ByteScanner

    init(_ bytes: [UInt8]) { scanner = ByteScanner(bytes) }

    /// The line where it stopped.
    var line: Int { scanner.line }

    /// True if the text is one value.
    mutating func isWhole() -> Bool {
        guard value(0) else { return false }
        skipSpace()
        return scanner.next == nil
    }

    private mutating func skipSpace() {
        _ = scanner.skip { " \n\t\r".utf8.contains($0) }
    }

    private mutating func value(_ depth: Int) -> Bool {
        guard depth < JSONScanner.depthMax else { return false }
        skipSpace()
        switch scanner.next {
        case UInt8(ascii: "{"): return list(isObject: true, depth)
        case UInt8(ascii: "["): return list(isObject: false, depth)
        case UInt8(ascii: "\""): return string()
        case UInt8(ascii: "t"): return scanner.takeWord("true")
        case UInt8(ascii: "f"): return scanner.takeWord("false")
        case UInt8(ascii: "n"): return scanner.takeWord("null")
        default: return number()
        }
    }

    private mutating func list(isObject: Bool, _ depth: Int) -> Bool {
        let end: Unicode.Scalar = isObject ? "}" : "]"
        scanner.advance()
        skipSpace()
        if scanner.take(end) { return true }
        while true {
            if isObject {
                skipSpace()
                guard string() else { return false }
                skipSpace()
                guard scanner.take(":") else { return false }
            }
            guard value(depth + 1) else { return false }
            skipSpace()
            if scanner.take(end) { return true }
            guard scanner.take(",") else { return false }
        }
    }

    private mutating func string() -> Bool {
        guard scanner.take("\"") else { return false }
        while let byte = scanner.next {
            guard byte >= 0x20 else { return false }
            scanner.advance()
            if byte == UInt8(ascii: "\"") { return true }
            if byte == UInt8(ascii: "\\") {
                guard let escaped = scanner.next else { return false }
                scanner.advance()
                if escaped == UInt8(ascii: "u") {
                    for _ in 0..<4 {
                        guard let digit = scanner.next, Character(Unicode.Scalar(digit)).isHexDigit
                        else { return false }
                        scanner.advance()
                    }
                } else if !"\"\\/bfnrt".utf8.contains(escaped) {
                    return false
                }
            }
        }
        return false
    }

    private mutating func number() -> Bool {
        _ = scanner.take("-")
        if !scanner.take("0"), scanner.skip(isDigit) == 0 { return false }
        if scanner.take("."), scanner.skip(isDigit) == 0 { return false }
        if scanner.take("e") || scanner.take("E") {
            if !scanner.take("+") { _ = scanner.take("-") }
            if scanner.skip(isDigit) == 0 { return false }
        }
        return true
    }
}

/// Checks an xl.cfg: `name = value` and `name += value`, one per line or separated by semicolons;
/// values are numbers, quoted strings, and lists of values; `#` begins a comment.
private struct ConfigurationScanner {
    /// Deeper than any configuration.
    private static let depthMax = 16

    private(set) var assignmentCount = 0
    private var scanner: ByteScanner

    init(_ bytes: [UInt8]) { scanner = ByteScanner(bytes) }

    /// The line where it stopped.
    var line: Int { scanner.line }

    /// True if the text consists of assignments only.
    mutating func isWhole() -> Bool {
        while true {
            skipSpace()
            if scanner.next == nil { return true }
            if endsStatement() { continue }
            guard assignment() else { return false }
            assignmentCount += 1
            skipSpace()
            guard scanner.next == nil || endsStatement() else { return false }
        }
    }

    private mutating func skipSpace() {
        _ = scanner.skip { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\t") }
    }

    private mutating func endsStatement() -> Bool { scanner.take(";") || endsLine() }

    private mutating func endsLine() -> Bool {
        guard scanner.take("#") else { return scanner.take("\n") }
        _ = scanner.skip { $0 != UInt8(ascii: "\n") }
        return scanner.take("\n") || scanner.next == nil
    }

    private mutating func skipLines() {
        skipSpace()
        while scanner.next != nil, endsLine() { skipSpace() }
    }

    private mutating func assignment() -> Bool {
        guard let first = scanner.next, isLower(first) else { return false }
        _ = scanner.skip { isLower($0) || isDigit($0) || $0 == UInt8(ascii: "_") }
        skipSpace()
        _ = scanner.take("+")
        guard scanner.take("=") else { return false }
        skipSpace()
        return value(0)
    }

    private mutating func value(_ depth: Int) -> Bool {
        switch scanner.next {
        case UInt8(ascii: "["): return list(depth)
        case UInt8(ascii: "'"), UInt8(ascii: "\""): return string()
        default:
            _ = scanner.take("-")
            guard let first = scanner.next, isDigit(first) else { return false }
            return scanner.skip {
                isDigit($0) || (0x61...0x66).contains($0) || $0 == UInt8(ascii: "x")
            } > 0
        }
    }

    private mutating func list(_ depth: Int) -> Bool {
        guard depth < ConfigurationScanner.depthMax, scanner.take("[") else { return false }
        skipLines()
        while !scanner.take("]") {
            guard value(depth + 1) else { return false }
            skipLines()
            if scanner.take("]") { return true }
            guard scanner.take(",") else { return false }
            skipLines()
        }
        return true
    }

    private mutating func string() -> Bool {
        let quote = scanner.next
        scanner.advance()
        while let byte = scanner.next, byte != UInt8(ascii: "\n") {
            scanner.advance()
            if byte == quote { return true }
            if byte == UInt8(ascii: "\\") {
                guard scanner.next != nil, scanner.next != UInt8(ascii: "\n") else { return false }
                scanner.advance()
            }
        }
        return false
    }
}
