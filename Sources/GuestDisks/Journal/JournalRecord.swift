import GuestModel

// A journal entry is a text file:
//
//   varve-disks 1 KIND STATE      KIND: reflink, thin, metadata, hooked, thinExchange,
//                                 reflinkExchange
//   KEY WORD WORD ...             what the kind needs, see there
//   end
//
// Words are separated by one space; bytes of a word that are not printable ASCII, and `%` itself,
// are written as %XX, an empty word as `%`. STATE is `prepared` before the cut is made, and `made`
// once it is known to be whole and to survive a crash of the host.

/// What a journal entry says.
struct JournalRecord: Hashable, Sendable {
    enum Kind: String, Sendable {
        case reflink
        case thin
        /// The metadata snapshot of a thin pool.
        case metadata
        case hooked
        /// New contents for thin volumes, of a revert.
        case thinExchange
        /// The same for files.
        case reflinkExchange
    }

    var kind: Kind
    /// The cut was made: it can be found again.
    var isMade = false
    /// Key and words.
    var lines: [[String]] = []

    /// Longest text that is read: 1 MiB.
    static let byteLimit = 1 << 20

    init(_ kind: Kind) { self.kind = kind }

    /// The words of each line with a key.
    func lines(_ key: String) -> [ArraySlice<String>] {
        lines.filter { $0.first == key }.map { $0.dropFirst() }
    }

    var text: String {
        var text = "varve-disks 1 \(kind.rawValue) \(isMade ? "made" : "prepared")\n"
        for line in lines {
            text += line.map { JournalRecord.encode($0.utf8) }.joined(separator: " ") + "\n"
        }
        return text + "end\n"
    }

    /// Nil if the text is not a whole entry.
    init?(text: String) {
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        // "end" and the empty rest after the last line break.
        guard lines.count >= 3, lines.removeLast().isEmpty, lines.removeLast() == "end" else {
            return nil
        }
        let head = lines.removeFirst().split(separator: " ")
        guard head.count == 4, head[0] == "varve-disks", head[1] == "1",
            let kind = Kind(rawValue: String(head[2])), ["made", "prepared"].contains(head[3])
        else { return nil }
        self.kind = kind
        isMade = head[3] == "made"
        for line in lines {
            var words: [String] = []
            for word in line.split(separator: " ", omittingEmptySubsequences: false) {
                guard let bytes = JournalRecord.decode(word),
                    let text = String(validating: bytes, as: UTF8.self)
                else { return nil }
                words.append(text)
            }
            self.lines.append(words)
        }
    }

    /// Bytes as one word of printable ASCII.
    static func encode(_ bytes: some Collection<UInt8>) -> String {
        guard !bytes.isEmpty else { return "%" }
        var word = ""
        for byte in bytes {
            if 0x21...0x7e ~= byte && byte != UInt8(ascii: "%") {
                word.unicodeScalars.append(Unicode.Scalar(byte))
            } else {
                word += "%" + (byte < 16 ? "0" : "") + String(byte, radix: 16)
            }
        }
        return word
    }

    /// The bytes of a word; nil if it is none.
    static func decode(_ word: some StringProtocol) -> [UInt8]? {
        if word == "%" { return [] }
        var bytes: [UInt8] = []
        var rest = Array(word.utf8)[...]
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "%") else {
                bytes.append(byte)
                continue
            }
            let digits = rest.prefix(2)
            guard digits.count == 2, digits.allSatisfy({ $0 != UInt8(ascii: "+") }),
                let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 16)
            else { return nil }
            bytes.append(value)
            rest = rest.dropFirst(2)
        }
        return bytes
    }
}
