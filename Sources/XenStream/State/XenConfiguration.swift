/// xl's configuration of a guest as JSON, edited without parsing all of it.
///
/// libxl reads and writes this JSON; only the requested values are changed, so fields that a later
/// libxl adds are preserved.
package struct XenConfiguration: Sendable {
    /// The text, without a NUL.
    package private(set) var json: [UInt8]

    /// Takes JSON as `xl save` writes it; a NUL at its end is dropped.
    package init(_ json: [UInt8]) {
        self.json = Array(json.prefix { $0 != 0 })
    }

    /// `c_info.name`; nil if there is none, or it has escapes.
    package var name: String? { text(at: ["c_info", "name"]) }

    /// `c_info.uuid`; nil if there is none, or it has escapes.
    package var uuid: String? { text(at: ["c_info", "uuid"]) }

    /// The text of a field of the configuration itself, such as `on_reboot`.
    ///
    /// Nil if it is not there, and then it has libxl's initial value.
    package func text(of field: String) -> String? { text(at: [field]) }

    /// True if the value at the end of a path of keys is an object.
    func hasObject(at path: [String]) -> Bool {
        var cursor = Cursor(json)
        return cursor.value(at: path).map { json[$0.lowerBound] == UInt8(ascii: "{") } ?? false
    }

    private func text(at path: [String]) -> String? { text(at: path, in: 0..<json.count) }

    /// Makes it another guest's, with a name and a uuid of its own.
    ///
    /// - Parameters:
    ///   - name: without quotes, backslashes and control characters.
    ///   - uuid: 16 bytes.
    package mutating func rename(_ name: String, uuid: [UInt8]) throws(XenStreamError) {
        guard Self.isPlain(name), uuid.count == 16 else {
            throw XenStreamError(
                .malformed, "'\(name)' cannot be a domain's name; use letters, digits and dashes")
        }
        try replace(["c_info", "name"], with: name)
        try replace(["c_info", "uuid"], with: XenConfiguration.text(ofUUID: uuid))
    }

    /// The names of its disks (`vdev`), in order.
    package var diskNames: [String] { disks.compactMap { text(at: ["vdev"], in: $0) } }

    /// Makes the disk with a name another device or file of dom0, in raw format.
    ///
    /// libxl chooses the back end again. A script and a driver domain that the old device needed
    /// are dropped.
    ///
    /// - Parameter path: without quotes, backslashes and control characters.
    package mutating func setDisk(_ name: String, to path: String) throws(XenStreamError) {
        guard Self.isPlain(path) else {
            throw XenStreamError(
                .malformed, "'\(path)' cannot be the path of a disk; use another directory")
        }
        guard let disk = disks.first(where: { text(at: ["vdev"], in: $0) == name }) else {
            throw Self.missing(disk: name)
        }
        // Those that must be there are added.
        let changes: [(key: String, value: String, isNeeded: Bool)] = [
            ("pdev_path", "\"\(path)\"", true), ("format", "\"raw\"", true),
            ("backend", "\"unknown\"", false), ("script", "null", false),
            ("backend_domid", "0", false), ("backend_domname", "null", false),
        ]
        var edits: [(Range<Int>, String)] = []
        var missing = ""
        for (key, value, isNeeded) in changes {
            var cursor = Cursor(json, at: disk.lowerBound)
            if let range = cursor.value(at: [key]) {
                edits.append((range, value))
            } else if isNeeded {
                missing += "\"\(key)\": \(value), "
            }
        }
        // From the end, so that ranges before stay valid.
        for (range, text) in edits.sorted(by: { $0.0.lowerBound > $1.0.lowerBound }) {
            json.replaceSubrange(range, with: Array(text.utf8))
        }
        json.insert(contentsOf: Array(missing.utf8), at: disk.lowerBound + 1)
    }

    /// Throws unless it has disks with these names.
    package func checkDisks(_ names: [String]) throws(XenStreamError) {
        let own = Set(diskNames)
        if let name = names.first(where: { !own.contains($0) }) { throw Self.missing(disk: name) }
    }

    private static func missing(disk name: String) -> XenStreamError {
        XenStreamError(
            .malformed,
            "the checkpoint's configuration has no disk '\(name)'; give one with --config")
    }

    /// The ranges of its disks.
    private var disks: [Range<Int>] {
        var cursor = Cursor(json)
        guard let array = cursor.value(at: ["disks"]) else { return [] }
        var elements = Cursor(json, at: array.lowerBound)
        return elements.elements()
    }

    private func text(at path: [String], in object: Range<Int>) -> String? {
        var cursor = Cursor(json, at: object.lowerBound)
        guard let range = cursor.value(at: path), json[range.lowerBound] == Cursor.quote else {
            return nil
        }
        let text = json[range].dropFirst().dropLast()
        return text.contains(Cursor.backslash) ? nil : String(decoding: text, as: UTF8.self)
    }

    private static func isPlain(_ text: String) -> Bool {
        !text.isEmpty
            && text.utf8.allSatisfy {
                $0 >= 0x20 && $0 != Cursor.quote && $0 != Cursor.backslash
            }
    }

    private mutating func replace(
        _ path: [String], with value: String
    ) throws(XenStreamError) {
        var cursor = Cursor(json)
        guard let range = cursor.value(at: path) else {
            throw XenStreamError(
                .malformed,
                "the checkpoint's configuration has no \(path.joined(separator: ".")); give one "
                    + "with --config")
        }
        json.replaceSubrange(range, with: Array("\"\(value)\"".utf8))
    }

    /// `00112233-4455-6677-8899-aabbccddeeff`.
    package static func text(ofUUID uuid: [UInt8]) -> String {
        var text = ""
        for (index, byte) in uuid.enumerated() {
            if [4, 6, 8, 10].contains(index) { text += "-" }
            let digits = String(byte, radix: 16)
            text += digits.count == 1 ? "0" + digits : digits
        }
        return text
    }
}

