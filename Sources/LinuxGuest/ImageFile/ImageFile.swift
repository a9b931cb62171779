import Glibc
public import GuestModel
import Synchronization
public import SystemPackage

/// A raw image of memory, or of a disk: frame n is bytes 4096 * n to 4096 * n + 4095 of a file.
///
/// It has no dirty log, so capturing it compares every page, and no state. It is opened for
/// reading, or created to be filled from a checkpoint; frames that do not exist are holes, and so
/// are zero pages.
///
/// A new image gets its name in `finish` (`NewFile`). Without `finish` nothing remains, and a file
/// that has the name is unchanged.
public final class ImageFile: WritableGuest {
    private enum Role {
        case reading
        case writing(NewFile)
        /// A device that is written in place; its path if it is a block device.
        case device(FilePath?)
        case finished
    }

    private struct State {
        var role: Role
        var layout: GuestLayout
        /// Keeps the descriptor of a new file open.
        var file: NewFile?
    }

    private let descriptor: Int32
    private let path: String
    /// The size of a disk that it is the image of, which may end within its last page; nil: it is
    /// as long as its layout.
    private let diskByteCount: Int?
    /// True for a device without old contents.
    private let isZeroed: Bool
    /// True if it occupies less disk space than its size.
    private let mayHaveHoles: Bool
    private let state: Mutex<State>

