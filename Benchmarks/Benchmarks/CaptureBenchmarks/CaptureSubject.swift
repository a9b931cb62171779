import Foundation
import Glibc
import Measuring
import Varve

/// This process's memory with a guest's pages, and a repository to capture it into.
final class CaptureSubject {
    let memory = ProcessMemory()
    let region: MemoryRegion
    let repository: Repository
    let session: CaptureSession
    let first: Checkpoint
    /// The target of the limit's copies; its pages are already touched.
    let target: Memory
    private var stampNumber: UInt64 = 1 << 40
    private let residentBefore: Int

    /// Fills the guest and takes its first checkpoint.
    ///
    /// - Parameters:
    ///   - repeats: the memory repeats the same 64 MiB.
    ///   - targetByteCount: room for the limit's copies.
    init(
        byteCount: Int, repeats: Bool = false, directory: String,
        options: CaptureOptions = CaptureOptions(), targetByteCount: Int
    ) throws {
        region = try memory.allocate(byteCount: byteCount)
        if repeats {
            try GuestContent.fillRepeating(region.bytes)
        } else {
            try GuestContent.fill(region.bytes)
        }
        target = Memory(byteCount: targetByteCount)
        residentBefore = ResidentMemory.now
        ResidentMemory.resetPeak()
        repository = try Repository.create(at: FilePath(directory + "/store"))
        session = try CaptureSession(
            of: memory, in: repository, lineage: "benchmark", options: options)
        first = try session.capture().checkpoint
    }

    /// The scattered page with an index.
    func page(_ index: Int) -> Int { index * 7919 % region.pages.count }

    /// Dirties this many pages, far from each other: 8 new bytes in each.
    func write(pages count: Int) {
        for index in 0..<count {
            GuestContent.stamp(region.bytes, page(index), stampNumber)
            stampNumber += 1
        }
    }

    /// The minimal work of a pause: take the log, and copy the pages that it names.
    func takeAndCopy() throws -> Int {
        var bitmap = DirtyBitmap()
        try take(into: &bitmap)
        return copy(bitmap.runs())
    }

    /// Takes the session's log, as its pause does: the pages that it names must be written again
    /// before the next capture.
    func take(into bitmap: inout DirtyBitmap) throws {
        guard let log = session.dirtyLog,
            try memory.takeDirty(log, into: &bitmap, isFinal: true) == .complete
        else { throw Child.Failure(description: "the session has no log that knows all writes") }
    }

    /// Copies pages out of the guest, back to back.
    func copy(_ runs: [PageRange]) -> Int {
        guard let to = target.bytes.baseAddress, let from = region.bytes.baseAddress else {
            return 0
        }
        var offset = 0
        for run in runs {
            let bytes = run.count * Page.byteCount
            // When the target is full, copying continues at its beginning.
            if offset + bytes > target.bytes.count { offset = 0 }
            memcpy(to + offset, from + Int(run.first.rawValue) * Page.byteCount, bytes)
            offset += bytes
        }
        return runs.reduce(0) { $0 + $1.count }
    }

    /// Notes the process's memory without the guest and this benchmark's own buffers.
    func noteMemory(_ run: Comparison) {
        let beside = max(0, ResidentMemory.peak - residentBefore)
        run.note("memory beside the guest", Double(beside), "bytes")
        run.note(
            "of that, pages of mapped files (the index) at the end",
            Double(ResidentMemory.mappedFiles), "bytes")
        run.note("guest", Double(region.bytes.count), "bytes")
    }
}

/// A file that bytes are appended to: the limit of the disk.
final class DiskLimit {
    private let file: Int32
    private var offset: off_t = 0
    private let bytes: Memory

    init(directory: String, byteCountMax: Int) throws {
        file = open(directory + "/disk", O_RDWR | O_CREAT | O_TRUNC, 0o600)
        guard file >= 0 else { throw POSIXError(.EIO) }
        bytes = Memory(byteCount: byteCountMax)
    }

    deinit { close(file) }

    /// Appends bytes and waits until they are durable.
    func write(_ byteCount: Int) throws {
        let count = pwrite(file, bytes.bytes.baseAddress, byteCount, offset)
        guard count == byteCount, fdatasync(file) == 0 else { throw POSIXError(.EIO) }
        offset += off_t(count)
    }
}
