import CArguments
import Glibc
import Synchronization
import Varve

/// The arguments of the command line.
///
/// A file name is bytes, and need not be text. The parser accepts only text, so bytes that are not
/// UTF-8 pass through it as characters of a private area, and so do the bytes of such characters,
/// which makes the mapping reversible. `PathArgument` reverses it; in any other argument such bytes
/// are refused.
enum Arguments {
    /// An argument that is not text and not a file name.
    struct NotText: Error {
        /// One sentence.
        let message: String
    }

    /// The byte n is U+10FF00 + n.
    private static let area: UInt32 = 0x10_ff00

    /// Values that were accepted as paths.
    private static let paths = Mutex<Set<String>>([])

    /// All arguments after the program's name.
    static func read() -> [String] {
        var result = (1..<max(1, carguments_count())).compactMap { index in
            carguments_value(index).map {
                encode(UnsafeRawBufferPointer(start: $0, count: strlen($0)))
            }
        }
        // An option of the parser has a value; `--wait` alone waits without limit. What looks like
        // a time is its value: as an argument of the command it could name another checkpoint.
        let end = result.firstIndex(of: "--") ?? result.endIndex
        for index in result[..<end].indices where result[index] == "--wait" {
            let next = index + 1 < end ? result[index + 1] : ""
            if LockOptions.Limit(argument: next)?.timeMax != nil { continue }
            result[index] = "--wait=\(LockOptions.endless)"
        }
        return result
    }

    /// Throws if an argument that is not text was used as anything but a path.
    static func checkText(_ arguments: [String]) throws(NotText) {
        let taken = paths.withLock { $0 }
        for argument in arguments where argument.unicodeScalars.contains(where: isEncoded) {
            if taken.contains(where: { argument.hasSuffix($0) }) { continue }
            throw NotText(
                message:
                    "'\(PrintableText.text(of: decode(argument)))' is not UTF-8; only the names of "
                    + "files to read and write may be other bytes")
        }
    }

    /// The bytes of an argument that is a path.
    static func path(_ argument: String) -> [UInt8] {
        if argument.unicodeScalars.contains(where: isEncoded) {
            _ = paths.withLock { $0.insert(argument) }
        }
        return decode(argument)
    }

    private static func isEncoded(_ scalar: Unicode.Scalar) -> Bool {
        (area...area + 0xff).contains(scalar.value)
    }

    private static func encode(_ bytes: UnsafeRawBufferPointer) -> String {
        var parser = Unicode.UTF8.ForwardParser()
        var source = bytes.makeIterator()
        var (result, position) = (String.UnicodeScalarView(), 0)
        func append(_ count: Int) {
            for byte in bytes[position..<position + count] {
                if let scalar = Unicode.Scalar(area + UInt32(byte)) { result.append(scalar) }
            }
            position += count
        }
        while true {
            switch parser.parseScalar(from: &source) {
            case .valid(let encoded):
                let scalar = Unicode.UTF8.decode(encoded)
                if isEncoded(scalar) {
                    append(encoded.count)
                } else {
                    result.append(scalar)
                    position += encoded.count
                }
            case .error(let length): append(length)
            case .emptyInput: return String(result)
            }
        }
    }

    private static func decode(_ argument: String) -> [UInt8] {
        argument.unicodeScalars.flatMap { scalar in
            isEncoded(scalar)
                ? [UInt8(truncatingIfNeeded: scalar.value)] : Array(String(scalar).utf8)
        }
    }
}