    /// Opens an image for reading.
    ///
    /// It must be a regular file or block device whose size is a positive multiple of 4096.
    public init(reading path: FilePath) throws(GuestError) {
        self.path = path.printable
        diskByteCount = nil
        isZeroed = false
        descriptor = system_open(path, O_RDONLY)
        guard descriptor >= 0 else { throw GuestError.call("open", path.printable) }
        do throws(GuestError) {
            let byteCount = try ImageFile.byteCount(descriptor, path.printable)
            var status = stat()
            mayHaveHoles =
                system_fstat(descriptor, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
                && Int(status.st_blocks) * 512 < byteCount
            state = Mutex(
                State(
                    role: .reading,
                    layout: GuestLayout(pageCount: byteCount / Page.byteCount)))
        } catch {
            system_close(descriptor)
            throw error
        }
    }

    /// Creates an image to be filled from a checkpoint.
    ///
    /// - Parameters:
    ///   - path: its name (`OutputPlace`). A block or character device is written in place; one
    ///     that is written only sequentially, such as a pipe, is refused.
    ///   - replacing: whether a regular file that has the name may be replaced.
    ///   - byteCount: the least number of bytes that will be written, without holes, if that is
    ///     known; a file system without that much room is refused now.
    ///   - disk: the disk that it is to be an image of: it gets exactly its size, and a restore of
    ///     another volume is refused. Nil: it is an image of memory, with whole pages.
    ///   - isZeroed: whether a block device reads as zeros, as a new thin volume does: zeros are
    ///     then not written to it. Nothing checks that.
    public convenience init(
        creating path: FilePath, replacing: Bool = false, byteCount: Int? = nil,
        disk: GuestDisk? = nil, isZeroed: Bool = false
    ) throws(GuestError) {
        try self.init(
            creating: try OutputPlace(path), replacing: replacing, byteCount: byteCount,
            disk: disk, isZeroed: isZeroed)
    }

    /// Creates an image to be filled from a checkpoint, at a place that was examined before.
    package init(
        creating place: OutputPlace, replacing: Bool = false, byteCount: Int? = nil,
        disk: GuestDisk? = nil, isZeroed: Bool = false
    ) throws(GuestError) {
        mayHaveHoles = false
        self.isZeroed = isZeroed
        diskByteCount = disk.map { Int($0.byteCount) }
        switch place {
        case .file(let path, _):
            self.path = path.printable
            let file = try NewFile(path, replacing: replacing, byteCount: byteCount)
            descriptor = file.descriptor
            state = Mutex(State(role: .writing(file), layout: .empty, file: file))
        case .blockDevice(let path):
            self.path = path.printable
            descriptor = try OutputFile.openBlockDevice(path, holding: nil)
            state = Mutex(State(role: .device(path), layout: .empty))
        case .characterDevice(let path):
            self.path = path.printable
            descriptor = system_open(path, O_WRONLY | O_NOCTTY)
            guard descriptor >= 0 else { throw GuestError.call("open", path.printable) }
            state = Mutex(State(role: .device(nil), layout: .empty))
        case .pipe(let path): throw ImageFile.needsOrder(path.printable)
        case .descriptor(let number): throw ImageFile.needsOrder("descriptor \(number)")
        }
    }

    private static func needsOrder(_ name: String) -> GuestError {
        GuestError(
            code: .unavailable,
            message:
                "\(name) can only be written sequentially, but an image is written in any order; "
                + "name a file, or export it as raw, which is sequential")
    }

    deinit {
        let isNew = state.withLock { $0.file != nil }
        abandon()
        // A new file closes its own descriptor.
        if !isNew { system_close(descriptor) }
    }

    private static func byteCount(
        _ descriptor: Int32, _ path: String
    ) throws(GuestError) -> Int {
        var status = stat()
        guard system_fstat(descriptor, &status) == 0 else { throw GuestError.call("fstat", path) }
        let kind = status.st_mode & S_IFMT
        guard kind == S_IFREG || kind == S_IFBLK else {
            throw GuestError(
                code: .unavailable,
                message: "\(path) is neither a file nor a block device; name a memory image")
        }
        let byteCount =
            kind == S_IFBLK ? Int(lseek(descriptor, 0, SEEK_END)) : Int(status.st_size)
        guard byteCount > 0, byteCount % Page.byteCount == 0 else {
            throw GuestError(
                code: .sizeMismatch,
                message:
                    "\(path) has \(counted(byteCount, "byte")), not a positive multiple of "
                    + "4096; it is truncated or not a raw memory image")
        }
        return byteCount
    }

    /// Makes a new image durable and gives it its name.
    ///
    /// Does nothing for an image opened for reading.
    public func finish() throws(GuestError) {
        try state.withLock { (state) throws(GuestError) in
            switch state.role {
            case .reading, .finished: return
            case .device: try sync()
            case .writing(let file): try file.finish()
            }
            state.role = .finished
        }
    }

    private func sync() throws(GuestError) {
        // Character devices such as /dev/null cannot be synced, and need not be.
        if system_fsync(descriptor) != 0 && errno != EINVAL && errno != EROFS {
            throw GuestError.call("fsync", path)
        }
    }

    /// Removes an image that was finished, and is of no use.
    package static func remove(_ path: FilePath) {
        // What cannot be removed stays: there is nothing else to do with it.
        _ = system_unlink(path)
    }

    /// Removes a new image that was not finished.
    ///
    /// Harmless otherwise.
    public func abandon() {
        state.withLock { state in
            if case .writing(let file) = state.role {
                file.abandon()
                state.role = .finished
            }
        }
    }

    // MARK: - Guest

    /// All frames of the file.
    public func layout() -> GuestLayout { state.withLock { $0.layout } }

    /// nil: a file does not say what changed.
    public var dirtyTracking: (any DirtyTracking)? { nil }

    /// Does nothing: an image does not run.
    ///
    /// Writes to it meanwhile corrupt the capture.
    public func pause() {}

    /// Does nothing.
    public func resume() {}

    /// Reads pages.
    ///
    /// Throws if the file was truncated meanwhile.
    public func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        try destination.withUnsafeMutableBytes { (bytes) throws(GuestError) in
            var offset = 0
            for index in runs.indices {
                let count = runs[index].byteCount
                try read(
                    UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + count]),
                    at: Int(runs[index].first.rawValue) * Page.byteCount)
                offset += count
            }
        }
    }

    private func read(
        _ bytes: UnsafeMutableRawBufferPointer, at offset: Int
    ) throws(GuestError) {
        if mayHaveHoles, isHole(offset..<offset + bytes.count) {
            bytes.initializeMemory(as: UInt8.self, repeating: 0)
            return
        }
        var done = 0
        while done < bytes.count {
            let rest = UnsafeMutableRawBufferPointer(rebasing: bytes[done...])
            let count = system_pread(descriptor, rest, offset + done)
            guard count >= 0 else { throw GuestError.call("pread", path) }
            guard count > 0 else {
                throw GuestError(
                    code: .unavailable,
                    message:
                        "\(path) ends at byte \(offset + done), earlier than when it was "
                        + "opened; import it again when nothing changes it")
            }
            done += count
        }
    }

    /// True if the range lies in a hole of the file, which is then not read; false if that is
    /// unknown.
    private func isHole(_ range: Range<Int>) -> Bool {
        let start = system_seekData(descriptor, range.lowerBound)
        if start >= range.upperBound { return true }
        // A file that was truncated meanwhile has no data either: reading it reports that.
        guard start < 0, errno == ENXIO else { return false }
        var status = stat()
        return system_fstat(descriptor, &status) == 0 && Int(status.st_size) >= range.upperBound
    }

    /// An image has no state.
    public func captureState() -> GuestState { .empty }

    // MARK: - WritableGuest

    /// Gives a new image its size; an image opened for reading must already have it.
    ///
    /// Throws `sizeMismatch` for the image of a disk with another number of blocks.
    public func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        if let diskByteCount {
            let blockCount = (diskByteCount + Page.byteCount - 1) / Page.byteCount
            guard layout.frameEnd <= UInt64(blockCount), layout.pageCount == blockCount else {
                throw GuestError(
                    code: .sizeMismatch,
                    message: "\(path) is to be the image of a disk of \(diskByteCount) bytes, and "
                        + "not of \(counted(layout.pageCount, "block")); name the disk's own size")
            }
        }
        try state.withLock { (state) throws(GuestError) in
            switch state.role {
            case .writing:
                guard system_ftruncate(descriptor, byteCount(of: layout)) == 0
                else { throw GuestError.call("ftruncate", path) }
            case .device(let path):
                guard let path else { break }
                try OutputFile.checkSize(
                    of: descriptor, path, holding: byteCount(of: layout))
                if !isZeroed { try writeGaps(of: layout) }
            case .reading, .finished:
                guard state.layout == layout else {
                    throw GuestError(
                        code: .sizeMismatch,
                        message: "\(path) has \(counted(state.layout.pageCount, "page")), but the "
                            + "checkpoint has \(layout.pageCount)")
                }
            }
            state.layout = layout
        }
    }

    private func byteCount(of layout: GuestLayout) -> Int {
        diskByteCount ?? Int(layout.frameEnd) * Page.byteCount
    }

    /// Writes zeros where there is no frame, up to the last frame: a device keeps old contents.
    private func writeGaps(of layout: GuestLayout) throws(GuestError) {
        let zeros = [UInt8](repeating: 0, count: 1 << 20)
        var end = 0
        for run in layout.runs {
            let start = Int(run.first.rawValue) * Page.byteCount
            while end < start {
                let count = min(start - end, zeros.count)
                try zeros.span.bytes.withUnsafeBytes { (bytes) throws(GuestError) in
                    try write(UnsafeRawBufferPointer(rebasing: bytes[..<count]), at: end)
                }
                end += count
            }
            end = start + run.byteCount
        }
    }

    /// True for a new file; a device has old contents.
    public var startsZeroed: Bool {
        state.withLock { state in
            if case .writing = state.role { return true }
            return isZeroed
        }
    }

    /// Writes pages.
    public func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError) {
        try source.withUnsafeBytes { (bytes) throws(GuestError) in
            var offset = 0
            for index in runs.indices {
                let count = runs[index].byteCount
                try write(
                    UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count]),
                    at: Int(runs[index].first.rawValue) * Page.byteCount)
                offset += count
            }
        }
    }

    private func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws(GuestError) {
        var bytes = bytes
        if let diskByteCount, offset + bytes.count > diskByteCount {
            // The last page of a disk may extend past its end.
            bytes = UnsafeRawBufferPointer(rebasing: bytes[..<max(0, diskByteCount - offset)])
        }
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let count = system_pwrite(descriptor, rest, offset + done)
            guard count >= 0 else { throw GuestError.call("pwrite", path) }
            done += count
        }
    }

    /// Does nothing: a raw image cannot hold state, so a checkpoint's state is left out.
    public func restoreState(_ state: GuestState) {}
}
