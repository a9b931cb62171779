import GuestModel

/// One tag of the XML that the thin-provisioning tools print.
struct MappingTag: Hashable, Sendable {
    enum Form: Hashable, Sendable {
        case open
        case close
        /// `<name .../>`.
        case empty
    }

    var form: Form
    var name: String
    var attributes: [String: String] = [:]

    /// An attribute that is a number.
    func number(_ name: String) -> UInt64? {
        guard let text = attributes[name], text.utf8.allSatisfy({ 0x30...0x39 ~= $0 }) else {
            return nil
        }
        return UInt64(text)
    }
}

/// Splits XML into tags as it arrives.
///
/// Only tags, attributes in double quotes, and white space between tags; anything else is refused,
/// and no tag is longer than 4 KiB.
struct MappingTags {
    private static let tagLimit = 4096

    private var tag: [UInt8] = []
    private var isInTag = false

    /// True between two tags.
    var isBetweenTags: Bool { !isInTag }

    /// Takes the next bytes; false if they are not such XML, or `take` returned false.
    mutating func feed(_ bytes: UnsafeRawBufferPointer, _ take: (MappingTag) -> Bool) -> Bool {
        for byte in bytes {
            if isInTag {
                if byte == UInt8(ascii: ">") {
                    isInTag = false
                    guard let parsed = MappingTags.parse(tag[...]), take(parsed) else {
                        return false
                    }
                    tag.removeAll(keepingCapacity: true)
                } else {
                    guard tag.count < MappingTags.tagLimit, byte != UInt8(ascii: "<") else {
                        return false
                    }
                    tag.append(byte)
                }
            } else if byte == UInt8(ascii: "<") {
                isInTag = true
            } else if ![0x20, 0x0a, 0x0d, 0x09].contains(byte) {
                return false
            }
        }
        return true
    }

    private static func isName(_ byte: UInt8) -> Bool {
        0x61...0x7a ~= byte || 0x41...0x5a ~= byte || 0x30...0x39 ~= byte || byte == 0x5f
            || byte == 0x2d
    }

    private static func isSpace(_ byte: UInt8) -> Bool { [0x20, 0x0a, 0x0d, 0x09].contains(byte) }

    private static func parse(_ bytes: ArraySlice<UInt8>) -> MappingTag? {
        var rest = bytes
        func word() -> String {
            let word = rest.prefix { isName($0) }
            rest = rest[word.endIndex...]
            return String(decoding: word, as: UTF8.self)
        }
        var tag = MappingTag(form: .open, name: "")
        if rest.first == UInt8(ascii: "/") {
            tag.form = .close
            rest = rest.dropFirst()
        } else if rest.last == UInt8(ascii: "/") {
            tag.form = .empty
            rest = rest.dropLast()
        }
        tag.name = word()
        guard !tag.name.isEmpty else { return nil }
        while true {
            let spaces = rest.prefix { isSpace($0) }
            rest = rest[spaces.endIndex...]
            guard !rest.isEmpty else { return tag }
            let name = word()
            guard !spaces.isEmpty, !name.isEmpty, tag.form != .close, tag.attributes.count < 32,
                tag.attributes[name] == nil, rest.starts(with: Array("=\"".utf8))
            else { return nil }
            rest = rest.dropFirst(2)
            let value = rest.prefix { $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "&") }
            rest = rest[value.endIndex...]
            guard rest.popFirst() == UInt8(ascii: "\""),
                let text = String(validating: value, as: UTF8.self)
            else { return nil }
            tag.attributes[name] = text
        }
    }
}

/// Reads what `thin_delta` and `thin_dump` print of a pool, and collects ranges of blocks.
///
/// Whatever does not fit the form makes the whole answer invalid: a wrong set would lose data.
struct MappingReader {
    enum Question: Hashable, Sendable {
        /// `thin_delta`: what differs between two thin volumes.
        case difference(UInt32, UInt32)
        /// `thin_dump`: what one thin volume maps.
        case mapped(UInt32)
    }

    private enum Place {
        case start
        case superblock
        /// In `diff` or `device`.
        case answer
        /// In `def`, a part of mappings that devices may share.
        case definition(String)
        case answered
        case end
    }

    private let question: Question
    private let blockByteCount: UInt64
    private var tags = MappingTags()
    private var place = Place.start
    private var wasAnswered = false
    /// End of the last range, in blocks of the pool.
    private var last: UInt64 = 0
    private var definitions: [String: [Range<UInt64>]] = [:]
    private var definedCount = 0
    private var ranges: BlockRanges

