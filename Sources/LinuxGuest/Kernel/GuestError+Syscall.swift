import Glibc
import GuestModel

// One sentence for each call that can fail, with the remedy.

extension GuestError {
    /// A call that failed in a way that needs no specific advice.
    static func call(_ name: String, _ subject: String, errno code: Int32 = Glibc.errno)
        -> GuestError
    {
        let reason = String(cString: strerror(code))
        if code == ENOSPC || code == EDQUOT {
            return GuestError(
                code: .callFailed,
                message: "no space is left for \(subject) (\(name): \(reason)); free some and try "
                    + "again",
                errno: code)
        }
        let remedy =
            switch code {
            case EFBIG:
                "; raise the limit of file sizes (ulimit -f), or use a file system that allows "
                    + "larger files"
            case EROFS, EACCES, EPERM: "; check the mount and the permissions"
            case ENOENT, ENOTDIR: "; check the path"
            default: ""
            }
        return GuestError(
            code: .callFailed, message: "\(name) failed for \(subject): \(reason)\(remedy)",
            errno: code)
    }

    /// userfaultfd(2): man page, section ERRORS; Documentation/admin-guide/mm/userfaultfd.rst.
    static func userfaultfd(errno code: Int32 = Glibc.errno) -> GuestError {
        switch code {
        case ENOSYS:
            GuestError(
                code: .unsupported,
                message:
                    "the kernel has no userfaultfd, which tracking writes needs; use Linux 6.7 "
                    + "or later with CONFIG_USERFAULTFD, or track with .compareAll",
                errno: code)
        case EPERM, EACCES:
            GuestError(
                code: .unsupported,
                message: "userfaultfd is forbidden here (seccomp or a security module); allow it "
                    + "for this process, or track with .compareAll",
                errno: code)
        default: call("userfaultfd", "this process", errno: code)
        }
    }

    /// `UFFDIO_API` returns EINVAL for features that the kernel lacks.
    static func writeProtect(errno code: Int32 = Glibc.errno) -> GuestError {
        guard code == EINVAL else { return call("UFFDIO_API", "this process", errno: code) }
        return GuestError(
            code: .unsupported,
            message: "the kernel cannot write-protect memory asynchronously; use Linux 6.7 or "
                + "later, or track with .compareAll",
            errno: code)
    }

    /// `PAGEMAP_SCAN` returns ENOTTY on kernels before 6.7.
    static func pagemapScan(errno code: Int32 = Glibc.errno) -> GuestError {
        guard code == ENOTTY || code == EINVAL else {
            return call("PAGEMAP_SCAN", "/proc/self/pagemap", errno: code)
        }
        return GuestError(
            code: .unsupported,
            message:
                "the kernel has no PAGEMAP_SCAN, which tracking writes needs; use Linux 6.7 or "
                + "later, or track with .compareAll",
            errno: code)
    }
}
