import ArgumentParser
import Glibc
import SystemPackage
import Varve

/// The name of a file, a device or a store, exactly as given: bytes, which need not be text.
struct PathArgument: ExpressibleByArgument, CustomStringConvertible {
    let bytes: [UInt8]

    static var defaultCompletionKind: CompletionKind { .file() }

    init?(argument: String) {
        bytes = Arguments.path(argument)
    }

    /// The path for the library.
    var path: FilePath {
        FilePath(platformString: bytes.map { CChar(bitPattern: $0) } + [0])
    }

    /// True for '-': standard input or output.
    var isStandard: Bool { bytes == [UInt8(ascii: "-")] }

    /// The path for messages: bytes that are not UTF-8 are written as `\xff`.
    var description: String { PrintableText.text(of: bytes) }

    /// Opens the path; -1 and `errno` on failure.
    func open(_ flags: Int32) -> Int32 {
        (bytes.map { CChar(bitPattern: $0) } + [0]).withUnsafeBufferPointer { name in
            name.baseAddress.map { Glibc.open($0, flags | O_CLOEXEC) } ?? -1
        }
    }

    /// What the path names as an output.
    ///
    /// `FilePath` drops a slash at the end, which means a directory.
    func outputPlace() throws -> OutputPlace {
        if isStandard { return try OutputPlace("/dev/stdout") }
        if bytes.last == UInt8(ascii: "/") {
            throw ToolError("\(self) names a directory; name a file in it")
        }
        return try OutputPlace(path)
    }
}

/// The name of a store, which is text.
struct StoreArgument: ExpressibleByArgument, CustomStringConvertible {
    let description: String

    static var defaultCompletionKind: CompletionKind { .directory }

    init?(argument: String) {
        // An unset variable of a script does not mean the current directory.
        guard !argument.isEmpty else { return nil }
        description = argument
    }

    /// The path for the library.
    var path: FilePath { FilePath(description) }
}