    /// - Parameters:
    ///   - question: the tool and what it was asked.
    ///   - blockByteCount: of the pool.
    ///   - blockCount: of the disk, in 4 KiB.
    init(_ question: Question, blockByteCount: UInt64, blockCount: UInt64) {
        self.question = question
        self.blockByteCount = blockByteCount
        ranges = BlockRanges(blockCount: blockCount)
    }

    /// Takes the next bytes of the output; false if they are not the answer.
    mutating func feed(_ bytes: UnsafeRawBufferPointer) -> Bool {
        var tags = tags
        defer { self.tags = tags }
        return tags.feed(bytes) { take($0) }
    }

    /// The answer, after the last byte; nil if there was none.
    var result: [BlockRange]? {
        guard case .end = place, tags.isBetweenTags, wasAnswered else { return nil }
        return ranges.ranges
    }

    private mutating func take(_ tag: MappingTag) -> Bool {
        switch (place, tag.form, tag.name) {
        case (.start, .open, "superblock"):
            guard let sectors = tag.number("data_block_size"), sectors < 1 << 32 else {
                return false
            }
            place = .superblock
            return sectors * 512 == blockByteCount
        case (.superblock, .open, "def"), (.superblock, .empty, "def"):
            guard case .mapped = question, let name = tag.attributes["name"],
                definitions[name] == nil
            else { return false }
            definitions[name] = []
            if tag.form == .open { place = .definition(name) }
            return true
        case (.definition(let name), .empty, _):
            guard let range = mapping(tag), definedCount < BlockRanges.countLimit else {
                return false
            }
            definedCount += 1
            definitions[name]?.append(range)
            return true
        case (.definition, .close, "def"):
            place = .superblock
            return true
        case (.superblock, .open, _), (.superblock, .empty, _):
            place = tag.form == .open ? .answer : .answered
            return begins(tag)
        case (.answer, .empty, _): return part(tag)
        case (.answer, .close, let name):
            place = .answered
            return name == answerName
        case (.superblock, .close, "superblock"), (.answered, .close, "superblock"):
            place = .end
            return true
        default: return false
        }
    }

    private var answerName: String {
        if case .mapped = question { "device" } else { "diff" }
    }

    private mutating func begins(_ tag: MappingTag) -> Bool {
        wasAnswered = true
        guard tag.name == answerName else { return false }
        return switch question {
        case .difference(let left, let right):
            tag.number("left") == UInt64(left) && tag.number("right") == UInt64(right)
        case .mapped(let id): tag.number("dev_id") == UInt64(id)
        }
    }

    private mutating func part(_ tag: MappingTag) -> Bool {
        switch question {
        case .difference:
            guard let begin = tag.number("begin"), let length = tag.number("length"),
                let range = MappingReader.range(begin, length)
            else { return false }
            switch tag.name {
            case "same": return accept(range, isAdded: false)
            case "different", "left_only", "right_only": return accept(range, isAdded: true)
            default: return false
            }
        case .mapped:
            if tag.name == "ref" {
                guard let name = tag.attributes["name"], let ranges = definitions[name] else {
                    return false
                }
                return ranges.allSatisfy { accept($0, isAdded: true) }
            }
            guard let range = mapping(tag) else { return false }
            return accept(range, isAdded: true)
        }
    }

    private func mapping(_ tag: MappingTag) -> Range<UInt64>? {
        switch tag.name {
        case "single_mapping":
            return tag.number("origin_block").flatMap { MappingReader.range($0, 1) }
        case "range_mapping":
            guard let begin = tag.number("origin_begin"), let length = tag.number("length") else {
                return nil
            }
            return MappingReader.range(begin, length)
        default: return nil
        }
    }

    private static func range(_ begin: UInt64, _ length: UInt64) -> Range<UInt64>? {
        // Far above what a device can have, and far from overflowing below.
        guard length > 0, length < 1 << 40, begin < 1 << 40 else { return nil }
        return begin..<begin + length
    }

    private mutating func accept(_ range: Range<UInt64>, isAdded: Bool) -> Bool {
        guard range.lowerBound >= last else { return false }
        last = range.upperBound
        guard isAdded else { return true }
        let (lower, isLow) = range.lowerBound.multipliedReportingOverflow(by: blockByteCount)
        let (upper, isHigh) = range.upperBound.multipliedReportingOverflow(by: blockByteCount)
        return !isLow && !isHigh && ranges.add(bytes: lower..<upper)
    }
}