/// Finds values in JSON text (RFC 8259); text that is not JSON has none.
private struct Cursor {
    static let quote = UInt8(ascii: "\"")
    static let backslash = UInt8(ascii: "\\")
    /// Deeper than any configuration.
    private static let depthMax = 64

    private let bytes: [UInt8]
    private var position = 0

    init(_ bytes: [UInt8], at position: Int = 0) {
        self.bytes = bytes
        self.position = position
    }

    /// The ranges of the elements of an array; none if it is not one.
    mutating func elements() -> [Range<Int>] {
        guard take(UInt8(ascii: "[")) else { return [] }
        var found: [Range<Int>] = []
        while true {
            skipSpace()
            let start = position
            guard skipValue(0) else { return found }
            found.append(start..<position)
            guard take(UInt8(ascii: ",")) else { return found }
        }
    }

    /// The range of the value at the end of a path of keys.
    mutating func value(at path: [String]) -> Range<Int>? {
        guard let key = path.first else {
            skipSpace()
            let start = position
            return skipValue(0) ? start..<position : nil
        }
        guard take(UInt8(ascii: "{")) else { return nil }
        while true {
            skipSpace()
            let start = position
            guard skipString() else { return nil }
            let name = bytes[start + 1..<position - 1]
            guard take(UInt8(ascii: ":")) else { return nil }
            if name.elementsEqual(key.utf8) { return value(at: Array(path.dropFirst())) }
            guard skipValue(0), take(UInt8(ascii: ",")) else { return nil }
        }
    }

    private mutating func skipSpace() {
        while position < bytes.count, [0x20, 0x09, 0x0a, 0x0d].contains(bytes[position]) {
            position += 1
        }
    }

    private mutating func take(_ byte: UInt8) -> Bool {
        skipSpace()
        guard position < bytes.count, bytes[position] == byte else { return false }
        position += 1
        return true
    }

    private mutating func skipString() -> Bool {
        guard take(Cursor.quote) else { return false }
        while position < bytes.count {
            let byte = bytes[position]
            position += byte == Cursor.backslash ? 2 : 1
            if byte == Cursor.quote { return true }
        }
        return false
    }

    private mutating func skipValue(_ depth: Int) -> Bool {
        skipSpace()
        guard position < bytes.count, depth < Cursor.depthMax else { return false }
        switch bytes[position] {
        case Cursor.quote: return skipString()
        case UInt8(ascii: "{"), UInt8(ascii: "["):
            let isObject = bytes[position] == UInt8(ascii: "{")
            let end = UInt8(ascii: isObject ? "}" : "]")
            position += 1
            if take(end) { return true }
            while true {
                if isObject {
                    skipSpace()
                    guard skipString(), take(UInt8(ascii: ":")) else { return false }
                }
                guard skipValue(depth + 1) else { return false }
                if take(end) { return true }
                guard take(UInt8(ascii: ",")) else { return false }
            }
        default:
            let start = position
            while position < bytes.count, !",]}: \t\r\n\"".utf8.contains(bytes[position]) {
                position += 1
            }
            return position > start
        }
    }
}
