import CheckpointFormat
public import PackStore

/// The name of a lineage, which is the history of one guest in a repository.
///
/// It has 1 to 255 bytes, consists of letters, digits and `. _ - : @ +`, and does not begin with
/// `-`. Names are compared byte for byte.
public struct LineageName: Sendable {
    /// The name.
    public let text: String

    /// Creates a name from a string; throws `invalidName` if the string cannot name a lineage.
    ///
    /// The call that begins a lineage also checks that its name does not look like the beginning of
    /// an ID and is not a label, and throws `invalidName` too.
    public init(_ text: String) throws(RepositoryError) {
        try Names.check(text, kind: "lineage")
        self.text = text
    }

    /// A name that was stored.
    package init(stored text: String) { self.text = text }
}

/// A name for a checkpoint, of the same form as the name of a lineage.
///
/// A label refers to the newest checkpoint that has it.
public struct Label: Sendable {
    /// The label.
    public let text: String

    /// Creates a label from a string; throws `invalidName` if the string cannot be a label.
    ///
    /// The call that gives it to a checkpoint also checks that it is not the name of a lineage, nor
    /// a label of another lineage, and throws `invalidName` too.
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

    /// A name in the program's source; a malformed one is a precondition failure.
    public init(stringLiteral text: String) {
        guard NameForm.canBeStored(text) else { Names.refuseLiteral(text, kind: "lineage") }
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

    /// A label in the program's source; a malformed one is a precondition failure.
    public init(stringLiteral text: String) {
        guard NameForm.canBeStored(text) else { Names.refuseLiteral(text, kind: "label") }
        self.text = text
    }

    /// True if the bytes are equal.
    public static func == (one: Label, other: Label) -> Bool {
        NameForm.areSame(one.text, other.text)
    }

    /// Hashes the bytes.
    public func hash(into hasher: inout Hasher) { NameForm.hash(text, into: &hasher) }
}
