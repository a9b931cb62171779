import CheckpointFormat
public import PackStore

/// The name of a lineage: the history of one guest in a repository.
///
/// 1 to 255 bytes of letters, digits and `. _ - : @ +`, not beginning with `-`. Names are compared
/// by their bytes.
public struct LineageName: Sendable {
    /// The name.
    public let text: String

    /// Checks a name; throws `invalidName` if it cannot be a lineage's.
    ///
    /// A name that begins a lineage is checked further when it is used: it must not look like the
    /// beginning of an ID, and must not be a label.
    public init(_ text: String) throws(RepositoryError) {
        try Names.check(text, kind: "lineage")
        self.text = text
    }

    /// A name that was stored.
    package init(stored text: String) { self.text = text }
}

/// A name for one checkpoint.
///
/// It has the same form as the name of a lineage. It refers to the newest checkpoint that has it.
public struct Label: Sendable {
    /// The label.
    public let text: String

    /// Checks a label; throws `invalidName` if it is malformed.
    public init(_ text: String) throws(RepositoryError) {
        try Names.check(text, kind: "label")
        self.text = text
    }

    /// A label that was stored.
    package init(stored text: String) { self.text = text }
}

extension LineageName: Hashable, CustomStringConvertible, ExpressibleByStringLiteral {
    /// The name itself.
    public var description: String { text }

    /// A name in the program's source; traps if it is malformed.
    public init(stringLiteral text: String) {
        precondition(NameForm.canBeStored(text), "\"\(text)\" cannot name a lineage")
        self.text = text
    }

    /// True if the bytes are equal.
    public static func == (one: LineageName, other: LineageName) -> Bool {
        NameForm.areSame(one.text, other.text)
    }

    /// Hashes the bytes.
    public func hash(into hasher: inout Hasher) { NameForm.hash(text, into: &hasher) }
}

extension Label: Hashable, CustomStringConvertible, ExpressibleByStringLiteral {
    /// The label itself.
    public var description: String { text }

    /// A label in the program's source; traps if it is malformed.
    public init(stringLiteral text: String) {
        precondition(NameForm.canBeStored(text), "\"\(text)\" cannot be a label")
        self.text = text
    }

    /// True if the bytes are equal.
    public static func == (one: Label, other: Label) -> Bool {
        NameForm.areSame(one.text, other.text)
    }

    /// Hashes the bytes.
    public func hash(into hasher: inout Hasher) { NameForm.hash(text, into: &hasher) }
}
