/// Reads JSON (RFC 8259) value by value, without building a tree: an answer may have a million
/// extents.
///
/// Each method takes one value and returns nil, or false, if there is another or none; the rest is
/// then of no use. Keys of an object are unique, text is UTF-8, and nesting ends at 16.
struct JSONReader {
    private static let depthLimit = 16
    /// Of an object whose keys are looked at.
    private static let keyLimit = 64

    private let bytes: [UInt8]
    private var position = 0
    private var depth = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// True if nothing but white space is left.
    mutating func isAtEnd() -> Bool {
        skipSpace()
        return position == bytes.count
    }

    private var next: UInt8? { position < bytes.count ? bytes[position] : nil }

    private mutating func skipSpace() {
        while let byte = next, [0x20, 0x0a, 0x0d, 0x09].contains(byte) { position += 1 }
    }

    private mutating func take(_ word: StaticString) -> Bool {
        let matches = word.withUTF8Buffer { bytes[position...].starts(with: $0) }
        if matches { position += word.utf8CodeUnitCount }
        return matches
    }

    /// An object; `value` takes the value of each key.
    mutating func object(_ value: (inout JSONReader, String) -> Bool) -> Bool {
        var keys: Set<String> = []
        return list("{", "}") { reader in
            guard let key = reader.string(), keys.count < JSONReader.keyLimit,
                keys.insert(key).inserted
            else { return false }
            reader.skipSpace()
            return reader.take(":") && value(&reader, key)
        }
    }

    /// An array; `value` takes each value.
    mutating func array(_ value: (inout JSONReader) -> Bool) -> Bool {
        list("[", "]", value)
    }

    private mutating func list(
        _ opening: StaticString, _ closing: StaticString, _ item: (inout JSONReader) -> Bool
    ) -> Bool {
        skipSpace()
        guard depth < JSONReader.depthLimit, take(opening) else { return false }
        depth += 1
        defer { depth -= 1 }
        skipSpace()
        if take(closing) { return true }
        while true {
            guard item(&self) else { return false }
            skipSpace()
            if take(closing) { return true }
            guard take(",") else { return false }
        }
    }

    /// An integer of 64 bits without a sign.
    mutating func unsigned() -> UInt64? {
        skipSpace()
        let digits = bytes[position...].prefix { 0x30...0x39 ~= $0 }
        guard !digits.isEmpty, digits.count == 1 || digits.first != UInt8(ascii: "0") else {
            return nil
        }
        position = digits.endIndex
        // Not the beginning of another number.
        if let next, [UInt8(ascii: "."), UInt8(ascii: "e"), UInt8(ascii: "E")].contains(next) {
            return nil
        }
        return UInt64(String(decoding: digits, as: UTF8.self))
    }

    /// True if the next value is null, which it takes.
    mutating func isNull() -> Bool {
        skipSpace()
        return take("null")
    }

    /// A string.
    mutating func string() -> String? {
        skipSpace()
        guard take("\"") else { return nil }
        var text: [UInt8] = []
        while let byte = next {
            position += 1
            switch byte {
            case UInt8(ascii: "\""): return String(validating: text, as: UTF8.self)
            case UInt8(ascii: "\\"):
                guard let scalar = escaped() else { return nil }
                text += Array(String(Character(scalar)).utf8)
            case 0..<0x20: return nil
            default: text.append(byte)
            }
        }
        return nil
    }

    private mutating func escaped() -> Unicode.Scalar? {
        guard let byte = next else { return nil }
        position += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"):
            return Unicode.Scalar(byte)
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{c}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"):
            guard let first = unit() else { return nil }
            guard 0xd800...0xdbff ~= first else { return Unicode.Scalar(first) }
            guard take("\\u"), let second = unit(), 0xdc00...0xdfff ~= second else { return nil }
            return Unicode.Scalar(0x10000 + (first - 0xd800) << 10 + second - 0xdc00)
        default: return nil
        }
    }

    private mutating func unit() -> UInt32? {
        let digits = bytes[position...].prefix(4)
        guard digits.count == 4, digits.allSatisfy({ isHexadecimal($0) }) else { return nil }
        position += 4
        return UInt32(String(decoding: digits, as: UTF8.self), radix: 16)
    }

    private func isHexadecimal(_ byte: UInt8) -> Bool {
        0x30...0x39 ~= byte || 0x41...0x46 ~= byte || 0x61...0x66 ~= byte
    }

    /// Takes a value of any kind.
    mutating func skip() -> Bool {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"):
            return list("{", "}") { reader in
                guard reader.string() != nil else { return false }
                reader.skipSpace()
                return reader.take(":") && reader.skip()
            }
        case UInt8(ascii: "["): return array { $0.skip() }
        case UInt8(ascii: "\""): return string() != nil
        case UInt8(ascii: "t"): return take("true")
        case UInt8(ascii: "f"): return take("false")
        case UInt8(ascii: "n"): return take("null")
        default: return number()
        }
    }

    private mutating func digits() -> Int {
        let digits = bytes[position...].prefix { 0x30...0x39 ~= $0 }
        position = digits.endIndex
        return digits.count
    }

    private mutating func number() -> Bool {
        _ = take("-")
        if !take("0"), digits() == 0 { return false }
        if take("."), digits() == 0 { return false }
        if take("e") || take("E") {
            if !take("+") { _ = take("-") }
            if digits() == 0 { return false }
        }
        return true
    }
}
