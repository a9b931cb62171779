import Glibc
import GuestModel
import SystemPackage

// One sentence for each call that can fail, with the remedy.

extension GuestError {
    /// A kernel call that failed.
    static func call(
        _ name: String, _ subject: String, errno code: Int32 = Glibc.errno
    ) -> GuestError {
        let remedy =
            switch code {
            case ENOSPC, EDQUOT: "; free some space and try again"
            case EROFS, EACCES, EPERM: "; check the mount and the permissions"
            case ENOENT, ENOTDIR: "; check the path"
            case EMFILE, ENFILE: "; raise the limit of open files (ulimit -n)"
            case EIO, ENODATA, ENXIO, EREMOTEIO:
                "; the storage below it fails, or is gone: look at the kernel's log (dmesg)"
            default: ""
            }
        return GuestError(
            code: .callFailed,
            message: "\(name) failed for \(subject): \(String(cString: strerror(code)))\(remedy)",
            errno: code)
    }
}

extension FilePath {
    /// The path for messages.
    var printable: String {
        withPlatformString {
            PrintableText.text(of: UnsafeRawBufferPointer(start: $0, count: strlen($0)))
        }
    }

    /// The bytes of the path, which need not be UTF-8.
    var bytes: [UInt8] {
        withPlatformString { Array(UnsafeRawBufferPointer(start: $0, count: strlen($0))) }
    }

    /// Makes a path from bytes, none of which is 0.
    init(bytes: some Sequence<UInt8>) {
        self.init(platformString: bytes.map { CChar(bitPattern: $0) } + [0])
    }
}
