import Glibc
import Varve

extension ServiceConfiguration {
    /// Where the configuration of a service is.
    static func path(ofService name: String) -> String { "/etc/varve/\(name).conf" }

    private static let byteCountMax = 64 << 10

    /// Reads a configuration file.
    ///
    /// The service runs as root and starts `disk-command`, so a file is refused that a user other
    /// than root, or than the one that runs the service, may write.
    ///
    /// - Parameters:
    ///   - path: its path.
    ///   - name: the service's name.
    /// - Throws: one sentence, as wrong usage.
    static func read(_ path: String, name: String) throws -> ServiceConfiguration {
        func refuse(_ message: String) -> ToolError { ToolError("\(path) \(message)", .usage) }
        // Opening a pipe does not block.
        let file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard file >= 0 else { throw refuse("cannot be read: \(Output.reason())") }
        defer { close(file) }
        var status = stat()
        guard fstat(file, &status) == 0 else {
            throw refuse("cannot be examined: \(Output.reason())")
        }
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw refuse("is not a file; name a configuration file")
        }
        guard status.st_uid == 0 || status.st_uid == geteuid() else {
            throw refuse("belongs to user \(status.st_uid); give it to root (chown root)")
        }
        guard status.st_mode & (S_IWGRP | S_IWOTH) == 0 else {
            throw refuse("may be written by users other than root; run 'chmod go-w' on it")
        }
        var bytes = [UInt8](repeating: 0, count: byteCountMax + 1)
        var count = 0
        while count < bytes.count {
            let part = bytes.withUnsafeMutableBytes {
                Glibc.read(file, $0.baseAddress.map { $0 + count }, $0.count - count)
            }
            if part < 0 && errno == EINTR { continue }
            guard part >= 0 else { throw refuse("cannot be read: \(Output.reason())") }
            if part == 0 { break }
            count += part
        }
        guard count <= byteCountMax else { throw refuse("is larger than 64 KiB") }
        guard let text = String(validating: bytes[..<count], as: UTF8.self) else {
            throw refuse("is not UTF-8 text")
        }
        return try ServiceConfiguration(text, file: path, name: name)
    }

    /// The options of its checkpointers.
    ///
    /// - Parameter notice: called with what is worth knowing about disks.
    func options(notice: @escaping @Sendable (String) -> Void) -> XenCheckpointer.Options {
        var options = XenCheckpointer.Options()
        options.domain = .tool
        options.domain.pauseMode = pauseMode
        options.domain.suspendTimeout = suspendTimeout
        options.capture.retention = retention.isEmpty ? nil : Retention(retention)
        options.capture.auditPageCount = auditPageCount
        options.capture.acceptsGuestChange = acceptsGuestChange
        options.capture.keepsDiskCut = keepsCut
        options.disks = .tool
        if !takesDisks { options.disks.selection = .none }
        options.disks.command = diskCommand
        options.disks.settleTime = settle
        options.disks.thin.notice = notice
        if let diskState { options.disks.stateDirectory = FilePath(diskState) }
        return options
    }
}
