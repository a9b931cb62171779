import Glibc
import GuestModel
import SystemPackage

extension FilePath {
    /// The bytes of the path, which need not be UTF-8.
    var bytes: [UInt8] {
        withPlatformString { Array(UnsafeRawBufferPointer(start: $0, count: strlen($0))) }
    }

    /// Makes a path from bytes, none of which is 0.
    init(bytes: some Sequence<UInt8>) {
        let terminated = bytes.map { CChar(bitPattern: $0) } + [0]
        self.init(platformString: terminated)
    }

    /// The path for messages: bytes that are not UTF-8 are written as `\xff`.
    var printable: String { PrintableText.text(of: bytes) }

    /// The directory that contains it.
    var directory: FilePath {
        let bytes = bytes
        guard let slash = bytes.lastIndex(of: UInt8(ascii: "/")) else { return "." }
        return slash == 0 ? "/" : FilePath(bytes: bytes[..<slash])
    }

    /// Its last component.
    var name: [UInt8] {
        let bytes = bytes
        return bytes.lastIndex(of: UInt8(ascii: "/")).map { Array(bytes[($0 + 1)...]) } ?? bytes
    }
}
